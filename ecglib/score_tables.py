"""Tables of scores: what each cell trained on, its score with its interval, optimism, verdicts.

Tables come as text that is ready to be read; sentences are Markdown. No number on a page is typed by hand.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd

from ecglib.claims import (
    readable,
)
from ecglib.comparisons import OPTIMISM_COLUMNS, of_first_run, optimism
from ecglib.finetune import FinetuneSettings
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings
from ecglib.splits import DRAWN_BY
from ecglib.style import (
    KIND_NAMES,
    METRIC_NAMES,
    MODEL_NAMES,
    PART_NAMES,
    Table,
    least_to_most,
    model_name,
    number_text,
    outcome_name,
)

NOT_ESTIMABLE = "not estimable"
VERDICTS_PAGE = "06_results.html#the-paper-s-claims"
GAIN_COLUMNS = ("kind", "split", "model", "fraction", *OPTIMISM_COLUMNS)


def training_table(
    cells: Sequence[Cell],
    rows_of: Callable[[Cell], Mapping[str, np.ndarray] | None],
    labels: np.ndarray,
    splits: Mapping[str, str],
) -> Table:
    """What each label fraction holds, over its draws: ECGs for training and how many have the outcome.

    `rows_of` is `study.rows`, `labels` 0/1 for each row of the manifest, `splits` `study.split_names`.
    """
    draws: dict[tuple[str, float], dict[int, Cell]] = {}
    for cell in sorted(cells):
        draws.setdefault((cell.split, cell.fraction), {})[cell.draw] = cell
    found = []
    for (split, fraction), of_draws in sorted(draws.items()):
        drawn = [rows["train"] for cell in of_draws.values() if (rows := rows_of(cell)) is not None]
        lacking = len(of_draws) - len(drawn)
        lack = f"; {lacking} {NOT_ESTIMABLE}" if drawn and lacking else ""
        counts = [_least_to_most(map(len, drawn)) + lack]
        counts.append(_least_to_most(int(labels[train].sum()) for train in drawn) + lack)
        drawn_by = DRAWN_BY[split].removesuffix("_id")
        found.append((splits[split], f"{100 * fraction:g} %", len(of_draws), drawn_by, *counts))
    columns = ["split", "labels", "draws", "drawn by", "training ECGs", "with the outcome"]
    return Table(pd.DataFrame(found, columns=pd.Index(columns)).set_index(columns[:2]))


def _least_to_most(counts: Iterable[int]) -> str:
    known = list(counts)
    return least_to_most(known) if known else NOT_ESTIMABLE


def score_table(
    scores: pd.DataFrame,
    splits: Mapping[str, str],
    metric: str,
    *,
    kind: str = "finetuned",
    protocol: str = "honest",
) -> Table:
    """The form of the paper's Suppl. Tables 1 and 2: a row for outcome, part and fraction, a column a model.

    Cells read `value (low-high)`; where a cell was run more than once, that of the first draw and seed, then
    mean, standard deviation and number of all runs. Where no number exists: "not estimable"; no other run
    takes the place of the first. `splits` is
    `study.split_names`.
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
    return _readable(table.fillna({"text": NOT_ESTIMABLE}).assign(split=table.split.map(splits)))


def _score_text(runs: pd.DataFrame) -> str:
    """The first run, or that there is none, then all where there are others."""
    first = runs.loc[of_first_run(runs)]
    texts = [f"{row.value:.2f} ({row.low:.2f}-{row.high:.2f})" for row in first.itertuples()]
    texts = texts or [NOT_ESTIMABLE]
    if len(runs) > len(first):
        texts.append(f"{mean_text(runs.value, 2)} over {count_text(runs)}")
    return "; ".join(texts)


def _readable(table: pd.DataFrame) -> Table:
    """Pivot to a column for each model, with the words that readers know, in their order."""
    words = {
        "outcome": in_order(table.outcome, outcome_name, dict.fromkeys(table.outcome)),
        "split": table.split,
        "part": in_order(table.part, PART_NAMES.get, PART_NAMES),
        "labels (%)": in_percent(table.fraction),
        "n": table.n.astype(int),
        "prevalence (%)": (100 * table.prevalence).round(1),
    }
    rows = pd.DataFrame(
        {**words, "model": in_order(table.model, model_name, MODEL_NAMES), "text": table.text}
    )
    wide = rows.pivot_table(index=list(words), columns="model", values="text", aggfunc="first", observed=True)
    return Table(wide.astype(object).fillna("-").rename_axis(columns=None))


