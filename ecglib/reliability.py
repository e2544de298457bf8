"""Judging a study's probabilities: its cells read at the honest step, then each judgement as a long table.

All tables have the columns model, kind and part, and are empty where no part with both classes is there to be
judged. Everything is read from predictions that exist; the one thing fitted here is the temperature, on
validation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecglib.calibration import ece_by_chance, fit_temperature, measure, reliability_curve, temperature_scaled
from ecglib.errors import EcglibError
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings
from ecglib.protocols import SCORED_PARTS, choose_step, one_patient
from ecglib.resampling import spread_scores
from ecglib.subgroups import score_subgroups, subgroups
from ecglib.thresholds import at_threshold, decision_curve, threshold_at_specificity, thresholds_around

SCORES = {"y_score": "as predicted", "scaled": "temperature-scaled"}  # column of a forecast -> what it holds


@dataclass(frozen=True, kw_only=True)
class ReliabilitySettings:
    """How probabilities are judged, and for which patients."""

    label_fraction: float = 1.0  # share of the labels whose networks are judged
    n_bins: int = 10  # bins of the reliability curve, with equally many ECGs in each
    n_thresholds: int = 41  # thresholds of the decision curve, around the prevalence
    specificity: float = 0.9  # specificity on validation at which sensitivity is given
    min_positives: int = 10  # with fewer ECGs of either class a subgroup or sensitivity is not estimable
    min_ecgs: int = 25  # sites and devices with fewer ECGs are merged

    def __post_init__(self) -> None:
        """Refuse what cannot be judged, by name."""
        if not 0 < self.label_fraction <= 1:
            raise EcglibError(f"label_fraction={self.label_fraction}: it lies above 0 and up to 1; mend it")
        if not 0 < self.specificity < 1:
            raise EcglibError(f"specificity={self.specificity}: it lies between 0 and 1; mend it")
        for name, least in (("n_bins", 2), ("n_thresholds", 3), ("min_positives", 1), ("min_ecgs", 1)):
            if getattr(self, name) < least:
                raise EcglibError(f"{name}={getattr(self, name)}: at least {least} is needed; raise it")


@dataclass(frozen=True)
class Forecast:
    """One model's probabilities at the step that validation chose, or the reason why there are none.

    rows: record_id, patient_id, part, y_true, y_score and, after temperature scaling, scaled; in order of
    record_id. Parts that lack a class, or have it of one patient alone, are left out: why stands in `lacks`.
    """

    cell: Cell
    rows: pd.DataFrame
    temperature: float
    reason: str = ""
    lacks: tuple[str, ...] = ()

    def part(self, name: str) -> pd.DataFrame:
        """Rows of one part."""
        return self.rows.loc[self.rows["part"] == name]

    @property
    def scored(self) -> list[str]:
        """The parts of test and external that are there."""
        return [part for part in SCORED_PARTS if (self.rows["part"] == part).any()]


def forecasts(
    cells: Sequence[Cell],
    predictions_of: Callable[[Cell], pd.DataFrame | None],
    lack_of: Callable[[Cell], str],
    settings: ReliabilitySettings,
) -> list[Forecast]:
    """Read every model at the label fraction of the settings: the first split, draw and seed.

    `cells` is `study.grid(outcome)`, `predictions_of` `study.predictions`, and `lack_of` `study.lack`, which
    says why a cell has no predictions. Raises EcglibError for a fraction that no cell has.
    """
    chosen = [
        cell
        for cell in cells
        if cell.fraction == settings.label_fraction
        and (cell.split, cell.draw, cell.seed) == (cells[0].split, 0, 0)
    ]
    if not chosen:
        known = ", ".join(f"{fraction:g}" for fraction in sorted({cell.fraction for cell in cells}))
        raise EcglibError(f"label_fraction={settings.label_fraction:g}: no cell has it; take one of {known}")
    found = [(cell, predictions_of(cell)) for cell in chosen]
    return [_none(cell, lack_of(cell)) if table is None else _read(cell, table) for cell, table in found]


def _read(cell: Cell, predictions: pd.DataFrame) -> Forecast:
    reasons = {part: _unscored(rows, str(part)) for part, rows in predictions.groupby("part")}
    whole = [part for part, reason in reasons.items() if not reason]
    lacks = tuple(filter(None, reasons.values()))
    if "validation" not in whole:
        return _none(cell, "validation lacks a class, so no step can be chosen", lacks)
    step = choose_step(predictions, "honest", "validation")
    kept = (predictions["step"] == step) & predictions["part"].isin(whole)
    rows = predictions.loc[kept].sort_values("record_id", kind="stable").reset_index(drop=True)
    known = rows.loc[rows["part"] == "validation"]
    temperature = fit_temperature(known["y_true"].to_numpy(), known["y_score"].to_numpy())
    scaled = temperature_scaled(rows["y_score"].to_numpy(), temperature)
    return Forecast(cell, rows.assign(scaled=scaled), temperature, "", lacks)


def _unscored(rows: pd.DataFrame, part: str) -> str:
    """Why a part is left out; empty where it is not."""
    if rows["y_true"].nunique() < 2:
        return f"{part} lacks a class"
    return one_patient(rows, part) if part in SCORED_PARTS else ""


def _none(cell: Cell, reason: str, lacks: tuple[str, ...] = ()) -> Forecast:
    return Forecast(cell, pd.DataFrame({"part": pd.Series(dtype=object)}), np.nan, reason, lacks)


def _each(given: Sequence[Forecast], *, parts: Sequence[str] = SCORED_PARTS) -> Iterator[tuple]:
    """Columns that name the model and part, the forecast, and that part's labels and patients."""
    for one in given:
        for part in (part for part in one.scored if part in parts):
            rows = one.part(part)
            names = {"model": one.cell.model, "kind": one.cell.kind, "part": part}
            yield names, one, rows, rows["y_true"].to_numpy(), rows["patient_id"].to_numpy()


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def discrimination(given: Sequence[Forecast], settings: ScoreSettings) -> pd.DataFrame:
    """AUROC and average precision: one row a model, part and metric, with value, low, high, prevalence."""
    tables = []
    for names, _, rows, y_true, patients in _each(given):
        scored = spread_scores(y_true, rows["y_score"].to_numpy(), patients, settings)
        found = [{"metric": metric, **numbers} for metric, numbers in scored.items()]
        tables.append(pd.DataFrame(found).assign(prevalence=y_true.mean(), n=len(rows), **names))
    return _joined(tables)


