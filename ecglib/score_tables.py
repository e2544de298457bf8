"""Tables of scores: what each cell trained on, its score with its interval, differences, optimism, verdicts.

Tables come as text that is ready to be read; sentences are Markdown. No number on a page is typed by hand.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from ecglib.claims import readable
from ecglib.finetune import FinetuneSettings
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings, paired_difference
from ecglib.splits import DRAWN_BY
from ecglib.style import KIND_NAMES, METRIC_NAMES, MODEL_NAMES, PART_NAMES, Table, model_name, outcome_name

NOT_ESTIMABLE = "not estimable"
DIFFERENCE_COLUMNS = (
    *("outcome", "model", "kind", "split", "fraction", "draw", "seed", "reference_fraction"),
    *("protocol", "part", "metric", "value", "low", "high", "value_a", "value_b", "estimable", "reason"),
)


def training_table(
    cells: Sequence[Cell], rows_of: Callable[[Cell], Mapping[str, np.ndarray] | None], labels: np.ndarray
) -> Table:
    """What each label fraction holds: ECGs for training and how many have the outcome.

    `rows_of` is `study.rows`, `labels` 0/1 for each row of the manifest.
    """
    draws = sorted({(cell.split, cell.fraction, cell.draw): cell for cell in cells}.items())
    found = []
    for (split, fraction, draw), cell in draws:
        rows = rows_of(cell)
        train = np.array([], int) if rows is None else rows["train"]
        counts = [NOT_ESTIMABLE] * 2 if rows is None else [f"{len(train):,}", f"{labels[train].sum():,}"]
        drawn_by = DRAWN_BY[split].removesuffix("_id")
        found.append((split, f"{100 * fraction:g} %", draw, drawn_by, *counts))
    columns = ["split", "labels", "draw", "drawn by", "training ECGs", "with the outcome"]
    return Table(pd.DataFrame(found, columns=pd.Index(columns)).set_index(columns[:3]))


def differences(
    cells: Sequence[Cell],
    predictions_of: Callable[[Cell], pd.DataFrame | None],
    settings: ScoreSettings,
    *,
    protocol: str = "honest",
    also: Sequence[tuple[float, float]] = (),
) -> pd.DataFrame:
    """HeartBEiT minus each other model on the same patients, by paired bootstrap.

    Both have the same label fraction, or a pair of fractions in `also`: HeartBEiT's and the other's. One row
    for each pair of cells, part and metric: `metrics.paired_difference` with the columns of the cell, whose
    `fraction` is HeartBEiT's, and `reference_fraction`. `predictions_of` is `study.predictions`. What is not
    estimable has no row.
    """
    found = []
    for ours, theirs in _pairs(cells, also):
        a, b = predictions_of(ours), predictions_of(theirs)
        if a is not None and b is not None:
            columns = asdict(replace(ours, model=theirs.model)) | {"reference_fraction": theirs.fraction}
            found.append(paired_difference(a, b, protocol, settings).assign(**columns))
    return (
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=pd.Index(DIFFERENCE_COLUMNS))
    )


def _pairs(cells: Sequence[Cell], also: Sequence[tuple[float, float]]) -> list[tuple[Cell, Cell]]:
    """Cells of HeartBEiT and of another model that may be compared."""

    def comparable(ours: Cell, theirs: Cell) -> bool:
        alike = all(getattr(ours, n) == getattr(theirs, n) for n in ("outcome", "kind", "split", "seed"))
        same_draw = (ours.fraction, ours.draw) == (theirs.fraction, theirs.draw)
        return alike and (same_draw or (ours.fraction, theirs.fraction) in also)

    ours = [cell for cell in cells if cell.model == "heartbeit"]
    others = [cell for cell in cells if cell.model != "heartbeit"]
    return [(a, b) for a, b in itertools.product(ours, others) if comparable(a, b)]


def score_table(
    scores: pd.DataFrame, metric: str, *, kind: str = "finetuned", protocol: str = "honest"
) -> Table:
    """The form of the paper's Suppl. Tables 1 and 2: a row for outcome, part and fraction, a column a model.

    Cells read `value (low-high)`; where a cell was run more than once, mean and mean interval, the standard
    deviation over the runs and their number. Where no number exists: "not estimable".
    """
    chosen = scores.loc[(scores.protocol == protocol) & (scores.kind == kind)]
    known = chosen.loc[(chosen.metric == metric) & chosen.value.notna()]
    keys = ["outcome", "split", "fraction", "model"]
    runs = known.groupby([*keys, "part"])
    texts = pd.DataFrame({"text": [_score_text(cells) for _, cells in runs]}, index=runs.size().index)
    sizes = known.groupby(["outcome", "split", "part"]).first().reset_index()
    wanted = chosen.drop_duplicates(keys).loc[:, keys]
    wanted = wanted.merge(
        sizes.loc[:, ["outcome", "split", "part", "n", "prevalence"]], on=["outcome", "split"]
    )
    table = wanted.merge(texts.reset_index(), how="left", on=[*keys, "part"])
    return _readable(table.fillna({"text": NOT_ESTIMABLE}))


def _score_text(runs: pd.DataFrame) -> str:
    text = f"{runs.value.mean():.2f} ({runs.low.mean():.2f}-{runs.high.mean():.2f})"
    return text if len(runs) == 1 else f"{text} ± {runs.value.std():.2f}, {len(runs)} runs"


def _readable(table: pd.DataFrame) -> Table:
    """Pivot to a column for each model, with the words that readers know, in their order."""
    fractions = sorted(set(table.fraction))
    words = {
        "outcome": _in_order(table.outcome, outcome_name, dict.fromkeys(table.outcome)),
        "split": table.split,
        "part": _in_order(table.part, PART_NAMES.get, PART_NAMES),
        "labels (%)": _in_order(table.fraction, lambda fraction: f"{100 * fraction:g}", fractions),
        "n": table.n.astype(int),
        "prevalence (%)": (100 * table.prevalence).round(1),
    }
    rows = pd.DataFrame(
        {**words, "model": _in_order(table.model, model_name, MODEL_NAMES), "text": table.text}
    )
    wide = rows.pivot_table(index=list(words), columns="model", values="text", aggfunc="first", observed=True)
    return Table(wide.astype(object).fillna("-").rename_axis(columns=None))


def _in_order(
    values: Iterable[Any], name: Callable[[Any], str | None], order: Iterable[Any]
) -> pd.Categorical:
    """Values by their names, which sort as `order` does."""
    return pd.Categorical([name(value) for value in values], [name(value) for value in order], ordered=True)


def optimism_table(scores: pd.DataFrame, metric: str = "auroc") -> Table:
    """What the paper's protocol adds: its score minus the honest one, and how its intervals shrink."""
    known = scores.loc[(scores.metric == metric) & scores.value.notna()].assign(
        width=lambda s: s.high - s.low
    )
    keys = ["outcome", "kind", "part", "split", "fraction", "model", "draw", "seed"]
    honest, paper = (known.loc[known.protocol == p].set_index(keys) for p in ("honest", "paper"))
    table = pd.DataFrame({"gain": paper.value - honest.value, "ratio": honest.width / paper.width})
    by = table.groupby(["kind", "part"])
    summary = pd.DataFrame(
        {
            "cells": by.size(),
            f"{METRIC_NAMES[metric]}, paper minus honest: mean": by.gain.mean().round(3),
            "largest": by.gain.max().round(3),
            "honest interval is wider by (times, median)": by.ratio.median().round(1),
        }
    )
    return Table(summary.rename(index=KIND_NAMES | PART_NAMES))