def in_order(
    values: Iterable[Any], name: Callable[[Any], str | None], order: Iterable[Any]
) -> pd.Categorical:
    """Values by their names, which sort as `order` does."""
    return pd.Categorical([name(value) for value in values], [name(value) for value in order], ordered=True)


def step_gains(
    cells: Sequence[Cell], predictions_of: Callable[[Cell], pd.DataFrame | None], settings: ScoreSettings
) -> pd.DataFrame:
    """What the paper's choice of the step adds, in the mean over a model's fine-tuned cells at a fraction.

    One row for each split, model, fraction, part and metric: `comparisons.optimism` with these and the kind.
    Heads have no steps of training, and not all of their strengths' scores are kept with the book.
    """
    groups: dict[tuple, list[pd.DataFrame]] = {}
    for cell in cells:
        if cell.kind == "finetuned" and (predictions := predictions_of(cell)) is not None:
            groups.setdefault((cell.kind, cell.split, cell.model, cell.fraction), []).append(predictions)
    found = [
        optimism(tables, settings).assign(
            **dict(zip(("kind", "split", "model", "fraction"), key, strict=True))
        )
        for key, tables in groups.items()
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=pd.Index(GAIN_COLUMNS))


def step_gain_table(gains: pd.DataFrame, splits: Mapping[str, str], metric: str = "auroc") -> Table:
    """Both protocols' mean readings of the same cells, and the paper's minus the honest one.

    ECGs and positive ones are means over the cells, too. `splits` is `study.split_names`.
    """
    rows = gains.loc[gains.metric == metric]
    table = pd.DataFrame(
        {
            "kind": rows.kind.map(KIND_NAMES),
            "split": rows.split.map(splits),
            "part": in_order(rows.part, PART_NAMES.get, PART_NAMES),
            **count_columns(rows),
            "model": in_order(rows.model, model_name, MODEL_NAMES),
            "labels (%)": in_percent(rows.fraction),
            "cells": rows.n_cells,
            "step differs in": rows.n_moved,
            "honest": rows.honest.map("{:.3f}".format),
            "paper's": rows.paper.map("{:.3f}".format),
            "paper's minus honest": [
                interval_text(*row, digits=3) for row in rows[["value", "low", "high"]].to_numpy()
            ],
        }
    )
    by = ["kind", "split", "part", "model", "labels (%)"]
    return Table(table.set_index(by).sort_index())


def agreement_table(scores: pd.DataFrame, splits: Mapping[str, str]) -> Table:
    """The two honest intervals of the same cells: how wide they are, and how far their limits lie apart.

    `splits` is `study.split_names`.
    """
    known = scores.loc[(scores.protocol == "honest") & scores.value.notna()]
    numbers = pd.DataFrame(
        {
            "width, percentiles": known.high - known.low,
            "width, BCa": known.other_high - known.other_low,
            "lower limit, BCa's minus percentile's": known.other_low - known.low,
            "upper limit, BCa's minus percentile's": known.other_high - known.high,
        }
    )
    names = {"split": splits, "kind": KIND_NAMES, "part": PART_NAMES, "metric": METRIC_NAMES}
    keys = [known[column].map(words) for column, words in names.items()]
    by = numbers.groupby(keys, sort=False)
    return Table(pd.DataFrame({"cells": by.size()}).join(by.mean().map("{:.3f}".format)))


def in_percent(fractions: pd.Series) -> pd.Categorical:
    return in_order(fractions, lambda fraction: f"{100 * fraction:g}", sorted(set(fractions)))