def calibration(given: Sequence[Forecast], own: ReliabilitySettings, settings: ScoreSettings) -> pd.DataFrame:
    """The measures of `calibration.measure` before and after scaling: one row a model, part, scores, measure.

    `scores` is a key of SCORES; `by_chance` the mean ECE that true probabilities would have there, and
    `by_chance_high` what it stays below in that share of the draws which `confidence` names.
    """
    tables = []
    for names, one, rows, y_true, patients in _each(given):
        for column in SCORES:
            y_score = rows[column].to_numpy()
            table = measure(y_true, y_score, patients, own.n_bins, settings)
            chance = ece_by_chance(y_score, patients, own.n_bins, settings)
            table = table.assign(scores=column, by_chance=chance.mean(), temperature=one.temperature)
            table["by_chance_high"] = np.quantile(chance, settings.confidence)
            tables.append(table.assign(n=len(rows), n_positive=int(y_true.sum()), **names))
    return _joined(tables)


def curves(given: Sequence[Forecast], own: ReliabilitySettings, settings: ScoreSettings) -> pd.DataFrame:
    """Reliability curves on internal test, before and after scaling: one row a model, scores and bin."""
    tables = [
        reliability_curve(y_true, rows[column].to_numpy(), patients, own.n_bins, settings.confidence).assign(
            scores=column, **names
        )
        for names, _, rows, y_true, patients in _each(given, parts=("test",))
        for column in SCORES
    ]
    return _joined(tables)


def decisions(given: Sequence[Forecast], own: ReliabilitySettings, settings: ScoreSettings) -> pd.DataFrame:
    """Decision curves of the scaled probabilities, and the prevalence: a row a model, part and threshold."""
    tables = []
    for names, _, rows, y_true, patients in _each(given):
        thresholds = thresholds_around(float(y_true.mean()), own.n_thresholds)
        table = decision_curve(y_true, rows["scaled"].to_numpy(), patients, thresholds, settings)
        tables.append(table.assign(prevalence=y_true.mean(), **names))
    return _joined(tables)


def operating_points(
    given: Sequence[Forecast], own: ReliabilitySettings, settings: ScoreSettings
) -> pd.DataFrame:
    """Sensitivity and specificity at the threshold chosen on validation: a row a model, part and measure."""
    tables = []
    for names, one, rows, y_true, patients in _each(given):
        known = one.part("validation")
        chosen_on = known["y_true"].to_numpy(), known["y_score"].to_numpy()
        threshold = threshold_at_specificity(*chosen_on, own.specificity)
        y_score = rows["y_score"].to_numpy()
        table = at_threshold(y_true, y_score, patients, threshold, own.min_positives, settings)
        reached = float((chosen_on[1][chosen_on[0] == 0] <= threshold).mean())
        table = table.assign(threshold=threshold, on_validation=reached, n_positive=int(y_true.sum()))
        tables.append(table.assign(n_negative=len(rows) - int(y_true.sum()), **names))
    return _joined(tables)


def by_subgroup(
    given: Sequence[Forecast], manifest: pd.DataFrame, own: ReliabilitySettings, settings: ScoreSettings
) -> pd.DataFrame:
    """AUROC in the subgroups of internal test: `subgroups.score_subgroups` for each model.

    `manifest` is `study.manifest`.
    """
    known = manifest.set_index("record_id")
    tables = []
    for names, _, rows, _, _ in _each(given, parts=("test",)):
        groups = subgroups(known.loc[rows["record_id"]], own.min_ecgs).reset_index(drop=True)
        scores = score_subgroups(rows.reset_index(drop=True), groups, own.min_positives, settings)
        tables.append(scores.assign(**names))
    return _joined(tables)
