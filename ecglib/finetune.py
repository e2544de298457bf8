"""Fine-tuning: all weights of a classifier learn one outcome; a table of predictions comes out.

As in the paper (Methods) and its public code: two-neuron head, cross-entropy, OneCycle up to 1e-3, no
augmentation, AdamW for HeartBEiT and Adam for the baselines. Unlike it, there is a validation part; the step
that is reported, and the part on which it is chosen, are for `ecglib.protocols` to say.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from ecglib.beit import reproducible
from ecglib.classifiers import Classifier, inference_batch, save_trained
from ecglib.errors import EcglibError
from ecglib.memory import keep_freed_memory
from ecglib.precision import CHOICES, autocast, resolve_precision
from ecglib.progress import track

SCORED_PARTS = ("validation", "test", "external")
# The paper's public code: Adam for the baselines, AdamW for HeartBEiT and so for its random control.
DECAYED = ("heartbeit", "random")


class UnstableError(EcglibError):
    """Training went out of bounds: a finding about a model and its learning rate, not a user's mistake."""


class Images(Protocol):
    """What training needs of a store of images, such as `ecglib.shards.ImageStore`."""

    @property
    def manifest(self) -> pd.DataFrame:
        """One row per image, with record_id and patient_id."""
        ...

    def __len__(self) -> int:
        """Count the images."""
        ...

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Images (n, size, size) uint8 at these positions, in this order."""
        ...


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a classifier is fine-tuned (paper, Methods; its public code where the text is silent)."""

    steps: int = 40  # most optimiser steps of one cell, 0 for no limit
    epochs: int = 0  # most passes over the training records (the paper: 30), 0 for no limit
    batch_size: int = 32  # images per step; the whole training set where that is smaller
    max_learning_rate: float = 1e-3  # peak of the OneCycle schedule, which starts at a 25th of it
    weight_decay: float = 0.01  # of AdamW, for heartbeit and random; the baselines' Adam has none
    score_points: int = 4  # evenly spaced steps at which validation, test and external are predicted
    precision: str = "auto"  # bf16-mixed, 32-true, or auto: bf16-mixed where the machine is fast at it

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        least = {"batch_size": 1, "score_points": 1, "epochs": 0, "steps": 0 if self.epochs else 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise EcglibError(f"{name}={getattr(self, name)}: at least {bound} is needed; raise it")
        if not self.max_learning_rate > 0:
            raise EcglibError(f"max_learning_rate={self.max_learning_rate}: it must be above 0; raise it")
        if not self.weight_decay >= 0:
            raise EcglibError(f"weight_decay={self.weight_decay}: 0 or more is needed; raise it")
        if self.precision not in CHOICES:
            raise EcglibError(f"precision={self.precision}: choose one of {', '.join(CHOICES)}")

    def total_steps(self, n_records: int) -> int:
        """Optimiser steps on `n_records` training records."""
        batch = min(self.batch_size, n_records)
        limits = [self.steps, -(-self.epochs * n_records // batch)]
        return min(limit for limit in limits if limit)

    def scored_steps(self, n_records: int) -> list[int]:
        """The steps, counted from 1, after which predictions are made; the last step is one of them."""
        total = self.total_steps(n_records)
        points = min(self.score_points, total)
        return [round(total * (point + 1) / points) for point in range(points)]


def finetune(
    classifier: Classifier,
    store: Images,
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: FinetuneSettings,
    seed: int,
    weights_path: Path | None = None,
) -> pd.DataFrame:
    """Train `classifier` (in place) and predict validation, test and external at every scored step.

    rows: part -> positions in the store; `train` and at least one scored part. labels: (n images,) 0/1.
    Returns record_id, patient_id, part, step, y_true, y_score (float32 probability of class 1). The weights
    saved at `weights_path` are those of the scored step with the best validation AUROC, the first of equals;
    of the last step where validation is absent or lacks a class. On a CPU the same call, on as many threads,
    gives the same bytes.
    Raises EcglibError where training lacks a class, and UnstableError where the loss or a prediction is no
    longer finite (the paper saw its ViT become unstable): a score of such a model would mean nothing.
    """
    check_rows(rows, labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(classifier.to(device), store, rows, labels, settings, device)
    scored = set(settings.scored_steps(len(rows["train"])))
    predictions, best = [], BestOnValidation()
    with _seeded(seed, device), reproducible(device):
        for step in run.train(seed):
            if step not in scored:
                continue
            predictions.append(run.predictions(step))
            best.offer(predictions[-1], step, classifier.state_dict())
    if weights_path:
        best.save(weights_path, {"model": classifier.name, "seed": seed})
    return pd.concat(predictions, ignore_index=True)


@dataclass(frozen=True)
class _Run:
    """One training: what learns, from what, and how."""

    classifier: Classifier
    store: Images
    rows: Mapping[str, np.ndarray]
    labels: np.ndarray
    settings: FinetuneSettings
    device: torch.device

    def train(self, seed: int) -> Iterator[int]:
        """Take one optimiser step after another; yield the number of steps taken."""
        rows, settings = self.rows["train"], self.settings
        total, size = settings.total_steps(len(rows)), min(settings.batch_size, len(rows))
        optimizer = self._optimizer()
        # PyTorch's defaults, as in the paper's public code: a peak of 1e-3 means 4e-5 -> 1e-3 -> 4e-9.
        schedule = OneCycleLR(optimizer, settings.max_learning_rate, total_steps=total)
        batches = _batches(rows, size, total, np.random.default_rng(seed))
        for step, batch in enumerate(track(batches, f"fine-tuning {self.classifier.name}", total), start=1):
            optimizer.zero_grad()
            loss = self._loss(batch)
            if not torch.isfinite(loss):
                raise self._unstable(step)
            loss.backward()
            optimizer.step()
            schedule.step()
            yield step

    def predictions(self, step: int) -> pd.DataFrame:
        """Table of predictions of every scored part after `step`."""
        tables = []
        for part in SCORED_PARTS:
            if not len(self.rows.get(part, ())):
                continue
            y_score = predict(self.classifier, self.store, self.rows[part], self.settings.precision)
            if not np.isfinite(y_score).all():
                raise self._unstable(step)
            tables.append(prediction_table(self.store, part, self.rows[part], self.labels, step, y_score))
        return pd.concat(tables, ignore_index=True)

    def _loss(self, batch: np.ndarray) -> Tensor:
        self.classifier.train()
        pixels = torch.from_numpy(self.store.pixels(batch)).to(self.device)
        y_true = torch.from_numpy(self.labels[batch]).long().to(self.device)
        with autocast(resolve_precision(self.settings.precision), self.device):
            logits = self.classifier(pixels)
        return nn.functional.cross_entropy(logits, y_true)

    def _optimizer(self) -> torch.optim.Optimizer:
        weights, rate = self.classifier.parameters(), self.settings.max_learning_rate
        if self.classifier.name in DECAYED:
            return torch.optim.AdamW(weights, rate, weight_decay=self.settings.weight_decay)
        return torch.optim.Adam(weights, rate)

    def _unstable(self, step: int) -> UnstableError:
        total = self.settings.total_steps(len(self.rows["train"]))
        return UnstableError(f"loss or prediction not finite at step {step} of {total}")


def predict(classifier: Classifier, store: Images, rows: np.ndarray, precision: str = "auto") -> np.ndarray:
    """Probability of class 1 (n,) float32 of the images at `rows`; runs where the classifier is."""
    keep_freed_memory()
    device = next(classifier.parameters()).device
    number_format = resolve_precision(precision)
    size = inference_batch(device, number_format)
    classifier.eval()
    probabilities = []
    with torch.inference_mode(), autocast(number_format, device):
        for start in range(0, len(rows), size):
            pixels = torch.from_numpy(store.pixels(rows[start : start + size])).to(device)
            probabilities.append(classifier(pixels).softmax(dim=1)[:, 1].cpu())
    return torch.cat(probabilities).numpy() if probabilities else np.empty(0, np.float32)


def prediction_table(
    store: Images, part: str, rows: np.ndarray, labels: np.ndarray, step: int, y_score: np.ndarray
) -> pd.DataFrame:
    """Predictions of one part at one step in the form that `ecglib.protocols` reads."""
    known = store.manifest.iloc[rows][["record_id", "patient_id"]].reset_index(drop=True)
    y_true = labels[rows].astype(np.int8)
    return known.assign(part=part, step=step, y_true=y_true, y_score=y_score.astype(np.float32))


class BestOnValidation:
    """Keeps the weights of the scored step with the best validation AUROC, the first of equals.

    Where validation is absent or lacks a class: those of the last step.
    """

    def __init__(self) -> None:
        self.auroc, self.step = -1.0, 0
        self.state: dict[str, Tensor] = {}

    def offer(self, predictions: pd.DataFrame, step: int, state: Mapping[str, Tensor]) -> None:
        """Copy `state` if the step's predictions are better than all before."""
        auroc = _validation_auroc(predictions)
        if auroc is None or auroc > self.auroc:
            self.auroc, self.step = self.auroc if auroc is None else auroc, step
            self.state = {key: value.detach().cpu().clone() for key, value in state.items()}

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write the kept weights, with `about` and their step in the file's header."""
        save_trained(path, self.state, {**about, "step": self.step})


def _validation_auroc(predictions: pd.DataFrame) -> float | None:
    """AUROC of the validation rows of one step, from ranks; None where a class is missing.

    Ranks are multiples of a half, so the numerator is exact and equal rankings give equal numbers.
    """
    rows = predictions.loc[predictions["part"] == "validation"]
    positive = rows["y_true"].to_numpy() == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(rows["y_score"].to_numpy())[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def check_rows(rows: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    """Raise EcglibError unless training holds both classes and there is something to predict."""
    classes = set(np.unique(labels[rows["train"]])) if len(rows.get("train", ())) else set()
    if classes != {0, 1}:
        found = ", ".join(str(label) for label in sorted(classes)) or "no record"
        raise EcglibError(
            f"the training rows hold {found}: both labels 0 and 1 are needed; take more patients"
        )
    if not any(len(rows.get(part, ())) for part in SCORED_PARTS):
        raise EcglibError(f"no rows to predict: give at least one of {', '.join(SCORED_PARTS)}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from, and give the caller's generators back unchanged."""
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), cudnn:
        torch.manual_seed(seed)
        yield


def _batches(rows: np.ndarray, size: int, n_batches: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut a stream of freshly shuffled epochs into `n_batches` batches of exactly `size` rows."""
    waiting = np.empty(0, rows.dtype)
    for _ in range(n_batches):
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        batch, waiting = waiting[:size], waiting[size:]
        yield batch
