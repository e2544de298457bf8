"""Two protocols read one cell: which step is reported, with which interval.

A cell is a table of predictions (record_id, patient_id, part, step, y_true, y_score), as `finetune` and
`probe` write it. `paper`: the best step on the reported part itself, with the interval of the bootstrap mean.
`honest`: the step that is best on validation, with an interval from a bootstrap over patients.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ecglib.errors import EcglibError
from ecglib.intervals import honest_interval, of_mean
from ecglib.metrics import METRICS, ScoreSettings, bootstrap, leave_one_patient_out, point_scores
from ecglib.resampling import class_of_one

PROTOCOLS = ("paper", "honest")
SCORED_PARTS = ("test", "external")
CELL_COLUMNS = ("record_id", "patient_id", "part", "step", "y_true", "y_score")
LIMITS = ("low", "high", "other_low", "other_high")
NOT_A_NUMBER = float("nan")


class Reading(NamedTuple):
    """What a protocol reads from a cell: one part at one step, or the reason why there is no such step."""

    rows: pd.DataFrame  # in order of record_id
    step: int | None
    reason: str

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, scores and patients (n,)."""
        rows = self.rows
        return rows["y_true"].to_numpy(), rows["y_score"].to_numpy(), rows["patient_id"].to_numpy()


class Resampled(NamedTuple):
    """A reading's two scores, their bootstrap draws and their jackknife; metrics in the order of METRICS."""

    values: np.ndarray  # (2,)
    draws: np.ndarray  # (2, n_draws)
    jackknife: np.ndarray  # (2, n_patients)
    n_redrawn: int  # draws repeated since they lacked a class

    def minus(self, other: "Resampled") -> "Resampled":
        """Differences under the same draws of the same patients."""
        values, draws = self.values - other.values, self.draws - other.draws
        return Resampled(values, draws, self.jackknife - other.jackknife, self.n_redrawn)


def choose_step(cell: pd.DataFrame, protocol: str, part: str, metric: str = "auroc") -> int:
    """The step whose predictions are reported, by `metric`; of equally good steps the first.

    `paper`: the best step on `part` itself, as the paper's public code selects. `honest`: the best step on
    validation, whatever `part` is. Raises EcglibError where the part looked at lacks a class.
    """
    check_cell(cell)
    judged = judged_part(protocol, part)
    rows = cell.loc[cell["part"] == judged]
    if lack := _lack(rows, judged):
        raise EcglibError(f"no step can be chosen: {lack}; take more patients")
    if metric not in METRICS:
        raise EcglibError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    steps = np.unique(rows["step"].to_numpy())
    if len(steps) == 1:  # of a head: there is no choice
        return int(steps[0])
    scores = [_score(rows.loc[rows["step"] == step], metric) for step in steps]
    return int(steps[np.argmax(scores)])


def score_cell(cell: pd.DataFrame, protocol: str, settings: ScoreSettings) -> pd.DataFrame:
    """Score a cell's test and external parts at the step that the protocol chooses (by AUROC).

    One row per part in the cell and metric: protocol, part, metric, value, low, high, other_low, other_high
    (the honest interval that is not used), n, n_patients, n_positive, prevalence, step, n_redrawn (bootstrap
    draws repeated since they lacked a class), estimable, reason. Where a class is missing, or is of one
    patient alone, `estimable` is False, `reason` says what lacks, the counts stand, and value, limits and
    step are empty: print "not estimable", never a number.
    """
    rows = []
    for part, (reading, resampled) in read_parts(cell, protocol, settings).items():
        known = {"protocol": protocol, "part": part, **counts(reading.rows), "step": reading.step}
        rows += rows_of(resampled, settings, known | {"reason": reading.reason})
    return pd.DataFrame(rows).astype({"step": "Int64"})


def score_or_lack(
    predictions: pd.DataFrame | None, lack: str, protocol: str, settings: ScoreSettings
) -> pd.DataFrame:
    """`score_cell`; without predictions one row that says why there is no score: what `lack` says."""
    if predictions is not None:
        return score_cell(predictions, protocol, settings)
    return pd.DataFrame([{"protocol": protocol, "estimable": False, "reason": lack}])