def not_estimable_sentence(scores: pd.DataFrame) -> str:
    """Name the cells without a number and why there is none, or say that there are none."""
    lacking = scores.loc[~scores.estimable.astype(bool)]
    if lacking.empty:
        return "Every cell is estimable: both classes have at least one patient in each fraction."
    names = []
    for row in lacking.to_dict("records"):
        whose = f", {model_name(row['model'])}, draw {row['draw']}" if "unstable" in row["reason"] else ""
        names.append(f"{_place(row)}{whose} ({row['reason']})")
    return f"**Not estimable**: {'; '.join(dict.fromkeys(names))}."


def _place(row: Mapping[str, Any]) -> str:
    return f"{outcome_name(row['outcome'])} at {100 * row['fraction']:g} %, {KIND_NAMES[row['kind']]}"


def length_sentence(
    cells: Sequence[Cell],
    rows_of: Callable[[Cell], Mapping[str, np.ndarray] | None],
    settings: FinetuneSettings,
) -> str:
    """How long each fine-tuned cell learns, with its caps; `rows_of` is `study.rows`."""
    limits = [f"{settings.steps:,} steps of {settings.batch_size} ECGs"] if settings.steps else []
    limits += [f"{settings.epochs} passes over the training ECGs"] if settings.epochs else []
    lengths = {}
    for cell in cells:
        rows = rows_of(cell) if cell.kind == "finetuned" else None
        if rows is not None:
            n = len(rows["train"])
            steps, batch = settings.total_steps(n), min(settings.batch_size, n)
            words = f"{steps:,} steps ({steps * batch / n:.1f} passes) at {100 * cell.fraction:g} %"
            lengths.setdefault((cell.split, cell.fraction), f"{words} of {cell.split}")
    told = "; ".join(text for _, text in sorted(lengths.items())) or "no cell is estimable"
    return f"Every network learns for at most {' and '.join(limits)}: {told}. The paper's takes 30 passes."


def verdict_sentence(judged: pd.DataFrame) -> str:
    """How many claims got which verdict."""
    counts = judged.verdict.value_counts()
    return (
        f"Of {len(judged)} claims: " + "; ".join(f"**{n}** {verdict}" for verdict, n in counts.items()) + "."
    )


def claims_table(judged: pd.DataFrame, *, tested: bool) -> Table:
    """The judged claims for which there is a number of ours, or those for which there is none, and why."""
    chosen = judged.loc[judged.ours.notna() == tested]
    columns = (
        ["source", "paper", "ours", "n", "verdict", "reason"] if tested else ["source", "paper", "reason"]
    )
    return Table(readable(chosen).set_index("claim").loc[:, columns])
