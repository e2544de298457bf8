"""How good predictions are: AUROC, average precision, a bootstrap over patients; two protocols read one cell.

A cell is a table of predictions (record_id, patient_id, part, step, y_true, y_score), as `finetune` and
`probe` write it. The bootstrap follows Efron and Tibshirani, An Introduction to the Bootstrap (1993), with
the patient as the unit that is drawn. All scores come from whole-number counts over the distinct scores,
sorted once, so ties are exact and every draw equals scikit-learn's score of the resampled records.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import norm

from ecglib.errors import EcglibError

METRICS = ("auroc", "auprc")
PROTOCOLS = ("paper", "honest")
SCORED_PARTS = ("test", "external")
CELL_COLUMNS = ("record_id", "patient_id", "part", "step", "y_true", "y_score")
DRAWS_AT_ONCE = 64  # bounds the memory of a bootstrap over many records
NOT_A_NUMBER = float("nan")


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


class ClassCounts(NamedTuple):
    """Records of each class by rank of score (rows) and patient (columns); J distinct positive scores."""

    positive: csr_array  # (J, n_patients): row j holds the j-th smallest score that a positive record has
    negative: csr_array  # (2 J + 1, n_patients): row 2 j + 1 is tied with it, even rows are the gaps


class Reading(NamedTuple):
    """What a protocol reads from a cell: one part at one step, or the reason why there is no such step."""

    rows: pd.DataFrame  # in order of record_id
    step: int | None
    reason: str


def auroc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Area under the ROC curve of labels (n,) in {0, 1} and scores (n,); ties count half (scikit-learn's)."""
    return _point_scores(y_true, y_score)["auroc"]


