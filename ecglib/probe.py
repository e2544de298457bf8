"""Heads on frozen features: a backbone looks at every image once, then linear heads are fitted in seconds.

Logistic regression over a path of regularisation strengths stands in for the scored steps of fine-tuning, so
that one table, one way of choosing and one way of scoring serve both kinds of cell.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import ThreadpoolController
from torch import Tensor

from ecglib.classifiers import Classifier, inference_batch
from ecglib.errors import EcglibError
from ecglib.finetune import (
    SCORED_PARTS,
    BestOnValidation,
    Images,
    check_rows,
    prediction_table,
)
from ecglib.memory import keep_freed_memory
from ecglib.metrics import auroc
from ecglib.progress import track
from ecglib.provenance import atomic_path
from ecglib.splits import label_fraction_rows

N_FOLDS = 5  # of the training records, to choose how strongly a head is regularised


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How linear heads are fitted on frozen features."""

    head_c: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation strengths, rising
    head_iterations: int = 1000  # most iterations of the solver for each strength

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted, by name."""
        if not self.head_c or min(self.head_c) <= 0 or list(self.head_c) != sorted(set(self.head_c)):
            raise EcglibError(f"head_c={self.head_c}: strengths must be above 0 and rise; mend the list")
        if self.head_iterations < 1:
            raise EcglibError(f"head_iterations={self.head_iterations}: at least 1 is needed; raise it")


def cache_features(classifier: Classifier, store: Images, path: Path) -> np.ndarray:
    """Pooled features (n images, d) float32 of the whole store, memory-mapped from `path`.

    Computed where `path` does not exist yet: name it after what made it. Raises EcglibError where a file is
    there that does not fit the store.
    """
    if not path.exists():
        with atomic_path(path) as partial:
            _write_features(classifier, store, partial)
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EcglibError(f"{path}: cut short or not an array ({error}); delete it") from error
    if features.shape != (len(store), classifier.head.in_features):
        raise EcglibError(f"{path}: features {features.shape} of other images or another network; delete it")
    return features


def _write_features(classifier: Classifier, store: Images, path: Path) -> None:
    shape = (len(store), classifier.head.in_features)
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    compute_features(classifier, store, np.arange(len(store)), features)
    features.flush()


def compute_features(classifier: Classifier, store: Images, rows: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (n, d) with the pooled features of the images at positions `rows` (n,).

    In float32, so that heads are the same on every processor: in bfloat16 the AUROC of one that
    learnt from 176 labels on EfficientNet-Lite2 moved from .733 to .694.
    """
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.to(device).eval()
    size = inference_batch(device, "32-true")
    starts = range(0, len(rows), size)
    with torch.inference_mode():
        for start in track(starts, f"features of {classifier.name}", unit="batch"):
            batch = slice(start, start + size)
            pixels = torch.from_numpy(store.pixels(rows[batch])).to(device)
            out[batch] = classifier.features(pixels).float().cpu().numpy()


def features_by_layer(classifier: Classifier, store: Images, rows: np.ndarray) -> np.ndarray:
    """What a transformer's patches hold on average after each block: float32 (depth, n rows, width)."""
    blocks: Any = classifier.backbone.blocks
    found = np.empty((len(blocks), len(rows), classifier.head.in_features), np.float32)
    done = [0] * len(blocks)

    # Copied at once: small arrays that stay between large ones keep memory from going back to the system.
    def look(layer: int, _block: Any, _inputs: Any, tokens: Tensor) -> None:
        mean = tokens[:, 1:].float().mean(1)
        found[layer, done[layer] : done[layer] + len(mean)] = mean.cpu()
        done[layer] += len(mean)

    hooks = [
        block.register_forward_hook(functools.partial(look, layer)) for layer, block in enumerate(blocks)
    ]
    try:
        compute_features(classifier, store, rows, np.empty(found.shape[1:], np.float32))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def cross_validated_scores(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_scored: np.ndarray, settings: ProbeSettings
) -> np.ndarray:
    """Fit one head on features x (n, d) and labels y (n,); return the probabilities (m,) of `x_scored`.

    The strength of regularisation comes from the training records alone: the best log loss in five folds,
    none of which shares a patient (`groups`) with another. EcglibError where there are too few patients for
    that.
    """
    n_patients = [len(np.unique(groups[y == label])) for label in (0, 1)]
    if min(n_patients) < 2 or max(n_patients) < N_FOLDS:  # a fold would lack a class, or patients
        raise EcglibError(
            f"{n_patients[1]} patients with and {n_patients[0]} without the outcome: a head chosen in "
            f"{N_FOLDS} folds needs 2 of each and {N_FOLDS} of one; take more labels"
        )
    folds = list(StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0).split(x, y, groups))
    losses = np.zeros(len(settings.head_c))
    for fit, held in folds:
        for i, (weight, bias) in enumerate(_heads(x[fit], y[fit], settings)):
            losses[i] += log_loss(y[held], expit(x[held] @ weight + bias), labels=[0, 1]) * len(held)
    best = int(losses.argmin())
    weight, bias = next(itertools.islice(_heads(x, y, settings), best, None))
    return expit(x_scored @ weight + bias)


