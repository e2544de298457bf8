"""Cells of a grid in pairs: HeartBEiT and each other model, a fine-tuned model and a head on its features."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import pandas as pd

from ecglib.comparisons import PERCENT, Part, difference_of
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings, point_scores
from ecglib.protocols import read, read_parts
from ecglib.style import model_name

Pair = tuple[Cell, Cell]
PROTOCOL = "honest"
FEWER_LABELS = (0.1, 1.0)  # HeartBEiT's share of the labels and the other's (Discussion: a tenth does)
DIFFERENCE_COLUMNS = (
    *("outcome", "model", "kind", "split", "fraction", "draw", "seed", "reference_fraction"),
    *("protocol", "part", "metric", "value", "low", "high", "other_low", "other_high", *PERCENT, "p"),
    *("value_a", "value_b", "on_validation", "n", "n_patients", "n_positive", "estimable", "reason"),
)


def against_others(cells: Sequence[Cell]) -> list[Pair]:
    """Cells of HeartBEiT, each with those of another model: the same labels, or FEWER_LABELS."""

    def comparable(ours: Cell, theirs: Cell) -> bool:
        alike = all(getattr(ours, n) == getattr(theirs, n) for n in ("outcome", "kind", "split", "seed"))
        same_draw = (ours.fraction, ours.draw) == (theirs.fraction, theirs.draw)
        return alike and (same_draw or (ours.fraction, theirs.fraction) == FEWER_LABELS)

    ours = [cell for cell in cells if cell.model == "heartbeit"]
    others = [cell for cell in cells if cell.model != "heartbeit"]
    return [(a, b) for a, b in itertools.product(ours, others) if comparable(a, b)]


def against_heads(cells: Sequence[Cell]) -> list[Pair]:
    """Fine-tuned cells, each with that of a linear head on the model's frozen features; the same labels."""
    heads = {replace(cell, kind="finetuned"): cell for cell in cells if cell.kind == "head"}
    return [(cell, heads[cell]) for cell in cells if cell in heads]


def differences(
    pairs: Sequence[Pair],
    predictions_of: Callable[[Cell], pd.DataFrame | None],
    settings: ScoreSettings,
    *,
    lack_of: Callable[[Cell], str] = lambda _: "no predictions",
) -> pd.DataFrame:
    """The first cell of each pair minus the second on the same patients, as `honest`, by paired bootstrap.

    One row for each pair, part and metric: `comparisons.paired_difference` with the columns of the first cell
    but the second's `model`, and of the second its `reference_fraction` and `on_validation`, its score there.
    `predictions_of` is `study.predictions`, `lack_of` `study.lack`. A pair without predictions has rows
    without numbers, whose `reason` says what lacks; one row, where no pair has any.
    """

    @lru_cache(maxsize=32)  # a cell may meet several others, one after the other
    def read_of(cell: Cell) -> tuple[Mapping[str, Part], Mapping[str, float]] | None:
        predictions = predictions_of(cell)
        if predictions is None:
            return None
        return read_parts(predictions, PROTOCOL, settings), _on_validation(predictions)

    found, lacking = [], []
    for ours, theirs in pairs:
        a, b = read_of(ours), read_of(theirs)
        columns = asdict(replace(ours, model=theirs.model)) | {"reference_fraction": theirs.fraction}
        if a is None or b is None:
            cell = ours if a is None else theirs
            reason = f"{model_name(cell.model)}: {lack_of(cell)}"
            lacking.append(columns | {"protocol": PROTOCOL, "estimable": False, "reason": reason})
            continue
        table = difference_of(a[0], b[0], PROTOCOL, settings).assign(**columns)
        found.append(table.assign(on_validation=table.metric.map(b[1])))
    if not found:
        return pd.DataFrame(lacking, columns=pd.Index(DIFFERENCE_COLUMNS))
    known = pd.concat(found, ignore_index=True)
    return pd.concat([known, _of_each_part(lacking, known)], ignore_index=True) if lacking else known


def _of_each_part(lacking: Sequence[Mapping[str, Any]], known: pd.DataFrame) -> pd.DataFrame:
    """What lacks, once for each part and metric that others of its outcome and split have."""
    place = ["outcome", "split", "part", "metric"]
    sizes = known.drop_duplicates(place).loc[:, [*place, "n", "n_patients", "n_positive"]]
    return pd.DataFrame(lacking).merge(sizes, how="left", on=place[:2])


def _on_validation(predictions: pd.DataFrame) -> dict[str, float]:
    """Both scores on validation at the step that is best there; none where a class lacks."""
    reading = read(predictions, PROTOCOL, "validation")
    return {} if reading.reason else point_scores(*reading.arrays[:2])