def auprc(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """Average precision of labels (n,) in {0, 1} and scores (n,): scikit-learn's sum of (R_k - R_{k-1}) P_k.

    Not the trapezoid rule of the paper's public code, which interpolates between points and is optimistic.
    """
    return _point_scores(y_true, y_score)["auprc"]


def bootstrap(
    y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, *, n_draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Draw patients with replacement; a patient drawn k times brings all records k times.

    Labels, scores and patient ids all have shape (n,). Returns one row per draw: draw, auroc, auprc, redrawn.
    A draw that lacks a class has neither score: it is drawn again, `redrawn` times, so every row holds a
    number and the interval is conditional on both classes being present. The draws depend on seed, labels and
    patients only, not on the scores or the order of the records: two models are resampled alike.
    """
    y_true, y_score = _checked(y_true, y_score)
    patients, codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    records_of_class = np.array([np.bincount(codes, y_true == label, len(patients)) for label in (0, 1)])
    weights, redrawn = draw_patients(records_of_class, n_draws, np.random.default_rng(seed))
    counts = _class_counts(y_true, y_score, codes, len(patients))
    blocks = [_scores(counts, weights[i : i + DRAWS_AT_ONCE]) for i in range(0, n_draws, DRAWS_AT_ONCE)]
    columns = dict(zip(METRICS, np.concatenate(blocks, axis=1), strict=True))
    return pd.DataFrame({"draw": np.arange(n_draws), **columns, "redrawn": redrawn})


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


def interval(values: np.ndarray, protocol: str, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of bootstrap values (n_draws,): percentiles (`honest`), or of their mean (`paper`).

    The interval of the bootstrap mean, mean +- z sd / sqrt(n_draws), shrinks with the number of draws: it
    says how well the bootstrap was run, not how well the score is known. It is here because the paper's
    intervals look like it; it need not even hold the score.
    """
    _judged_part(protocol, "test")
    tail = (1 - confidence) / 2
    if protocol == "paper":
        half = norm.ppf(1 - tail) * values.std(ddof=1) / np.sqrt(len(values))
        return float(values.mean() - half), float(values.mean() + half)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def choose_step(cell: pd.DataFrame, protocol: str, part: str, metric: str = "auroc") -> int:
    """The step whose predictions are reported, by `metric`; of equally good steps the first.

    `paper`: the best step on `part` itself, as the paper's public code selects. `honest`: the best step on
    validation, whatever `part` is. Raises EcglibError where the part looked at lacks a class.
    """
    _check_cell(cell)
    judged = _judged_part(protocol, part)
    rows = cell.loc[cell["part"] == judged]
    if lack := _lack(rows, judged):
        raise EcglibError(f"no step can be chosen: {lack}; take more patients")
    if metric not in METRICS:
        raise EcglibError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    steps = np.unique(rows["step"].to_numpy())
    scores = [_table_scores(rows.loc[rows["step"] == step])[metric] for step in steps]
    return int(steps[np.argmax(scores)])


def score_cell(cell: pd.DataFrame, protocol: str, settings: ScoreSettings) -> pd.DataFrame:
    """Score a cell's test and external parts at the step that the protocol chooses (by AUROC).

    One row per part in the cell and metric: protocol, part, metric, value, low, high, n, n_patients,
    n_positive, prevalence, step, n_redrawn (bootstrap draws repeated since they lacked a class), estimable,
    reason. Where a class is missing, `estimable` is False, `reason` says what lacks, the counts stand, and
    value, low, high and step are empty: print "not estimable", never a number.
    """
    _check_cell(cell)
    rows = []
    for part in _parts_in(cell):
        reading = _read(cell, protocol, part)
        numbers, n_redrawn = _score_numbers(reading, protocol, settings)
        tail = {**_counts(reading.rows), "step": reading.step, "n_redrawn": n_redrawn}
        tail |= {"estimable": not reading.reason, "reason": reading.reason}
        rows += [{"protocol": protocol, "part": part, "metric": m} | numbers[m] | tail for m in METRICS]
    return pd.DataFrame(rows).astype({"step": "Int64"})


def paired_difference(
    cell_a: pd.DataFrame, cell_b: pd.DataFrame, protocol: str, settings: ScoreSettings
) -> pd.DataFrame:
    """Score of `cell_a` minus score of `cell_b` on the same patients, with a paired bootstrap interval.

    Both cells must hold the same records and labels in a part; each is read at its own chosen step. One row
    per part in both cells and metric: protocol, part, metric, value, low, high (differences), value_a,
    value_b, n, n_patients, n_positive, prevalence, step_a, step_b, n_redrawn, estimable, reason. Where a
    class is missing: as in `score_cell`.
    """
    _check_cell(cell_a)
    _check_cell(cell_b)
    rows = []
    for part in [part for part in _parts_in(cell_a) if part in _parts_in(cell_b)]:
        a, b = _read(cell_a, protocol, part), _read(cell_b, protocol, part)
        reason = a.reason or b.reason
        numbers, n_redrawn = _difference_numbers(a, b, part, protocol, settings)
        tail = {**_counts(a.rows), "step_a": a.step, "step_b": b.step, "n_redrawn": n_redrawn}
        tail |= {"estimable": not reason, "reason": reason}
        rows += [{"protocol": protocol, "part": part, "metric": m} | numbers[m] | tail for m in METRICS]
    return pd.DataFrame(rows).astype({"step_a": "Int64", "step_b": "Int64"})


def _score_numbers(reading: Reading, protocol: str, settings: ScoreSettings) -> tuple[dict[str, dict], int]:
    """Value and interval by metric, and how many draws were repeated."""
    if reading.reason:
        return {m: dict.fromkeys(("value", "low", "high"), NOT_A_NUMBER) for m in METRICS}, 0
    values = _table_scores(reading.rows)
    draws = _table_bootstrap(reading.rows, settings)
    numbers = {}
    for metric in METRICS:
        low, high = interval(draws[metric].to_numpy(), protocol, settings.confidence)
        numbers[metric] = {"value": values[metric], "low": low, "high": high}
    return numbers, int(draws["redrawn"].sum())


def _difference_numbers(
    a: Reading, b: Reading, part: str, protocol: str, settings: ScoreSettings
) -> tuple[dict[str, dict], int]:
    """Differences and their intervals by metric, and how many draws were repeated."""
    known = ["record_id", "patient_id", "y_true"]
    if not np.array_equal(a.rows[known].to_numpy(), b.rows[known].to_numpy()):
        raise EcglibError(
            f"two cells differ in the records or labels of {part}: compare one outcome and split"
        )
    if a.reason or b.reason:
        names = ("value", "low", "high", "value_a", "value_b")
        return {metric: dict.fromkeys(names, NOT_A_NUMBER) for metric in METRICS}, 0
    values_a, values_b = _table_scores(a.rows), _table_scores(b.rows)
    draws_a, draws_b = _table_bootstrap(a.rows, settings), _table_bootstrap(b.rows, settings)
    numbers = {}
    for metric in METRICS:
        low, high = interval((draws_a[metric] - draws_b[metric]).to_numpy(), protocol, settings.confidence)
        value_a, value_b = values_a[metric], values_b[metric]
        numbers[metric] = {"value": value_a - value_b, "low": low, "high": high}
        numbers[metric] |= {"value_a": value_a, "value_b": value_b}
    return numbers, int(draws_a["redrawn"].sum())


def _read(cell: pd.DataFrame, protocol: str, part: str) -> Reading:
    rows = cell.loc[cell["part"] == part].sort_values(by="record_id", kind="stable")
    judged = _judged_part(protocol, part)
    if reason := _lack(cell.loc[cell["part"] == judged], judged) or _lack(rows, part):
        return Reading(rows.drop_duplicates("record_id"), None, reason)
    step = choose_step(cell, protocol, part)
    return Reading(rows.loc[rows["step"] == step], step, "")


def _judged_part(protocol: str, part: str) -> str:
    """The part on which a protocol chooses the step."""
    if protocol not in PROTOCOLS:
        raise EcglibError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return "validation" if protocol == "honest" else part


def _lack(rows: pd.DataFrame, part: str) -> str:
    present = set(rows["y_true"].unique())
    if not present:
        return f"{part} has no record"
    lacking = [name for label, name in ((1, "positive"), (0, "negative")) if label not in present]
    return f"{part} has no {lacking[0]} record" if lacking else ""


def _parts_in(cell: pd.DataFrame) -> list[str]:
    parts = [part for part in SCORED_PARTS if (cell["part"] == part).any()]
    if not parts:
        raise EcglibError(
            f"a cell holds no prediction for {' or '.join(SCORED_PARTS)}: predict at least one part"
        )
    return parts


def _counts(rows: pd.DataFrame) -> dict[str, float]:
    labels = rows["y_true"].to_numpy()
    n_patients = len(np.unique(rows["patient_id"].to_numpy().astype(str)))
    n_positive = int(labels.sum())
    return {"n": len(labels), "n_patients": n_patients, "n_positive": n_positive, "prevalence": labels.mean()}


def _table_scores(rows: pd.DataFrame) -> dict[str, float]:
    return _point_scores(rows["y_true"].to_numpy(), rows["y_score"].to_numpy())


def _table_bootstrap(rows: pd.DataFrame, settings: ScoreSettings) -> pd.DataFrame:
    columns = [rows[name].to_numpy() for name in ("y_true", "y_score", "patient_id")]
    return bootstrap(*columns, n_draws=settings.n_draws, seed=settings.seed)


def _point_scores(y_true: np.ndarray, y_score: np.ndarray) -> dict[str, float]:
    labels, scores = _checked(y_true, y_score)
    counts = _class_counts(labels, scores, np.zeros(len(labels), dtype=np.int64), 1)
    return {
        metric: float(value[0])
        for metric, value in zip(METRICS, _scores(counts, np.ones((1, 1))), strict=True)
    }


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
    """AUROC and average precision (n_draws,) under patient weights (n_draws, n_patients).

    Counts are whole numbers below 2^53 in float64, so the sums are exact; only divisions round.
    """
    positive = counts.positive @ weights.T  # (J, n_draws)
    negative = counts.negative @ weights.T  # (2 J + 1, n_draws)
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
    weights = np.empty((n_draws, n_patients))
    for row, patients in zip(weights, drawn, strict=True):
        row[:] = np.bincount(patients, minlength=n_patients)
    return weights


def _checked(y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(y_true), np.asarray(y_score)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise EcglibError(f"labels {labels.shape} and scores {scores.shape} must have one shape (n,)")
    found = np.unique(labels).tolist()
    if found != [0, 1]:
        raise EcglibError(
            f"labels must hold both 0 and 1 and nothing else, got {found[:5]}: check the outcome"
        )
    if not np.isfinite(scores).all():
        raise EcglibError(
            f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite: train again"
        )
    return labels, scores


def _check_cell(cell: pd.DataFrame) -> None:
    if missing := [name for name in CELL_COLUMNS if name not in cell.columns]:
        raise EcglibError(
            f"predictions lack the columns {', '.join(missing)}: write them with ecglib.finetune"
        )
    labels = np.unique(cell["y_true"].to_numpy()).tolist()
    if not set(labels) <= {0, 1}:
        raise EcglibError(f"y_true of a cell must be 0 or 1, got {labels[:5]}: check the outcome's labels")
    twice = cell.duplicated(["record_id", "part", "step"]).to_numpy()
    if twice.any():
        record = cell["record_id"].to_numpy()[twice][0]
        raise EcglibError(f"record {record} stands twice in one part and step of a cell: keep one row")
