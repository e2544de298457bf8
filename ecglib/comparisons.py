"""Two models, or two protocols, on the same patients: differences, tests, and how many of them there are.

Differences are resampled in pairs. The test is that of DeLong et al. (1988) by the midranks of Sun and Xu
(2014), with Obuchowski's (1997) variance for patients who have several ECGs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from ecglib.errors import EcglibError
from ecglib.intervals import percentile
from ecglib.metrics import METRICS, ScoreSettings, bootstrap_steps, placements
from ecglib.protocols import (
    NOT_A_NUMBER,
    Reading,
    Resampled,
    check_cell,
    counts,
    parts_in,
    read,
    read_parts,
    rows_of,
)

Part = tuple[Reading, Resampled | None]  # of `protocols.read_parts`
OPTIMISM_COLUMNS = (
    *("part", "metric", "value", "low", "high", "paper", "honest"),
    *("n", "n_positive", "n_cells", "n_moved"),
)
# The columns of a relative difference beside those of any number with its interval.
PERCENT = {"percent": "value", "percent_low": "low", "percent_high": "high"}
ROUNDING = 1e-12  # what is smaller is 0
FIRST_RUN = (0, 0)  # of several draws and seeds the one that is reported, fixed before any was trained


class DeLong(NamedTuple):
    """AUROC of a minus that of b, its standard error, and the two-sided p of no difference."""

    difference: float
    error: float
    p: float


def of_first_run(table: pd.DataFrame) -> pd.Series:
    """Whether each row, with `draw` and `seed`, is of the run that is reported."""
    return (table["draw"] == FIRST_RUN[0]) & (table["seed"] == FIRST_RUN[1])


def paired_difference(
    cell_a: pd.DataFrame, cell_b: pd.DataFrame, protocol: str, settings: ScoreSettings
) -> pd.DataFrame:
    """Score of `cell_a` minus score of `cell_b` on the same patients: `difference_of` their readings."""
    a, b = (read_parts(cell, protocol, settings) for cell in (cell_a, cell_b))
    return difference_of(a, b, protocol, settings)


def difference_of(
    parts_a: Mapping[str, Part], parts_b: Mapping[str, Part], protocol: str, settings: ScoreSettings
) -> pd.DataFrame:
    """Difference of two cells that a protocol has read: paired bootstrap, and DeLong's test.

    Both cells must hold the same records and labels in a part; each is read at its own chosen step. One row
    per part in both cells and metric: protocol, part, metric, value, low, high, other_low, other_high
    (differences), percent, percent_low, percent_high (of b's score, drawn anew with a's), p (AUROC only),
    value_a, value_b, n, n_patients, n_positive, prevalence, step_a, step_b, n_redrawn, estimable, reason.
    Where a class is missing: as in `score_cell`.
    """
    rows = []
    for part in [part for part in parts_a if part in parts_b]:
        a, b = parts_a[part][0], parts_b[part][0]
        known = ["record_id", "patient_id", "y_true"]
        if not np.array_equal(a.rows[known].to_numpy(), b.rows[known].to_numpy()):
            raise EcglibError(
                f"two cells differ in the records or labels of {part}: compare one outcome and split"
            )
        found = {"protocol": protocol, "part": part, **counts(a.rows), "step_a": a.step, "step_b": b.step}
        found |= {"reason": a.reason or b.reason}
        rows += _difference_rows(parts_a[part], parts_b[part], settings, found)
    return pd.DataFrame(rows).astype({"step_a": "Int64", "step_b": "Int64"})


def _difference_rows(ours: Part, theirs: Part, settings: ScoreSettings, known: dict[str, Any]) -> list[dict]:
    (a, resampled_a), (b, resampled_b) = ours, theirs
    if resampled_a is None or resampled_b is None:
        lacking = dict.fromkeys((*PERCENT, "value_a", "value_b", "p"), NOT_A_NUMBER)
        return [row | lacking for row in rows_of(None, settings, known)]
    rows = rows_of(resampled_a.minus(resampled_b), settings, known)
    relative = rows_of(_in_percent(resampled_a, resampled_b), settings, known)
    percents = [{name: row[own] for name, own in PERCENT.items()} for row in relative]
    y_true, score_a, patients = a.arrays
    tested = delong(y_true, score_a, b.arrays[1], patients).p, NOT_A_NUMBER
    columns = zip(rows, percents, resampled_a.values, resampled_b.values, tested, strict=True)
    return [
        row | percent | {"value_a": own, "value_b": others, "p": p}
        for row, percent, own, others, p in columns
    ]


def _in_percent(a: Resampled, b: Resampled) -> Resampled:
    """How far a lies above b in percent of b, in each draw of the patients; not a number where b is 0."""

    def percent(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        return 100 * (own / np.where(others == 0, np.nan, others) - 1)

    values, draws = percent(a.values, b.values), percent(a.draws, b.draws)
    return Resampled(values, draws, percent(a.jackknife, b.jackknife), a.n_redrawn)


def delong(y_true: np.ndarray, score_a: np.ndarray, score_b: np.ndarray, groups: np.ndarray) -> DeLong:
    """Test of equal AUROC of two models on the same records; labels, scores and patient ids of shape (n,).

    The variance is Obuchowski's (1997, eq. 5-7): sums over a patient's records take the place of records, and
    the classes covary through patients who have both. With one record for each patient it is DeLong's. No
    test, so no p, where a class has fewer than two patients, or where models that differ show no variance.
    """
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    positive = np.asarray(y_true) == 1
    n_positive, n_negative = positive.sum(), (~positive).sum()
    (beats_a, beaten_a), (beats_b, beaten_b) = (placements(y_true, score) for score in (score_a, score_b))
    gaps = (beats_a - beats_b) / n_negative, (beaten_a - beaten_b) / n_positive
    difference = float(gaps[0].mean())
    sums, n_patients = np.zeros((2, codes.max() + 1)), np.zeros(2)
    for i, (own, gap) in enumerate(zip((codes[positive], codes[~positive]), gaps, strict=True)):
        sums[i] = np.bincount(own, gap - difference, codes.max() + 1) / gap.size
        n_patients[i] = len(np.unique(own))
    if n_patients.min() < 2:
        return DeLong(difference, NOT_A_NUMBER, NOT_A_NUMBER)
    variance = (n_patients / (n_patients - 1) * (sums**2).sum(axis=1)).sum()
    variance += sums.shape[1] / (sums.shape[1] - 1) * 2 * (sums[0] * sums[1]).sum()
    error = float(np.sqrt(max(variance, 0)))
    return DeLong(difference, error, _two_sided(difference, error))


def _two_sided(difference: float, error: float) -> float:
    if abs(difference) < ROUNDING:
        return 1.0
    return float(2 * norm.sf(abs(difference) / error)) if error > ROUNDING else NOT_A_NUMBER


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust p values (n,) for being a family of n (Holm, 1979); what is not a number is no member."""
    adjusted = np.array(p, dtype=float)
    members = np.flatnonzero(np.isfinite(adjusted))
    order = members[np.argsort(adjusted[members], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * adjusted[order]), 1)
    return adjusted


