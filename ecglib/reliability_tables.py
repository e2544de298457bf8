"""Tables and sentences of `ecglib.reliability`, ready to be read; no number: "not estimable"."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from ecglib.labels import STEMI_DEFINITIONS
from ecglib.reliability import SCORES, Forecast
from ecglib.score_tables import NOT_ESTIMABLE
from ecglib.shortcuts import KNOWN
from ecglib.style import KIND_NAMES, MODEL_NAMES, PART_NAMES, Table, model_name, outcome_name

MEASURE_NAMES = {
    "brier": "Brier score",
    "brier_skill": "Brier skill",
    "intercept": "intercept (0)",
    "slope": "slope (1)",
}
_ORDERS = {"kind": KIND_NAMES, "model": MODEL_NAMES, "part": PART_NAMES, "scores": SCORES}
FOUND = {"sensitivity": "sensitivity", "specificity": "specificity reached"}


def forecast_sentence(given: Sequence[Forecast], splits: Mapping[str, str]) -> str:
    """Which networks are judged on this page, on which ECGs, and which could not be.

    `splits` is `study.split_names`.
    """
    read = [one for one in given if one.scored]
    names = [_name(one) for one in _in_order(read)]
    lines = [f"Judged at {100 * given[0].cell.fraction:g} % of the labels: {', '.join(names) or 'none'}."]
    if read:
        counts = [
            f"{len(rows):,} ECGs {PART_NAMES[part].lower()} ({int(rows['y_true'].sum()):,} with the outcome)"
            for part in ("validation", *read[0].scored)
            for rows in [read[0].part(part)]
        ]
        lines.append(f"Predictions on split {splits[given[0].cell.split]}: {', '.join(counts)}.")
    reasons = [
        f"{_name(one)}: {one.reason or '; '.join(one.lacks)}" for one in given if one.reason or one.lacks
    ]
    if reasons:
        lines.append(f"**Not estimable**: {'. '.join(dict.fromkeys(reasons))}.")
    return " ".join(lines)


def _name(one: Forecast) -> str:
    return f"{model_name(one.cell.model)} ({KIND_NAMES[one.cell.kind]})"


def _in_order(given: Sequence[Forecast]) -> list[Forecast]:
    places = {(k, m): (i, j) for i, k in enumerate(KIND_NAMES) for j, m in enumerate(MODEL_NAMES)}
    return sorted(given, key=lambda one: places[one.cell.kind, one.cell.model])


def prevalence_sentence(
    given: Sequence[Forecast], rows: Mapping[str, np.ndarray] | None, labels: np.ndarray
) -> str:
    """How common the outcome is where the networks learn and where they are judged, beside what they predict.

    `rows` is `study.rows` of a cell of the page, `labels` 0/1 for each row of the manifest.
    """
    read = _in_order([one for one in given if one.scored])
    if rows is None or not read:
        return NOT_ESTIMABLE.capitalize() + "."
    train = labels[rows["train"]].mean()
    there = [
        f"{100 * read[0].part(part)['y_true'].mean():.1f} % in {PART_NAMES[part].lower()}"
        for part in read[0].scored
    ]
    mean = [
        f"{_name(one)} {100 * one.part('test')['y_score'].mean():.1f} %"
        for one in read
        if "test" in one.scored
    ]
    return (
        f"The outcome is in {100 * train:.1f} % of the training ECGs and {', '.join(there)}. Mean predicted "
        f"probability on internal test: {', '.join(mean)}."
    )


def calibration_table(table: pd.DataFrame) -> Table:
    """`reliability.calibration`: a row for each model, part and scores, a column a measure.

    The ECE stands beside its mean by chance, with the end that chance seldom goes beyond.
    """
    rows = {}
    for keys, own in _by(table, ["kind", "model", "part", "scores"]):
        first, measures = own.iloc[0], own.set_index("measure")
        texts = {name: _text(row) for name, row in measures.drop(index="ece").to_dict("index").items()}
        rows[(*_names(keys[:3]), SCORES[keys[3]])] = {
            **_counts(first),
            "temperature": f"{first.temperature:.2f}" if keys[3] == "scaled" else "-",
            "ECE": f"{measures.value['ece']:.3f}",
            "ECE by chance": f"{first.by_chance:.3f} (up to {first.by_chance_high:.3f})",
            **{MEASURE_NAMES[str(name)]: text for name, text in texts.items()},
        }
    return _table(rows, ["training", "model", "part", "probabilities"])


def decision_table(table: pd.DataFrame) -> Table:
    """`reliability.decisions` at three thresholds: half, once and twice the prevalence's odds.

    The gain over the better of treating all and none, as true positives per 100 ECGs.
    """
    rows: dict[tuple, dict[str, str]] = {}
    for keys, own in _by(table, ["kind", "model", "part"]):
        prevalence = own.prevalence.iloc[0]
        rows[_names(keys)] = _counts(own.iloc[0])
        for times in (0.5, 1.0, 2.0):
            odds = times * prevalence / (1 - prevalence)
            row = own.iloc[int((own.threshold - odds / (1 + odds)).abs().argmin())]
            name = {0.5: "half the odds", 1.0: "the prevalence", 2.0: "twice the odds"}[times]
            text = _text({"value": 100 * row.gain, "low": 100 * row.gain_low, "high": 100 * row.gain_high}, 2)
            rows[_names(keys)][f"gain at {name}"] = f"{text}; t = {100 * row.threshold:.1f} %"
    return _table(rows, ["training", "model", "part"])


def operating_table(table: pd.DataFrame, specificity: float) -> Table:
    """`reliability.operating_points`: sensitivity beside the specificity that was reached."""
    rows = {}
    for keys, own in _by(table, ["kind", "model", "part"]):
        first = own.iloc[0]
        rows[_names(keys)] = {
            **{FOUND[row["measure"]]: _text(row) for row in own.to_dict("records")},
            f"on validation ({specificity:g} asked)": f"{first.on_validation:.2f}",
            "threshold (%)": f"{100 * first.threshold:.3g}",
            "with / without the outcome": f"{first.n_positive:,} / {first.n_negative:,}",
        }
    return _table(rows, ["training", "model", "part"])


def subgroup_table(table: pd.DataFrame) -> Table:
    """`reliability.by_subgroup`: a row a subgroup, a column for each model, AUROC with interval."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for keys, own in _by(table, ["kind", "model"]):
        for row in own.to_dict("records"):
            texts = rows.setdefault((row["dimension"], row["group"]), {})
            texts["ECGs"], texts["with the outcome"] = f"{row['n']:,}", f"{row['n_positive']:,}"
            name = f"{model_name(keys[1])}, {'head' if keys[0] == 'head' else KIND_NAMES[keys[0]]}"
            texts[name] = _text(row, 2)
    return _table(rows, ["by", "subgroup"])


