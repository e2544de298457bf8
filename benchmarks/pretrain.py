"""One pretraining step against Hugging Face's BEiT, fed by our cached tokens, and fed the original's way.

Prints images/s, the share of the machine's matrix-multiply peak that goes into useful operations, and ratios.
- fair peer: BeitForMaskedImageModeling given our tokens, masks and images, in our number format, with both of
  its attentions (sdpa is its default).
- the original's way: the same network fed by PNG files of 1000 x 1000 through PIL (224 x 224 for the network,
  112 x 112 for the tokens) with all of dall_e's Encoder (8,192 codes, random weights) in the loop, in
  float32, the default of both libraries, and in our number format.
Useful operations are three times those of timm's plain forward pass with the head on hidden patches, whatever
shortcuts a contender takes; the peak is measured in the same rounds, in our number format. A step is all
of it: reading the batch, both passes, clipping, AdamW. Images are made-up noise, which speed does not mind.
Contenders take turns; medians of the rounds.
Run: python benchmarks/pretrain.py [--batch N] [--sizes NAME ...] [--out FILE]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from dall_e import Encoder, map_pixels
from PIL import Image
from torch import Tensor
from transformers import BeitConfig, BeitForMaskedImageModeling

from ecglib.beit import SIZES, normalise
from ecglib.cost import useful_flops
from ecglib.estimates import peak_flops
from ecglib.image import write_paper_png
from ecglib.masking import MaskedCorpus
from ecglib.precision import Precision, autocast, resolve_precision
from ecglib.pretrain import PretrainSettings, Trainer, make_fabric
from ecglib.provenance import atomic_path, commit, machine
from ecglib.shards import ImageStore

VOCAB, N_IMAGES, TARGET = 8192, 128, 78
CPU = torch.device("cpu")
ROUNDS = {"heartbeit_tiny": 4, "heartbeit_base": 2}  # four minutes in all on two cores
ORIGINAL = 8  # images a step fed the original's way; its speed hardly depends on their number
Step = Callable[[], None]


def made_up_corpus(batch_size: int) -> MaskedCorpus:
    """Noise and random tokens, in memory."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N_IMAGES, 224, 224), dtype=np.uint8)
    tokens = rng.integers(0, VOCAB, (N_IMAGES, 196)).astype(np.uint16)
    store = ImageStore(Path("memory"), pd.DataFrame(index=range(N_IMAGES)), (pixels,), {})
    return MaskedCorpus(
        store, tokens, np.arange(N_IMAGES), VOCAB,
        kind="blockwise", target=TARGET, batch_size=batch_size, seed=0,
    )  # fmt: skip


def ours(size: str, batch_size: int) -> Step:
    """`pretrain`'s own loop."""
    settings = PretrainSettings(size=size, steps=1000, batch_size=batch_size)
    fabric = make_fabric(resolve_precision("auto"), settings.strategy, batch_size)
    trainer = Trainer(fabric, made_up_corpus(batch_size), settings, VOCAB)
    batches = trainer.batches(range(settings.steps))

    def step() -> None:
        trainer.update(*next(batches))
        trainer.settle()

    return step