def rows_of(resampled: Resampled | None, settings: ScoreSettings, known: dict[str, Any]) -> list[dict]:
    """A row for each metric: what is `known`, the metric, value and limits; none without `resampled`."""
    n_redrawn = resampled.n_redrawn if resampled else 0
    known = known | {"n_redrawn": n_redrawn, "estimable": not known["reason"]}
    rows = []
    for i, metric in enumerate(METRICS):
        numbers = dict.fromkeys(("value", *LIMITS), NOT_A_NUMBER)
        if resampled:
            value, draws, jackknife = (float(resampled.values[i]), resampled.draws[i], resampled.jackknife[i])
            limits = _limits(value, draws, jackknife, known["protocol"], settings.confidence)
            numbers |= {"value": value} | limits
        rows.append(known | {"metric": metric} | numbers)
    return rows


def _limits(
    value: float, draws: np.ndarray, jackknife: np.ndarray, protocol: str, confidence: float
) -> dict[str, float]:
    if protocol == "honest":
        return honest_interval(value, draws, jackknife, confidence)
    return dict(zip(("low", "high"), of_mean(draws, confidence), strict=True))


def read_parts(
    cell: pd.DataFrame, protocol: str, settings: ScoreSettings
) -> dict[str, tuple[Reading, Resampled | None]]:
    """What a protocol reads from each scored part of a cell, resampled where there are both classes."""
    check_cell(cell)
    readings = {part: read(cell, protocol, part) for part in parts_in(cell)}
    return {part: (r, None if r.reason else resample(r, settings)) for part, r in readings.items()}


def read(cell: pd.DataFrame, protocol: str, part: str) -> Reading:
    """The rows of a part that a protocol reports, or why there are none."""
    rows = cell.loc[cell["part"] == part].sort_values(by="record_id", kind="stable")
    judged = judged_part(protocol, part)
    lack = _lack(cell.loc[cell["part"] == judged], judged) or _lack(rows, part)
    if reason := lack or one_patient(rows, part):
        return Reading(rows.drop_duplicates("record_id"), None, reason)
    step = choose_step(cell, protocol, part)
    return Reading(rows.loc[rows["step"] == step], step, "")


def resample(reading: Reading, settings: ScoreSettings) -> Resampled:
    """A reading's scores, and how they vary with the patients."""
    y_true, y_score, patients = reading.arrays
    numbers = [(array.tobytes(), array.dtype) for array in (y_true, y_score)]
    return _remembered(*numbers, tuple(patients), settings)


@lru_cache(maxsize=1024)  # 40 MB; both protocols often read one step, and differences read all again
def _remembered(
    labels: tuple[bytes, np.dtype],
    scores: tuple[bytes, np.dtype],
    patient_of: tuple[str, ...],
    settings: ScoreSettings,
) -> Resampled:
    y_true, y_score = np.frombuffer(*labels), np.frombuffer(*scores)
    patients = np.array(patient_of, dtype=object)
    draws = bootstrap(y_true, y_score, patients, n_draws=settings.n_draws, seed=settings.seed)
    values = point_scores(y_true, y_score)
    jackknife = leave_one_patient_out(y_true, y_score, patients)
    of_metrics = list(METRICS)
    return Resampled(
        np.array([values[metric] for metric in METRICS]),
        draws[of_metrics].to_numpy().T,
        jackknife[of_metrics].to_numpy().T,
        int(draws["redrawn"].sum()),
    )


def judged_part(protocol: str, part: str) -> str:
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


def parts_in(cell: pd.DataFrame) -> list[str]:
    """The scored parts that a cell holds."""
    parts = [part for part in SCORED_PARTS if (cell["part"] == part).any()]
    if not parts:
        raise EcglibError(
            f"a cell holds no prediction for {' or '.join(SCORED_PARTS)}: predict at least one part"
        )
    return parts


def one_patient(rows: pd.DataFrame, part: str) -> str:
    """Which class of a part is one patient's alone, in words; empty where none is: see `resampling`."""
    lone = class_of_one(rows["y_true"].to_numpy(), rows["patient_id"].to_numpy())
    return f"{part} has {lone} records of one patient alone" if lone else ""


def counts(rows: pd.DataFrame) -> dict[str, float]:
    """How many records, patients and positives there are."""
    labels = rows["y_true"].to_numpy()
    n_patients = len(np.unique(rows["patient_id"].to_numpy().astype(str)))
    n_positive = int(labels.sum())
    return {"n": len(labels), "n_patients": n_patients, "n_positive": n_positive, "prevalence": labels.mean()}


def check_cell(cell: pd.DataFrame) -> None:
    """Refuse a table that is not one of predictions."""
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


def _score(rows: pd.DataFrame, metric: str) -> float:
    return point_scores(rows["y_true"].to_numpy(), rows["y_score"].to_numpy())[metric]