def shortcut_table(table: pd.DataFrame, outcome: str) -> Table:
    """`shortcuts.score_shortcuts`: a row for each label, a column for what is known beforehand."""
    rows = {}
    for label, own in table.groupby("label", sort=False):
        name = (
            f"definition {label}"
            if label in STEMI_DEFINITIONS and label != outcome
            else outcome_name(str(label))
        )
        name += " (this page)" if label == outcome else ""
        first = own.iloc[0]
        texts = {row["known"]: _text(row, 2) for row in own.to_dict("records")}
        counts = {"test ECGs": f"{first.n:,}", "with it": f"{first.n_positive:,}"}
        rows[name] = counts | {known: texts[known] for known in KNOWN}
    return Table(pd.DataFrame(rows).T.rename_axis("label"))


def _table(rows: Mapping[tuple[str, ...], Mapping[str, str]], names: list[str]) -> Table:
    if not rows:
        return Table({"": [NOT_ESTIMABLE]})
    return Table(pd.DataFrame(rows).T.rename_axis(names))


def _by(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Groups by the keys: kinds, models, parts and scores in the order of every page."""
    for names in itertools.product(*(_ORDERS[key] for key in keys)) if len(table) else ():
        own = table.loc[(table[keys] == list(names)).all(axis=1)]
        if len(own):
            yield names, own


def _names(keys: Sequence[str]) -> tuple[str, ...]:
    kind, model, part = keys
    return KIND_NAMES[kind], model_name(model), PART_NAMES[part]


def _counts(row: pd.Series) -> dict[str, str]:
    return {"ECGs": f"{row.n:,}", "positive": f"{row.n_positive:,}"}


def _text(row: Mapping, digits: int = 3) -> str:
    """`value (low to high)`; what does not exist is said, never a nan."""
    if not np.isfinite(row["value"]):
        return NOT_ESTIMABLE
    value = _number(row["value"], digits)
    if not np.isfinite(row["low"]):
        return f"{value} (interval {NOT_ESTIMABLE})"
    return f"{value} ({_number(row['low'], digits)} to {_number(row['high'], digits)})"


def _number(value: float, digits: int) -> str:
    """Fewer digits where the number is large: no slope is known to a thousandth of a thousand."""
    places = digits if abs(value) < 1 else 2 if abs(value) < 10 else 0
    return f"{round(value, places) + 0.0:.{places}f}"  # 0.0 takes the sign off a zero
