"""Pretraining on one, two and four times the images: time and memory; and loading alone against PNG files.

Each corpus is written as memory-mapped shards and used in a process of its own: opened, read once in the
order of an epoch, with masks, and learnt from for some steps of heartbeit_nano. An epoch's batches should
take time in proportion, a step always the same, and the program's own memory should not grow; mapped
files are the system's to take back. Then the assembly of batches against PNG files of 1000 x 1000, opened and
resized by PIL, in turns. Images are made-up noise, PNG files made-up traces.
Run: python benchmarks/scale.py [--images N]
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from ecglib.image import write_paper_png
from ecglib.masking import MaskedCorpus
from ecglib.precision import resolve_precision
from ecglib.pretrain import PretrainSettings, Trainer, make_fabric
from ecglib.provenance import file_sha256
from ecglib.shards import SHARD_SIZE, ImageStore

TIMES, STEPS, BATCH, VOCAB, ROUNDS = (1, 2, 4), 12, 32, 512, 5
PNGS = 16


def write_made_up_shards(directory: Path, n_images: int) -> None:
    """A finished folder of `shards.write_images`, of noise."""
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, n_images, SHARD_SIZE)):
        n = min(SHARD_SIZE, n_images - start)
        np.save(directory / f"images-{number:05d}.npy", rng.integers(0, 256, (n, 224, 224), dtype=np.uint8))
    pd.DataFrame({"record_id": np.arange(n_images)}).to_parquet(directory / "manifest.parquet")
    files = {path.name: file_sha256(path) for path in directory.iterdir()}
    state = {"recipe": "made up", "n_images": n_images, "files": files}
    (directory / "checksums.json").write_text(json.dumps(state))


def open_corpus(directory: Path) -> MaskedCorpus:
    """The images of a folder, with random tokens."""
    store = ImageStore.open(directory)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (len(store), 196), dtype=np.uint16)
    return MaskedCorpus(
        store, tokens, np.arange(len(store)), VOCAB, kind="blockwise", target=78, batch_size=BATCH, seed=0
    )


def measure(directory: Path) -> dict[str, float]:
    """Milliseconds and megabytes of one process."""
    marks = [time.perf_counter()]
    corpus = open_corpus(directory)
    marks.append(time.perf_counter())
    for step in range(len(corpus.rows) // BATCH):
        corpus.batch(step)
    marks.append(time.perf_counter())
    settings = PretrainSettings(steps=1000, batch_size=BATCH)
    trainer = Trainer(make_fabric(resolve_precision("auto"), "auto", BATCH), corpus, settings, VOCAB)
    learning = []
    for step, batch in trainer.batches(range(STEPS)):
        start = time.perf_counter()
        trainer.update(step, batch)
        trainer.settle()
        learning.append(time.perf_counter() - start)
    memory = psutil.Process().memory_info()
    return {
        "open_ms": 1e3 * (marks[1] - marks[0]),
        "epoch_ms": 1e3 * (marks[2] - marks[1]),
        "step_ms": 1e3 * median(learning),
        "own_mb": (memory.rss - memory.shared) / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def report_growth(folder: Path, n_images: int) -> None:
    """Print one line for each size."""
    fresh = multiprocessing.get_context("spawn")
    print("images   open, ms   an epoch's batches, ms   a step, ms   own memory, MB   peak with files, MB")
    for times in TIMES:
        directory = folder / str(times)
        directory.mkdir()
        write_made_up_shards(directory, times * n_images)
        with fresh.Pool(1) as pool:
            found = pool.apply(measure, (directory,))
        columns = zip(found.values(), (11, 25, 13, 17, 22), strict=True)
        print(f"{times * n_images:6,}" + "".join(f"{value:{width}.0f}" for value, width in columns))


def report_loading(folder: Path) -> None:
    """Print milliseconds an image of both ways, read from the system's cache, one thread."""
    corpus = open_corpus(folder / "1")
    paths = [folder / f"{number}.png" for number in range(PNGS)]
    for number, path in enumerate(paths):
        write_paper_png(path, np.random.default_rng(number).normal(0, 0.3, (8, 2500)).cumsum(1) / 30)
    ours, pixels, theirs = [], [], []
    for step in range(ROUNDS):
        start = time.process_time()
        for part in range(20):
            corpus.batch(20 * step + part)
        ours.append((time.process_time() - start) / 20 / BATCH)
        start = time.process_time()
        for part in range(20):
            corpus.store.pixels(corpus.rows_at(20 * step + part)[0])
        pixels.append((time.process_time() - start) / 20 / BATCH)
        start = time.process_time()
        for path in paths:
            picture = Image.open(path).convert("RGB")
            np.asarray(picture.resize((224, 224)))
        theirs.append((time.process_time() - start) / PNGS)
    png = median(theirs)
    print(f"PNG of 1000 x 1000, PIL, resize   {1e3 * png:7.3f} ms an image")
    for name, times in (("image from shards", pixels), ("the same with mask and tokens", ours)):
        print(f"{name:33} {1e3 * median(times):7.3f} ms an image   ratio {png / median(times):.0f}")


def main() -> None:
    """Read the arguments and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2048, help="of the smallest corpus; default 2048")
    arguments = parser.parse_args()
    if arguments.images < BATCH:
        parser.error(f"--images must be at least {BATCH}")
    with tempfile.TemporaryDirectory() as folder:
        report_growth(Path(folder), arguments.images)
        report_loading(Path(folder))


if __name__ == "__main__":
    main()