class HuggingFace:
    """A network and its optimiser, as ours but for the code."""

    def __init__(self, size: str, attention: str, precision: str) -> None:
        width, depth, heads = SIZES[size]
        kernel: dict[str, Any] = {"attn_implementation": attention}  # the class takes it without naming it
        config = BeitConfig(
            vocab_size=VOCAB, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
            intermediate_size=4 * width, drop_path_rate=0.0, use_mask_token=True,
            use_shared_relative_position_bias=True,
            **kernel,
        )  # fmt: skip
        self.network = BeitForMaskedImageModeling(config).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
        self.precision: Precision = resolve_precision(precision)

    def learn(self, images: Tensor, mask: Tensor, targets: Tensor) -> None:
        with autocast(self.precision, CPU):
            loss = self.network(images, bool_masked_pos=mask, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def fair_peer(size: str, batch_size: int, attention: str) -> Step:
    """Fed by our batches."""
    peer, corpus, done = HuggingFace(size, attention, "auto"), made_up_corpus(batch_size), iter(range(1000))

    def step() -> None:
        pixels, mask, hidden = corpus.batch(next(done))
        images = normalise(torch.from_numpy(pixels)).expand(-1, 3, -1, -1)
        peer.learn(images, torch.from_numpy(mask), torch.from_numpy(hidden))

    return step


def original(size: str, pngs: list[Path], precision: str) -> Step:
    """Fed by files, tokens made anew each time."""
    peer, corpus, done = HuggingFace(size, "sdpa", precision), made_up_corpus(len(pngs)), iter(range(1000))
    tokenizer = Encoder(n_hid=256, n_blk_per_group=2, vocab_size=VOCAB)

    def step() -> None:
        pictures = [Image.open(path).convert("RGB") for path in pngs]
        large, small = (
            np.stack([np.asarray(picture.resize((width, width))) for picture in pictures])
            for width in (224, 112)
        )
        with torch.no_grad(), autocast(peer.precision, CPU):
            codes = tokenizer(map_pixels(as_tensor(small))).argmax(1).flatten(1)
        mask = torch.from_numpy(corpus.batch(next(done))[1])
        peer.learn(2 * as_tensor(large) - 1, mask, codes[mask])

    return step


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def write_pngs(folder: Path) -> list[Path]:
    """The paper's pictures, 1000 x 1000 x 3, of made-up traces."""
    paths = [folder / f"{number}.png" for number in range(ORIGINAL)]
    for number, path in enumerate(paths):
        waveform = np.random.default_rng(number).normal(0, 0.3, (8, 2500)).cumsum(1) / 30
        write_paper_png(path, waveform)
    return paths


def compare(size: str, batch_size: int, pngs: list[Path]) -> list[dict[str, Any]]:
    """Let all contenders take turns; print and return what they did, a row a contender."""
    number_format = resolve_precision("auto")
    ways: dict[str, tuple[Step, int]] = {
        "ecglib": (ours(size, batch_size), batch_size),
        "Hugging Face, our tokens, sdpa": (fair_peer(size, batch_size, "sdpa"), batch_size),
        "Hugging Face, our tokens, eager": (fair_peer(size, batch_size, "eager"), batch_size),
        "the original's way, 32-true": (original(size, pngs, "32-true"), len(pngs)),
        f"the original's way, {number_format}": (original(size, pngs, number_format), len(pngs)),
    }
    for step, _ in ways.values():
        step()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = []
    for _ in range(ROUNDS[size]):
        peaks.append(peak_flops("auto"))
        for name, (step, n_images) in ways.items():
            start = time.perf_counter()
            step()
            seconds[name].append((time.perf_counter() - start) / n_images)
    peak, flops = median(peaks), useful_flops(size, VOCAB, TARGET)
    print(f"\n{size}, {number_format}, batches of {batch_size}, {torch.get_num_threads()} threads: ", end="")
    print(f"{flops / 1e9:.1f} GFLOP an image, peak {peak / 1e9:.0f} GFLOP/s")
    mine, rows = median(seconds["ecglib"]), []
    for name, times in seconds.items():
        each = median(times)
        row = {"images_per_second": 1 / each, "utilisation": flops / each / peak, "ratio": each / mine}
        ratio = "" if name == "ecglib" else f"   ratio {row['ratio']:.2f}"
        print(f"{name:36} {1 / each:7.2f} images/s   {row['utilisation']:4.0%} of the peak{ratio}")
        rows.append({"size": size, "contender": name, **row, "peak_gflops": peak / 1e9})
    return rows


def report_loading(batch_size: int) -> None:
    """How long the assembly of a batch takes, which happens while the network learns."""
    corpus = made_up_corpus(batch_size)
    start = time.perf_counter()
    for step in range(20):
        corpus.batch(step)
    each = (time.perf_counter() - start) / 20 / batch_size
    print(f"assembling a batch, masks and all: {1000 * each:.3f} ms an image")


def main() -> None:
    """Read the arguments and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="images in a step; default 32")
    parser.add_argument("--sizes", nargs="+", choices=ROUNDS, default=list(ROUNDS), help="networks")
    parser.add_argument(
        "--out", type=Path, help="also write the figures to this file, such as book/results/speed/mine.json"
    )
    arguments = parser.parse_args()
    if arguments.batch < 1:
        parser.error("--batch must be at least 1")
    report_loading(arguments.batch)
    with tempfile.TemporaryDirectory() as folder:
        pngs = write_pngs(Path(folder))
        rows = [row for size in arguments.sizes for row in compare(size, arguments.batch, pngs)]
    if arguments.out:
        made = {"batch_size": arguments.batch, "precision": resolve_precision("auto"), "commit": commit()}
        made |= {"threads": torch.get_num_threads(), "machine": machine(), "rows": rows}
        with atomic_path(arguments.out) as path:
            path.write_text(json.dumps(made, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
