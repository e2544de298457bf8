"""Pretraining: predict the tokens of hidden patches from the rest of the image (BEiT, arXiv 2106.08254).

All chance comes from the seed and the step, so a killed run goes on from its checkpoint to the same bytes
(on a CPU, with as many threads) as an unbroken one. One process or several (torchrun) do the same sums,
whatever their number was before a kill.
"""

import copy
import hashlib
import logging
import math
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ecglib.beit import SIZES, MaskedImageModel, normalise, reproducible
from ecglib.checkpoints import (
    COURSE,
    ENCODER,
    load_masked_image_model,
    read_checkpoint,
    read_course,
    save_encoder,
)
from ecglib.errors import EcglibError
from ecglib.masking import KINDS, MaskedCorpus
from ecglib.precision import Precision, resolve_precision
from ecglib.progress import track
from ecglib.provenance import atomic_path, commit
from ecglib.shards import ImageStore, JoinedImages

HISTORY = ("step", "loss", "accuracy", "majority_accuracy", "learning_rate", "images_per_second")
NO_DECAY = ("cls_token", "mask_token", "relative_position_bias_table")
CACHED_IMAGES = 8  # a CPU computes no more at a time: what it needs next is still in its cache
SHARED_PARAMETERS = 30_000_000  # a larger network keeps all of a CPU's threads busy with one product
STRATEGIES = ("auto", "ddp")
FREE_OF_CHOICE = ("checkpoint_every", "strategy")  # a run may go on with others
Callback = Callable[[int, MaskedImageModel], None]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # see MaskedCorpus.batch


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How the encoder is pretrained; the defaults are for a minute on a CPU."""

    size: str = "heartbeit_nano"  # network: heartbeit_nano, heartbeit_tiny or heartbeit_base (the paper's)
    steps: int = 150  # weight updates
    batch_size: int = 64  # images per update, over all processes
    learning_rate: float = 1.5e-3  # highest learning rate, reached at the end of the warm-up
    min_learning_rate: float = 1e-5  # learning rate at the last step
    warmup_steps: int = 15  # steps over which the learning rate rises linearly from zero
    weight_decay: float = 0.05  # AdamW's decay of matrices; vectors, tokens and positions have none
    mask: str = "blockwise"  # which patches are hidden: blockwise (as in BEiT), uniform or lead_balanced
    mask_target: int = 78  # patches to hide in each image, of 196
    drop_path: float = 0.0  # probability that an image skips the last block while training
    clip_norm: float = 3.0  # largest norm of the gradient, 0 for no limit
    accumulate: int = 0  # parts of a batch computed one by one, 0: as fit a CPU's cache, or one on CUDA
    precision: str = "auto"  # number format: auto, bf16-mixed or 32-true
    strategy: str = "auto"  # how torchrun's processes share the work: auto or ddp (each holds the network)
    checkpoint_every: int = 100  # steps between checkpoints
    seed: int = 0  # seed of weights, order, masks and drop path

    def __post_init__(self) -> None:
        resolve_precision(self.precision)
        least = {"steps": 1, "batch_size": 1, "mask_target": 1, "checkpoint_every": 1}
        least |= {"accumulate": 0, "weight_decay": 0, "clip_norm": 0, "seed": 0}
        rules = {name: (getattr(self, name) >= bound, f"at least {bound}") for name, bound in least.items()}
        rules |= {
            "size": (self.size in SIZES, f"one of {', '.join(SIZES)}"),
            "strategy": (self.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
            "mask": (self.mask in KINDS, f"one of {', '.join(KINDS)}"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "min_learning_rate": (0 <= self.min_learning_rate <= self.learning_rate, "0 to learning_rate"),
            "warmup_steps": (0 <= self.warmup_steps < self.steps, f"0 or more, and below steps {self.steps}"),
            "drop_path": (0 <= self.drop_path < 1, "at least 0 and below 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise EcglibError(f"{name} must be {rule}, not {getattr(self, name)!r}")


def learning_rate_at(step: int, settings: PretrainSettings, begun_at: int = 0) -> float:
    """Linear from zero to `learning_rate` at the end of the warm-up, then half a cosine to the minimum.

    begun_at: the step at which the optimiser began anew; it is warmed up again from there.
    """
    progress = (step - settings.warmup_steps) / max(1, settings.steps - 1 - settings.warmup_steps)
    above = settings.learning_rate - settings.min_learning_rate
    rate = settings.min_learning_rate + above * (1 + math.cos(math.pi * max(0.0, progress))) / 2
    return rate * min(1.0, (step - begun_at + 1) / max(1, settings.warmup_steps))


def make_fabric(precision: Precision, strategy: str, batch_size: int) -> Fabric:
    """One device, or those of torchrun's processes; Fabric's LT_DEVICES, LT_STRATEGY and so on go first."""
    devices, n_processes = 1, 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices, n_processes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would go into notebooks
    fabric = Fabric(devices=devices, num_nodes=n_processes // devices, strategy=strategy, precision=precision)
    fabric.launch()
    if fabric.world_size > batch_size:
        raise EcglibError(f"batch_size {batch_size} is too small for {fabric.world_size} processes: raise it")
    return fabric


def _gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


class Trainer:
    """A network in training and its history; measurements stay on the device until `settle` reads them."""

    def __init__(self, fabric: Fabric, corpus: MaskedCorpus, settings: PretrainSettings, vocab_size: int):
        self.fabric, self.corpus, self.settings = fabric, corpus, settings
        self.network = MaskedImageModel(
            settings.size, vocab_size,
            image_size=corpus.image_size, drop_path=settings.drop_path, seed=settings.seed,
        )  # fmt: skip
        named = dict(self.network.named_parameters())
        plain = [p for name, p in named.items() if p.ndim == 1 or name.endswith(NO_DECAY)]
        matrices = [p for name, p in named.items() if p.ndim > 1 and not name.endswith(NO_DECAY)]
        groups = [{"params": matrices}, {"params": plain, "weight_decay": 0.0}]
        # torch's default betas, 0.9 and 0.999, and eps, 1e-8, are BEiT's.
        optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        copies = list(self._copies())
        # Fabric's wrapper keeps in a global flag that a backward pass is at work: threads do without it.
        self.learners = [self.network, *copies] if copies else [self.model]
        self.n_parts = self._count_parts()
        self.threads = ThreadPoolExecutor(len(self.learners))
        self.history: list[list[float]] = []  # one row a step, columns HISTORY
        self.begun_at = 0  # the step at which the optimiser began
        self.waiting: list[Tensor] = []
        self.clock = time.perf_counter()

    def _copies(self) -> Iterator[nn.Module]:
        """Networks of the same weights but with gradients of their own: one for each further thread of a CPU.

        Threads that learn from images of their own seldom wait for each other. Drop path draws from one
        generator, whose order would then be chance.
        """
        small = sum(p.numel() for p in self.network.parameters()) <= SHARED_PARAMETERS
        alone = self.fabric.device.type == "cpu" and self.fabric.world_size == 1
        if not (small and alone) or self.settings.drop_path:
            return
        n_parts = self.settings.accumulate or self.settings.batch_size
        for _ in range(1, min(torch.get_num_threads(), n_parts, self.settings.batch_size)):
            twin = copy.deepcopy(self.network)
            for theirs, ours in zip(twin.parameters(), self.network.parameters(), strict=True):
                theirs.data = ours.data
            yield twin

    def _count_parts(self) -> int:
        """Parts in which each process computes its batch: the same number in all."""
        most = self.settings.batch_size // self.fabric.world_size
        if self.settings.accumulate or self.fabric.device.type != "cpu":
            return min(self.settings.accumulate or 1, most)
        n_learners = len(self.learners)
        share = self.settings.batch_size / self.fabric.world_size / n_learners
        return min(n_learners * math.ceil(share / CACHED_IMAGES), most)

    def batches(self, steps: range) -> Iterator[tuple[int, Batch]]:
        """This process's part of each step's batch, read while the network learns from the one before."""
        with ThreadPoolExecutor(1) as reader:

            def read(step: int) -> Future[Batch]:
                return reader.submit(self.corpus.batch, step, self.fabric.global_rank, self.fabric.world_size)

            ahead = read(steps.start)
            for step in steps:
                batch = ahead.result()
                if step + 1 < steps.stop:
                    ahead = read(step + 1)
                yield step, batch

    def update(self, step: int, batch: Batch) -> None:
        """Learn from a batch, of which this is the process's part."""
        fabric, settings = self.fabric, self.settings
        if settings.drop_path:
            noise = np.random.SeedSequence((settings.seed, step, fabric.global_rank, 2))
            torch.manual_seed(int(noise.generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings, self.begun_at)
        pixels, mask, hidden = batch
        n_masked = self._add_over_processes(torch.tensor(float(len(hidden)), device=fabric.device))
        parts = np.array_split(np.arange(len(pixels)), self.n_parts)
        starts = np.cumsum([0, *(mask[part].sum() for part in parts)])
        cut = [(pixels[part], mask[part], hidden[starts[i] : starts[i + 1]]) for i, part in enumerate(parts)]
        sums = self._learn(cut, n_masked)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.waiting.append(torch.cat([sums / n_masked, norm.reshape(1) / fabric.world_size]))

    def _learn(self, parts: list[Batch], n_masked: Tensor) -> Tensor:
        """Leave the gradients of all parts in the network; return the sums of `_learn_parts`."""
        n_learners, n_threads = len(self.learners), torch.get_num_threads()
        if n_learners == 1:
            return self._learn_parts(self.model, parts, n_masked)
        bounds = np.linspace(0, len(parts), n_learners + 1).astype(int)
        shares = [parts[start:stop] for start, stop in pairwise(bounds)]

        def learn(learner: nn.Module, share: list[Batch]) -> Tensor:
            torch.set_num_threads(n_threads // n_learners)  # of this thread
            return self._learn_parts(learner, share, n_masked)

        try:
            sums = sum(self.threads.map(learn, self.learners, shares), start=torch.zeros(3))
        finally:
            torch.set_num_threads(n_threads)
        for learner in self.learners[1:]:  # always in this order: the sum is the same in every run
            for gradient, addend in zip(_gradients(self.network), _gradients(learner), strict=True):
                gradient += addend
            learner.zero_grad()
        return sums

    def _learn_parts(self, learner: Any, parts: list[Batch], n_masked: Tensor) -> Tensor:
        """Add to the learner's gradients; return sums: loss, right answers, those by the commonest token."""
        sums = torch.zeros(3, device=self.fabric.device)
        for i, (pixels, mask, hidden) in enumerate(parts):
            images = normalise(torch.from_numpy(pixels).to(self.fabric.device))
            targets = torch.from_numpy(hidden).to(self.fabric.device)
            with self.fabric.no_backward_sync(self.model, enabled=i < len(parts) - 1):
                with nullcontext() if learner is self.model else self.fabric.autocast():
                    logits = learner(images, torch.from_numpy(mask)).float()
                loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
                # Processes average gradients: this makes the average that of the whole batch's mean loss.
                backward = self.fabric.backward if learner is self.model else Tensor.backward
                backward(loss * (self.fabric.world_size / n_masked))
            right = logits.max(1).indices == targets  # argmax would take four times as long on a CPU
            sums += torch.stack([loss.detach(), right.sum(), (targets == self.corpus.commonest).sum()])
        return sums

    def _add_over_processes(self, values: Tensor) -> Tensor:
        if self.fabric.world_size > 1:  # not Fabric's all_reduce, which waits at a barrier first
            torch.distributed.all_reduce(values)
        return values

    def settle(self) -> None:
        """Turn what waits into rows. Raises EcglibError where a loss or its gradient is not finite."""
        settings, values = self.settings, self._add_over_processes(torch.stack(self.waiting)).tolist()
        speed = settings.batch_size * len(values) / (time.perf_counter() - self.clock)
        for step, (loss, accuracy, majority, norm) in enumerate(values, start=len(self.history)):
            if not math.isfinite(loss + norm):
                problem = f"pretraining: loss {loss:g}, gradient norm {norm:g} at step {step + 1}, not finite"
                raise EcglibError(f"{problem}: lower learning_rate or set clip_norm (checkpoint kept)")
            rate = learning_rate_at(step, settings, self.begun_at)
            self.history.append([step + 1, loss, accuracy, majority, rate, speed])
        self.waiting.clear()
        self.clock = time.perf_counter()

    def begin_at(self, start: Path) -> None:
        """Go on from the network and the course of training in a folder, whose optimiser is lost."""
        network = load_masked_image_model(start / ENCODER, vocab_size=self.network.vocab_size)
        if network.size != self.settings.size:
            raise EcglibError(f"{start} holds a {network.size}, the settings name a {self.settings.size}")
        self.network.load_state_dict(network.state_dict())
        self.history = read_course(start / COURSE).to_numpy().tolist()
        self.begun_at = len(self.history)

    def state(self) -> dict[str, Any]:
        history = torch.tensor(self.history, dtype=torch.float64)
        model, optimizer = self.network.state_dict(), self.optimizer.state_dict()
        return {"model": model, "optimizer": optimizer, "history": history}

    def load(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"].tolist()


def _train(trainer: Trainer, path: Path, identity: dict[str, Any], callbacks: Sequence[Callback]) -> None:
    """Go from the checkpoint, or from where the trainer stands, to the last step."""
    fabric, settings = trainer.fabric, trainer.settings
    path.parent.mkdir(parents=True, exist_ok=True)
    if fabric.is_global_zero:
        for half_written in path.parent.glob(f".{path.name}.*.partial"):  # of a run killed meanwhile
            half_written.unlink()
    if path.exists():
        trainer.load(_load_checkpoint(path, identity))
    steps = range(len(trainer.history), settings.steps)
    settle_every = 1 if fabric.device.type == "cpu" else 20  # elsewhere reading a loss makes the host wait
    batches = trainer.batches(steps)
    for step, batch in track(batches, "pretraining", len(steps)) if fabric.is_global_zero else batches:
        trainer.update(step, batch)
        done = step + 1
        due = done % settings.checkpoint_every == 0 or done == settings.steps
        if due or done % settle_every == 0:
            trainer.settle()
        if due:
            if fabric.is_global_zero:
                trainer.network.eval()
                for callback in callbacks:
                    callback(done, trainer.network)
                trainer.network.train()
                _save_checkpoint(path, {"identity": identity, **trainer.state()})
            fabric.barrier()
            trainer.clock = time.perf_counter()


def _save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    kept = "the last one is kept" if path.exists() else "there is none yet"
    with _written(path, kept), atomic_path(path) as partial, open(partial, "wb") as stream:
        torch.save(state, stream)


@contextmanager
def _written(path: Path, kept: str) -> Iterator[None]:
    """Say in one line that a file could not be written, most likely on a full disk, and what is kept."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch turns some of the former into the latter
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = " ".join(str(cause).split())[:200]
        raise EcglibError(f"{path} cannot be written ({reason}); {kept}: free space and go on") from error


def _load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # compares checksums, which torch.load does not
                raise zipfile.BadZipFile
        saved = torch.load(path, map_location="cpu", weights_only=True)
        theirs = saved["identity"]
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, LookupError) as error:
        raise EcglibError(f"{path} is damaged: delete it to pretrain from the start") from error
    for name in sorted(identity.keys() | theirs.keys()):
        if identity.get(name) != theirs.get(name):
            change = f"{name} was {theirs.get(name)!r} and is {identity.get(name)!r}"
            raise EcglibError(f"{path} was made otherwise: {change}; set it back or delete the checkpoint")
    return saved


def pretrain(
    store: ImageStore | JoinedImages,
    tokens: np.ndarray,
    rows: np.ndarray,
    vocab_size: int,
    settings: PretrainSettings,
    directory: Path,
    callbacks: Sequence[Callback] = (),
    metadata: Mapping[str, Any] | None = None,
    start: Path | None = None,
) -> None:
    """Learn from the images at positions `rows`; write encoder.safetensors and history.parquet.

    tokens: uint16 (len(store), patches). metadata: added to the encoder's (preprocessing, commit, ...).
    Goes on from `directory`/checkpoint.pt where there is one. callbacks: called in the first process as
    callback(steps done, network in evaluation mode) before each checkpoint. start: a folder such as this
    function leaves, from whose last step to go on where the checkpoint is lost; the optimiser is fresh and
    warmed up again. Under torchrun each process takes its part of each batch. History: one row a step, over
    the hidden patches of the whole batch;
    `majority_accuracy` is what naming the commonest hidden token of the corpus every time would have reached.
    Raises EcglibError for data that do not fit, images that changed since they were drawn (every file is
    compared with its checksum before the first step), a damaged or foreign checkpoint, a loss not finite, and
    a disk that is full.
    """
    precision = resolve_precision(settings.precision)
    fabric = make_fabric(precision, settings.strategy, settings.batch_size)
    if fabric.is_global_zero:
        store.verify()
    corpus = MaskedCorpus(
        store, tokens, rows, vocab_size,
        kind=settings.mask, target=settings.mask_target, batch_size=settings.batch_size, seed=settings.seed,
    )  # fmt: skip
    data = {"data_hash": store.data_hash, "vocab_size": vocab_size}
    for name, array in {"rows": np.asarray(rows), "tokens": tokens}.items():
        data[name] = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16]
    if start is not None:
        data["start"] = read_checkpoint(start / ENCODER).metadata["weights_sha256"]
    identity = {**asdict(settings), **data, "precision": precision, **dict.fromkeys(FREE_OF_CHOICE, "any")}
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices), reproducible(fabric.device):
        trainer = Trainer(fabric, corpus, settings, vocab_size)
        if start is not None:
            trainer.begin_at(start)
        _train(trainer, directory / "checkpoint.pt", identity, callbacks)
    if fabric.is_global_zero:
        described = {"settings": asdict(settings), "commit": commit(), **data, **(metadata or {})}
        path, kept = directory / ENCODER, "the checkpoint is kept"
        with _written(path, kept):
            save_encoder(path, trainer.network, described)
        path = directory / COURSE
        history = pd.DataFrame(trainer.history, columns=pd.Index(HISTORY)).astype({"step": int})
        with _written(path, kept), atomic_path(path) as partial:
            history.to_parquet(partial, index=False)
    fabric.barrier()