@dataclass(frozen=True)
class Heads:
    """One outcome, and the draws of labels from which linear heads learn it; fold 9 is scored."""

    rows: np.ndarray  # positions in the store of the images that are learnt from or scored; the rest by these
    y: np.ndarray  # outcome of each, 0 or 1
    patients: np.ndarray
    draws: list[np.ndarray]  # places in `rows` of each draw's training images
    scored: np.ndarray  # places in `rows`

    @classmethod
    def drawn(
        cls, manifest: pd.DataFrame, part: pd.Series, outcome: str, fraction: float, n_draws: int
    ) -> "Heads":
        """Draws of a fraction of the training patients (`label_fraction_rows`); not those that lack a class.

        The column `outcome` of the manifest holds 0 or 1; the validation part is scored.
        """
        every = (label_fraction_rows(manifest, part, outcome, fraction, draw) for draw in range(n_draws))
        draws = [rows for rows in every if rows is not None]
        scored = np.flatnonzero(part == "validation")
        rows = np.unique(np.concatenate([scored, *draws]))
        scored, *draws = (np.searchsorted(rows, some) for some in (scored, *draws))
        y, patients = (manifest[name].to_numpy()[rows] for name in (outcome, "patient_id"))
        return cls(rows, y, patients, draws, scored)

    @property
    def counts(self) -> dict[str, float]:
        """n_labels (mean over the draws) and draws; n and n_positive of the images that are scored."""
        return {
            "n_labels": float(np.mean([len(rows) for rows in self.draws])),
            "draws": len(self.draws),
            "n": len(self.scored),
            "n_positive": int(self.y[self.scored].sum()),
        }

    def scores(self, features: np.ndarray) -> list[np.ndarray]:
        """Features (n rows, d) -> probabilities (n scored,) by the head of each draw.

        `cross_validated_scores` with the settings' defaults.
        """
        settings, scored = ProbeSettings(), features[self.scored]
        return [
            cross_validated_scores(features[own], self.y[own], self.patients[own], scored, settings)
            for own in self.draws
        ]

    def aurocs(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """AUROC of each draw's head."""
        return np.array([auroc(self.y[self.scored], score) for score in scores])


def fit_head(
    features: np.ndarray,
    store: Images,
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: ProbeSettings,
    weights_path: Path | None = None,
) -> pd.DataFrame:
    """Fit one head per regularisation strength on `train`; predict validation, test and external.

    features: (n images, d); rows: part -> positions; labels: (n images,) 0/1. Returns the table of
    `finetune.finetune`; `step` is the place of the strength in `settings.head_c`. At `weights_path` the head
    with the best validation AUROC is saved for `Classifier.load_trained`, chosen as by `BestOnValidation`.
    Raises EcglibError where training lacks a class.
    """
    check_rows(rows, labels)
    scored = {part: features[rows[part]] for part in SCORED_PARTS if len(rows.get(part, ()))}
    heads = _heads(features[rows["train"]], labels[rows["train"]], settings)
    predictions, best = [], BestOnValidation()
    for step, (weight, bias) in enumerate(heads):
        tables = [
            prediction_table(store, part, rows[part], labels, step, expit(x @ weight + bias))
            for part, x in scored.items()
        ]
        predictions.append(pd.concat(tables, ignore_index=True))
        best.offer(predictions[-1], step, two_neurons(weight, bias))
    if weights_path:
        best.save(weights_path, {"head_c": settings.head_c})
    return pd.concat(predictions, ignore_index=True)


def _heads(x: np.ndarray, y: np.ndarray, settings: ProbeSettings) -> Iterator[tuple[np.ndarray, float]]:
    """Weight (d,) and bias on raw features for each strength, from standardised ones, each from the last."""
    mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1  # a feature that never moves says nothing
    standardised = (x - mean) / spread
    model = LogisticRegression(max_iter=settings.head_iterations, warm_start=True)
    for strength in settings.head_c:
        with _blas().limit(limits=1):
            model.set_params(C=strength).fit(standardised, y)
        weight = np.ravel(model.coef_) / spread
        yield weight, float(np.ravel(model.intercept_)[0] - weight @ mean)


@functools.cache
def _blas() -> ThreadpoolController:
    """The linear algebra of a head: with several threads a small one takes four times as long."""
    return ThreadpoolController().select(user_api="blas")


def two_neurons(weight: np.ndarray, bias: float) -> dict[str, Tensor]:
    """The two-neuron head (names as in a Classifier's state) whose softmax is the logistic regression.

    Each class takes half of the difference, so that Grad-CAM works for both.
    """
    both = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    return {
        "head.weight": (both * torch.from_numpy(weight)).float(),
        "head.bias": (both[:, 0] * bias).float(),
    }