def optimism(cells: Sequence[pd.DataFrame], settings: ScoreSettings) -> pd.DataFrame:
    """What choosing the step on the reported part adds: the paper's reading minus the honest one.

    The mean over `cells`, which are resampled together where they hold the same patients. In each draw the
    patients of validation and of the part are drawn, and both protocols choose their step again. The choice
    among drawn patients is noisier than that among the patients, so the interval reaches high; with the steps
    held fixed it would be far too narrow. One row per part and metric: part, metric, value, low, high
    (percentiles: a choice is too rough for a jackknife), paper, honest (mean readings), n, n_positive (ECGs
    of the part and those with the outcome, in the mean over the cells), n_cells, n_moved (cells in which the
    protocols choose different steps). Cells and parts that lack a class are left out.
    """
    found: dict[str, list[tuple[np.ndarray, bool]]] = {}
    sizes: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        check_cell(cell)
        for part in parts_in(cell):
            reading = read(cell, "honest", part)
            if not reading.reason:
                found.setdefault(part, []).append(_readings(cell, part, settings))
                sizes.setdefault(part, []).append((len(reading.rows), reading.rows["y_true"].sum()))
    rows = []
    for part, of_cells in found.items():
        readings, moved = zip(*of_cells, strict=True)
        for metric, paper, honest in zip(METRICS, *np.mean(readings, axis=0), strict=True):
            low, high = percentile((paper - honest)[1:], settings.confidence)
            value = paper[0] - honest[0]
            means = value, low, high, paper[0], honest[0], *np.mean(sizes[part], axis=0)
            rows.append((part, metric, *means, len(readings), sum(moved)))
    return pd.DataFrame(rows, columns=pd.Index(OPTIMISM_COLUMNS))


def _readings(cell: pd.DataFrame, part: str, settings: ScoreSettings) -> tuple[np.ndarray, bool]:
    """Scores by protocol (paper, honest), metric and draw (2, 2, 1 + n_draws), the step chosen in each.

    And whether the two choose different steps, all patients taken once.
    """
    # Validation shares no patient with a scored part: it is drawn by a seed of its own.
    by_part = {
        "validation": _steps(cell, "validation", settings, [settings.seed, 1]),
        part: _steps(cell, part, settings, settings.seed),
    }
    chosen = [by_part[judged][0].argmax(axis=0) for judged in (part, "validation")]
    draws = np.arange(settings.n_draws + 1)
    readings = np.stack([by_part[part][:, steps, draws] for steps in chosen])
    return readings, bool(chosen[0][0] != chosen[1][0])


def _steps(cell: pd.DataFrame, part: str, settings: ScoreSettings, seed: int | list[int]) -> np.ndarray:
    """Scores of a part (2 metrics, n_steps, 1 + n_draws), steps in order."""
    rows = cell.loc[cell["part"] == part]
    scores = rows.pivot(index="record_id", columns="step", values="y_score")
    scores = scores.reindex(columns=np.unique(cell["step"])).to_numpy()
    known = rows.drop_duplicates("record_id").sort_values("record_id")
    labels, patients = known["y_true"].to_numpy(), known["patient_id"].to_numpy()
    return bootstrap_steps(labels, scores.T, patients, settings.n_draws, np.random.default_rng(seed))
