"""How good predictions are: AUROC, average precision, their bootstrap and jackknife over patients.

The bootstrap follows Efron and Tibshirani, An Introduction to the Bootstrap (1993), with the patient as the
unit that is drawn. All scores come from whole-number counts over the distinct scores, sorted once, so ties
are exact and every draw equals scikit-learn's score of the resampled records.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import rankdata
from sklearn.metrics import auc, precision_recall_curve

from ecglib.errors import EcglibError

METRICS = ("auroc", "auprc")
DRAWS_AT_ONCE = 64  # bounds the memory of a bootstrap over many records


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How scores get their intervals (Results: 95 % from 500 bootstrap draws)."""

    n_draws: int = 500  # bootstrap draws of the patients
    seed: int = 0  # seed of the bootstrap draws
    confidence: float = 0.95  # confidence of the interval, between 0 and 1

    def __post_init__(self) -> None:
        if self.n_draws < 2:
            raise EcglibError(f"n_draws must be at least 2, got {self.n_draws}")
        if not 0 < self.confidence < 1:
            raise EcglibError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if self.seed < 0:
            raise EcglibError(f"seed must be at least 0, got {self.seed}")


class ClassCounts(NamedTuple):
    """Records of each class by rank of score (rows) and patient (columns); J distinct positive scores."""

    positive: csr_array  # (J, n_patients): row j holds the j-th smallest score that a positive record has
    negative: csr_array  # (2 J + 1, n_patients): row 2 j + 1 is tied with it, even rows are the gaps