def optimism_table(scores: pd.DataFrame, splits: Mapping[str, str], metric: str = "auroc") -> Table:
    """What the paper's protocol adds: its score minus the honest one, and how its intervals shrink.

    `splits` is `study.split_names`.
    """
    known = scores.loc[(scores.metric == metric) & scores.value.notna()]
    known = known.assign(
        width=known.high - known.low,
        outcome=in_order(known.outcome, outcome_name, dict.fromkeys(known.outcome)),
        split=known.split.map(splits),
        kind=in_order(known.kind, KIND_NAMES.get, KIND_NAMES),
        part=in_order(known.part, PART_NAMES.get, PART_NAMES),
    )
    keys = ["outcome", "kind", "part", "split", "fraction", "model", "draw", "seed"]
    honest, paper = (known.loc[known.protocol == p].set_index(keys) for p in ("honest", "paper"))
    ratio = honest.width / paper.width
    table = honest[["n", "n_positive"]].assign(gain=paper.value - honest.value, ratio=ratio)
    by = table.groupby(["outcome", "split", "kind", "part"], observed=True)
    summary = pd.DataFrame(
        {
            **count_columns(by.first()),
            "cells": by.size(),
            f"{METRIC_NAMES[metric]}, paper minus honest: mean": by.gain.mean().round(3),
            "largest": by.gain.max().round(3),
            "honest interval is wider by (times, median)": by.ratio.median().round(1),
        }
    )
    return Table(summary)


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
    splits: Mapping[str, str],
) -> str:
    """How long each fine-tuned cell learns, with its caps, and at how many points both protocols may look.

    `rows_of` is `study.rows`, `splits` `study.split_names`.
    """
    if not any(cell.kind == "finetuned" for cell in cells):
        return (
            "**No network is fine-tuned here**, or none was yet: what there is are heads on frozen features."
        )
    limits = [f"{settings.steps:,} steps of {settings.batch_size} ECGs"] if settings.steps else []
    limits += [f"{settings.epochs} passes over the training ECGs"] if settings.epochs else []
    sizes: dict[tuple[str, float], set[int]] = {}
    for cell in cells:
        rows = rows_of(cell) if cell.kind == "finetuned" else None
        if rows is not None:
            sizes.setdefault((cell.split, cell.fraction), set()).add(len(rows["train"]))
    told = [
        f"{_length_text(sizes_there, settings)} at {100 * fraction:g} % of {splits[split]}"
        for (split, fraction), sizes_there in sorted(sizes.items())
    ]
    return (
        f"Every network learns for at most {' and '.join(limits)}: "
        f"{'; '.join(told) or 'none is estimable'}. The paper's takes 30 passes. The "
        "steps that are scored, evenly spaced, are the epochs among which both protocols choose."
    )


def _length_text(sizes: Iterable[int], settings: FinetuneSettings) -> str:
    """Steps, passes and scored steps of training sets of these sizes."""
    steps = {n: settings.total_steps(n) for n in sizes}
    passes = [n_steps * min(settings.batch_size, n) / n for n, n_steps in steps.items()]
    points = least_to_most(len(settings.scored_steps(n)) for n in steps)
    return f"{least_to_most(steps.values())} steps ({np.mean(passes):.1f} passes, {points} scored)"


def verdict_sentence(judged: pd.DataFrame) -> str:
    """How many claims got which verdict."""
    counts = judged.verdict.value_counts()
    return (
        f"Of {len(judged)} claims: " + "; ".join(f"**{n}** {verdict}" for verdict, n in counts.items()) + "."
    )


def claims_table(
    judged: pd.DataFrame, splits: Mapping[str, str], pages: Container[str], *, tested: bool
) -> Table:
    """The judged claims for which there is a number of ours, or those for which there is none, and why.

    Each with a link to where such a number stands, where this book has it; a number whose page cannot be made
    of kept predictions was computed just above the table. `splits` is `study.split_names`, `pages`
    `study.pages`.
    """
    chosen = readable(judged.loc[judged.ours.notna() == tested], splits).set_index("claim")
    if tested:
        made = [page.partition(".")[0] in pages for page in chosen["page"]]
        chosen["page"] = chosen["page"].where(made, VERDICTS_PAGE)
    runs = ["all runs"] if (chosen["all runs"] != "").any() else []
    ours = ["ours", "cell", *runs, "verdict"] if tested else []
    return Table(chosen.loc[:, ["source", "paper", *ours, "reason", "page"]])


def count_columns(rows: pd.DataFrame) -> dict[str, Any]:
    return {"ECGs": rows.n.map("{:,.0f}".format), "positive": rows.n_positive.map("{:,.0f}".format)}


def interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    return "{} ({} to {})".format(*(number_text(number, digits) for number in (value, low, high)))


def mean_text(values: pd.Series, digits: int) -> str:
    """Mean, and standard deviation where there are several."""
    mean, spread = (number_text(number, digits) for number in values.agg(["mean", "std"]))
    return f"{mean} ± {spread}" if len(values) > 1 else mean


def count_text(runs: Sized) -> str:
    return f"{len(runs)} runs" if len(runs) > 1 else "1 run"