def auroc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Area under the ROC curve of labels (n,) in {0, 1} and scores (n,); ties count half (scikit-learn's)."""
    return point_scores(y_true, y_score)["auroc"]


def auprc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Average precision of labels (n,) in {0, 1} and scores (n,): scikit-learn's sum of (R_k - R_{k-1}) P_k.

    Not the trapezoid rule of the paper's public code, which interpolates where precision does not allow it.
    """
    return point_scores(y_true, y_score)["auprc"]


def trapezoid_auprc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Area under the points of the precision-recall curve joined by lines, as in the paper's public code.

    Shown for comparison only: precision is not linear between two points (Davis and Goadrich, 2006), so the
    rule is too high where many records tie.
    """
    precision, recall, _ = precision_recall_curve(*_checked(y_true, y_score))
    return float(auc(recall, precision))


def point_scores(y_true: np.ndarray, y_score: np.ndarray) -> dict[str, float]:
    """Both scores of labels (n,) in {0, 1} and scores (n,), by name."""
    drawn = _weighted_scores(y_true, [y_score], np.zeros(len(y_true), dtype=np.int64), np.ones((1, 1)))
    return {metric: float(values[0, 0]) for metric, values in zip(METRICS, drawn, strict=True)}


def bootstrap(
    y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, *, n_draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Draw patients with replacement; a patient drawn k times brings all records k times.

    Labels, scores and patient ids all have shape (n,). Returns one row per draw: draw, auroc, auprc, redrawn.
    A draw that lacks a class has neither score: it is drawn again, `redrawn` times, so every row holds a
    number and the interval is conditional on both classes being present. The draws depend on seed, labels and
    patients only, not on the scores or the order of the records: two models are resampled alike.
    """
    labels = np.asarray(y_true)
    codes, weights, redrawn = _remembered_draws(labels.tobytes(), labels.dtype, tuple(groups), n_draws, seed)
    columns = dict(zip(METRICS, _weighted_scores(y_true, [y_score], codes, weights)[:, 0], strict=True))
    return pd.DataFrame({"draw": np.arange(n_draws), **columns, "redrawn": redrawn})


def bootstrap_steps(
    y_true: np.ndarray, y_scores: np.ndarray, groups: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Scores of several sets of predictions of the same records, all under the same draws of the patients.

    Labels and patients (n,), scores (n_steps, n) -> (2, n_steps, 1 + n_draws): AUROC and average precision;
    the first column takes every patient once, the others are draws as in `bootstrap`.
    """
    codes, weights, _ = patient_draws(y_true, groups, n_draws, rng)
    everybody = np.ones((1, weights.shape[1]))
    scores = (_weighted_scores(y_true, y_scores, codes, drawn) for drawn in (everybody, weights))
    return np.concatenate(list(scores), axis=2)


@lru_cache(maxsize=8)
def _remembered_draws(
    labels: bytes, dtype: np.dtype, groups: tuple[object, ...], n_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`patient_draws`; many models are scored on the same patients."""
    y_true = np.frombuffer(labels, dtype)
    return patient_draws(y_true, np.array(groups, dtype=object), n_draws, np.random.default_rng(seed))


def patient_draws(
    y_true: np.ndarray, groups: np.ndarray, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each record's patient (n,), and what `draw_patients` gives for them."""
    patients, codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    labels = _checked_labels(y_true)
    records_of_class = np.array(
        [np.bincount(codes, labels == label, len(patients)) for label in (0, 1)], dtype=np.float32
    )
    return codes, *draw_patients(records_of_class, n_draws, rng)


def draw_patients(
    records_of_class: np.ndarray, n_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How often each draw takes each patient (n_draws, n_patients); how often a draw was repeated (n_draws,).

    `records_of_class` (2, n_patients) counts each patient's records of class 0 and 1; both classes occur.
    """
    n_patients = records_of_class.shape[1]
    weights = _multiplicities(n_patients, n_draws, rng)
    redrawn = np.zeros(n_draws, dtype=np.int64)
    while (lacking := np.flatnonzero((weights @ records_of_class.T == 0).any(axis=1))).size:
        weights[lacking] = _multiplicities(n_patients, lacking.size, rng)
        redrawn[lacking] += 1
    return weights, redrawn


def leave_one_patient_out(y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Both scores without each patient in turn, from the sorted counts: a jackknife without refits.

    Labels, scores and patient ids all have shape (n,). Returns a row for each patient in ascending order of
    the ids as text: auroc, auprc; neither is a number where the other patients lack a class.
    """
    y_true, y_score = _checked(y_true, y_score)
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    left = [np.bincount(codes, y_true != label).astype(float) for label in (0, 1)]
    n_positive, n_negative = (own.sum() - own for own in left)
    both = (n_positive > 0) & (n_negative > 0)
    pairs_won = _pairs_won_without_each(y_true, y_score, codes)
    precisions = _precisions_without_each(y_true, y_score, codes)
    scores = pd.DataFrame(
        {
            "auroc": pairs_won / np.maximum(n_positive * n_negative, 1),
            "auprc": precisions / np.maximum(n_positive, 1),
        }
    )
    scores.loc[~both] = np.nan
    return scores


def placements(y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many negatives each positive beats, how many positives beat each negative; ties count half.

    By midranks (Sun and Xu, 2014): a record's rank among all less its rank in its own class.
    """
    ranks, positive = rankdata(y_score), y_true == 1
    beats = ranks[positive] - rankdata(y_score[positive])
    return beats, positive.sum() - (ranks[~positive] - rankdata(y_score[~positive]))


def _pairs_won_without_each(y_true: np.ndarray, y_score: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Pairs of a positive and a negative that are ordered rightly, without each patient (n_patients,)."""
    positive = y_true == 1
    beats, beaten_by = placements(y_true, y_score)
    own = np.bincount(codes[positive], beats, codes.max() + 1)
    own += np.bincount(codes[~positive], beaten_by, codes.max() + 1)
    # Pairs within a patient were taken off twice. Ranked by patient first, a positive beats all negatives of
    # the patients before its own, and of its own patient those that it truly beats.
    within, _ = placements(y_true, codes * len(codes) + rankdata(y_score, "dense"))
    negatives = np.bincount(codes[~positive], minlength=codes.max() + 1)
    within -= (negatives.cumsum() - negatives)[codes[positive]]
    return beats.sum() - own + np.bincount(codes[positive], within, codes.max() + 1)


def _precisions_without_each(y_true: np.ndarray, y_score: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Sum of precision over the positives, without each patient (n_patients,).

    A patient's records part the thresholds into stretches, on each of which a fixed number of positives and
    records is taken away. For each such pair of numbers all stretches are differences of one running sum.
    """
    positive = y_true == 1
    levels, rank = np.unique(y_score[positive], return_inverse=True)
    at_level = np.bincount(rank)
    true = at_level[::-1].cumsum()[::-1]
    reach = np.searchsorted(levels, y_score, "right")  # a record is flagged at that many lowest thresholds
    flagged = np.bincount(reach, minlength=len(levels) + 1)[:0:-1].cumsum()[::-1]

    keys, ends = np.unique(codes * (len(levels) + 1) + len(levels) - reach, return_inverse=True)
    patient, end = keys // (len(levels) + 1), len(levels) - keys % (len(levels) + 1)
    found = np.bincount(ends, positive).astype(np.int64)
    n_true = _sum_within(patient, found)
    n_flagged = _sum_within(patient, np.bincount(ends))
    last = np.append(patient[1:] != patient[:-1], True)
    start = np.where(last, 0, np.append(end[1:], 0))

    change = np.zeros(len(keys))
    running = np.append(0, (at_level * true / flagged).cumsum())
    for taken in np.unique(n_flagged * (len(codes) + 1) + n_true):
        flagged_off, true_off = divmod(taken, len(codes) + 1)
        here = (n_flagged == flagged_off) & (n_true == true_off)
        precision = (true - true_off) / np.maximum(flagged - flagged_off, 1)
        reduced = np.append(0, (at_level * precision).cumsum())
        gain = reduced - running
        change[here] = gain[end[here]] - gain[start[here]] - found[here] * precision[end[here] - 1]
    return running[-1] + np.bincount(patient, change)


def _sum_within(patient: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Running sums that start anew with each patient; both (n,), patients in order."""
    sums = counts.cumsum()
    first = np.searchsorted(patient, patient)
    return sums - (sums - counts)[first]


def _weighted_scores(
    y_true: np.ndarray, y_scores: Iterable[np.ndarray], codes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Both scores (2, n_steps, n_draws) of records of patients `codes`, weights (n_draws, n_patients)."""
    n_patients = weights.shape[1]
    counts = [_class_counts(*_checked(y_true, y_score), codes, n_patients) for y_score in y_scores]
    blocks = []
    for start in range(0, len(weights), DRAWS_AT_ONCE):
        block = np.ascontiguousarray(weights[start : start + DRAWS_AT_ONCE].T, dtype=np.float64)
        blocks.append(np.stack([_scores(of_step, block) for of_step in counts], axis=1))
    return np.concatenate(blocks, axis=2)


def _class_counts(y_true: np.ndarray, y_score: np.ndarray, codes: np.ndarray, n_patients: int) -> ClassCounts:
    """Sort once: only where a record stands among the distinct scores of the positive records matters."""
    positive = y_true == 1
    levels, rank = np.unique(y_score[positive], return_inverse=True)
    others = y_score[~positive]
    gap = np.searchsorted(levels, others, "left") + np.searchsorted(levels, others, "right")
    return ClassCounts(
        csr_array((np.ones(len(rank)), (rank, codes[positive])), shape=(len(levels), n_patients)),
        csr_array((np.ones(len(gap)), (gap, codes[~positive])), shape=(2 * len(levels) + 1, n_patients)),
    )


def _scores(counts: ClassCounts, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision (n_draws,) under patient weights (n_patients, n_draws).

    Counts are whole numbers below 2^53 in float64, so the sums are exact; only divisions round.
    """
    positive = counts.positive @ weights  # (J, n_draws)
    negative = counts.negative @ weights  # (2 J + 1, n_draws)
    n_positive, n_negative = positive.sum(axis=0), negative.sum(axis=0)
    below = negative.cumsum(axis=0)[:-1:2]  # negatives that score less than each distinct positive score
    pairs_won = (positive * (below + negative[1::2] / 2)).sum(axis=0)
    found = positive[::-1].cumsum(axis=0)[::-1]  # true positives at that threshold
    flagged = found + n_negative - below
    # A threshold above every drawn record flags nothing; no positive was drawn there either, so it adds 0.
    precision = found / np.maximum(flagged, 1)
    return pairs_won / (n_positive * n_negative), (positive * precision).sum(axis=0) / n_positive


def _multiplicities(n_patients: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(0, n_patients, (n_draws, n_patients), dtype=np.int32)
    weights = np.empty((n_draws, n_patients), dtype=np.float32)  # whole numbers; half the memory to move
    for row, patients in zip(weights, drawn, strict=True):
        row[:] = np.bincount(patients, minlength=n_patients)
    return weights


def _checked(y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(y_true), np.asarray(y_score)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise EcglibError(f"labels {labels.shape} and scores {scores.shape} must have one shape (n,)")
    if not np.isfinite(scores).all():
        raise EcglibError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite: train again"
        )
    return _checked_labels(labels), scores


def _checked_labels(y_true: np.ndarray) -> np.ndarray:
    labels = np.asarray(y_true)
    found = np.unique(labels).tolist()
    if found != [0, 1]:
        raise EcglibError(
            f"labels must hold both 0 and 1 and nothing else, got {found[:5]}: check the outcome"
        )
    return labels
