"""Charts of scores: `study.scores` or the table of differences in, a Plot out; the paper's Figs. 2-4.

`splits` is `study.split_names`. Each panel says of which ECGs its scores are.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ecglib.comparisons import of_first_run
from ecglib.grid import run_name
from ecglib.style import (
    ACCENT,
    FAINT,
    INK,
    INTERVAL_NAMES,
    KIND_NAMES,
    METRIC_NAMES,
    MODEL_COLOURS,
    MODEL_MARKERS,
    PART_NAMES,
    WARM,
    WIDTH_IN,
    Plot,
    counts_text,
    model_legend,
    model_name,
    new_plot,
    outcome_name,
    styled,
)

TITLE_WIDTH = 34  # characters that fit above one of two panels
NO_SCORES = "No scores: nothing of this kind was run yet, or nothing is estimable."


@styled
def over_fractions(
    scores: pd.DataFrame,
    splits: Mapping[str, str],
    *,
    metric: str = "auroc",
    kind: str = "finetuned",
    protocol: str = "honest",
) -> Plot:
    """A score of every model over the share of labels, with intervals; one panel a split and part."""
    chosen = scores.loc[(scores.kind == kind) & (scores.protocol == protocol)]
    known = _known(chosen, metric)
    figure, axes = _panels(known, splits, "Share of the training patients (%)", METRIC_NAMES[metric])
    for ax, (_, rows) in zip(axes, _by_panel(known), strict=True):
        chance = 0.5 if metric == "auroc" else rows.prevalence.mean()
        ax.axhline(chance, color=FAINT, linestyle=":", linewidth=1)
        ax.annotate("chance", (0.3, chance), (0, 2), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="center", color="#6f6f6f", fontsize=7.5)  # fmt: skip
        _draw_models(ax, rows)
        _fraction_axis(ax, chosen.fraction)
        _mark_not_estimable(ax, chosen)
    model_legend(figure, axes)
    return figure


@styled
def differences(
    table: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> Plot:
    """How much better HeartBEiT is than each model with the same labels, over their share; above 0 it is."""
    same = table.fraction == table.reference_fraction
    known = _known(table.loc[same & (table.kind == kind)], metric)
    label = f"{METRIC_NAMES[metric]}: HeartBEiT\nminus the other model"
    return _around_zero(known, splits, label, table.fraction, MODEL_COLOURS["heartbeit"])


@styled
def optimism(
    scores: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> Plot:
    """The paper's way of choosing the step and of making intervals (open) beside the honest way (filled)."""
    known = _known(scores.loc[scores.kind == kind], metric).sort_values(["fraction", "model", "draw", "seed"])
    several = known[["draw", "seed"]].drop_duplicates().shape[0] > 1
    labels = [
        f"{model_name(row['model'])}, {100 * row['fraction']:g} %"
        + (f", {run_name(row['draw'], row['seed'])}" if several else "")
        for row in known.to_dict("records")
    ]
    known = known.assign(place=_places(known, ["fraction", "model", "draw", "seed"]), label=labels)
    known = known.assign(hollow=known.protocol == "paper")
    figure = _ladder(known, splits, metric, "Model, share of labels")
    names = ("honest: step chosen on validation", "the paper's: best step on the part itself")
    return _filled_and_hollow(figure, names)


@styled
def step_gains(
    gains: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", kind: str = "finetuned"
) -> Plot:
    """What the paper's choice of the step adds to a score, over the share of labels; 0 is no optimism."""
    known = _known(gains.loc[gains.kind == kind], metric).assign(draw=0, seed=0)  # one row, over all runs
    label = f"{METRIC_NAMES[metric]}: the paper's reading\nminus the honest one"
    return _around_zero(known, splits, label, known.fraction, FAINT)


def _around_zero(
    known: pd.DataFrame, splits: Mapping[str, str], label: str, fractions: pd.Series, colour: str
) -> Plot:
    """Differences of every model over the share of labels, with intervals; one panel a split and part."""
    figure, axes = _panels(known, splits, "Share of the training patients (%)", label)
    for ax, (_, rows) in zip(axes, _by_panel(known), strict=True):
        ax.axhline(0, color=colour, linewidth=1.2)
        _draw_models(ax, rows)
        _fraction_axis(ax, fractions)
    model_legend(figure, axes)
    return figure


@styled
def coverage(intervals: pd.DataFrame, *, n_studies: int = 60) -> Plot:
    """The interval that is used and that of the bootstrap mean in the first large simulated studies."""
    chosen = intervals.query("size == 'large' and statistic == 'score' and metric == 'auroc'")
    chosen = chosen.loc[chosen.study < n_studies]
    figure = new_plot(3.6)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, name in zip(axes, ("percentile", "of_mean"), strict=True):
        rows = chosen.loc[chosen.interval == name]
        holds = (rows.low <= rows.truth) & (rows.truth <= rows.high)
        for kind, colour in ((holds, ACCENT), (~holds, WARM)):
            ax.vlines(rows.study[kind] + 1, rows.low[kind], rows.high[kind], color=colour, linewidth=1.4)
            ax.plot(rows.study[kind] + 1, rows.value[kind], "o", color=colour, markersize=2.2)
        ax.axhline(rows.truth.iloc[0], color=INK, linewidth=0.9)
        ax.set(
            xlabel="Simulated study",
            title=f"{INTERVAL_NAMES[name]}: {holds.sum()} of {len(rows)} hold the truth",
        )
    axes[0].set_ylabel(METRIC_NAMES["auroc"])
    return figure


@styled
def forest(
    scores: pd.DataFrame, splits: Mapping[str, str], *, metric: str = "auroc", protocol: str = "honest"
) -> Plot:
    """Every model at every outcome, with intervals; one panel a split and part. Pass one label fraction."""
    known = _known(scores.loc[scores.protocol == protocol], metric)
    outcomes, models = list(dict.fromkeys(known.outcome)), list(MODEL_COLOURS)
    order = [
        outcomes.index(o) * len(models) + models.index(m)
        for o, m in zip(known.outcome, known.model, strict=True)
    ]
    known = known.assign(place=order).sort_values("place", kind="stable")
    labels = [f"{outcome_name(o)}, {model_name(m)}" for o, m in zip(known.outcome, known.model, strict=True)]
    known = known.assign(place=_places(known, ["outcome", "model"]), label=labels)
    figure = _ladder(known.assign(hollow=known.kind == "head"), splits, metric, "Outcome, model")
    return _filled_and_hollow(figure, tuple(KIND_NAMES.values()))


@styled
def probes(found: pd.DataFrame) -> Plot:
    """Linear heads on frozen features (`frozen`): a panel an outcome, a rung a network; open: all labels."""
    outcomes, models = list(dict.fromkeys(found.outcome)), list(dict.fromkeys(found.model))
    figure = new_plot(0.3 * len(models) + 1.3)
    axes = np.atleast_1d(figure.subplots(1, len(outcomes), sharey=True))
    for ax, outcome in zip(axes, outcomes, strict=True):
        for row in found.loc[found.outcome == outcome].to_dict("records"):
            few, colour = row["fraction"] < 1, MODEL_COLOURS[row["model"]]
            y = models.index(row["model"]) + (-0.15 if few else 0.15)
            ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.2)
            face = colour if few else "white"
            ax.plot(row["auroc"], y, MODEL_MARKERS[row["model"]], color=colour, markerfacecolor=face)
        ax.set(title=outcome_name(outcome), xlabel=METRIC_NAMES["auroc"], ylim=(len(models) - 0.5, -0.5))
        ax.grid(axis="x")
    axes[0].set_yticks(range(len(models)), [model_name(model) for model in models])
    axes[0].set_ylabel("Network")
    return _filled_and_hollow(figure, ("1 % of the training patients", "all of them"))


@styled
def by_layer(layers: pd.DataFrame) -> Plot:
    """Linear heads on the mean patch after each block (`frozen.Probes.by_layer`), a line a model."""
    figure = new_plot(2.9)
    ax = figure.subplots()
    for model in dict.fromkeys(layers.model):
        rows, colour = layers.loc[layers.model == model], MODEL_COLOURS[model]
        ax.fill_between(rows.layer, rows.low, rows.high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(rows.layer, rows.auroc, MODEL_MARKERS[model] + "-", color=colour, label=model_name(model))
    ax.set(xlabel="Block", ylabel=METRIC_NAMES["auroc"], xticks=layers.layer.unique())
    ax.legend()
    return figure


@styled
def trials(rows: Sequence[Mapping[str, Any]], target: float) -> Plot:
    """Short runs (`trials`): AUROC above random weights with paired intervals, and the target."""
    shown = [row for row in rows if row["trial"] != "random"]
    figure = new_plot(0.3 * len(shown) + 1.0)
    ax = figure.subplots()
    for place, row in enumerate(shown):
        ax.hlines(place, row["difference_low"], row["difference_high"], color=ACCENT, linewidth=1.2)
        ax.plot(row["difference"], place, "o", color=ACCENT)
    ax.axvline(0, color=INK, linewidth=0.9)
    ax.axvline(target, color=WARM, linestyle="--", linewidth=1)
    ax.annotate("target", (target, -0.55), (4, 0), textcoords="offset points", va="center", color=WARM)
    ax.set_yticks(range(len(shown)), [row["differs"] or "first run" for row in shown])
    ax.set(xlabel=f"{METRIC_NAMES['auroc']} minus that of random weights", ylabel="Run")
    ax.set_ylim(len(shown) - 0.5, -0.9)
    ax.grid(axis="x")
    return figure


def _ladder(table: pd.DataFrame, splits: Mapping[str, str], metric: str, ylabel: str) -> Plot:
    """A point with its interval on a rung `place` for each row; hollow points a little lower."""
    rungs = table.drop_duplicates("place")
    height = 0.22 * len(rungs) + 1.0
    figure, axes = _panels(table, splits, METRIC_NAMES[metric], ylabel, height, sharex=True)
    for ax, (_, rows) in zip(axes, _by_panel(table), strict=True):
        for row in rows.to_dict("records"):
            colour = MODEL_COLOURS[row["model"]]
            y = row["place"] + (0.17 if row["hollow"] else -0.17)
            ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.2)
            face = "white" if row["hollow"] else colour
            marker = MODEL_MARKERS[row["model"]]
            ax.plot(row["value"], y, marker, color=colour, markerfacecolor=face, markersize=4.5)
        ax.set_yticks(rungs.place, rungs.label)
        ax.set_ylim(rungs.place.max() + 0.6, -0.6)
        ax.grid(axis="x")
    return figure


def _places(table: pd.DataFrame, keys: list[str]) -> pd.Series:
    return table.groupby(keys, sort=False).ngroup()


def _filled_and_hollow(figure: Plot, names: Sequence[str]) -> Plot:
    if not figure.axes:
        return figure
    faces = (INK, "white")
    handles = [Line2D([], [], marker="o", color=INK, markerfacecolor=face, linestyle="") for face in faces]
    beside = 2 if figure.get_figwidth() == WIDTH_IN else 1  # a single panel has not the room
    figure.legend(handles, names, loc="outside upper left", ncols=beside)
    return figure


def _known(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    return scores.loc[(scores.metric == metric) & scores.value.notna()]


def _by_panel(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    splits = sorted(set(table.split))
    panels = {(s, p): table.loc[(table.split == s) & (table.part == p)] for s in splits for p in PART_NAMES}
    return [(key, rows) for key, rows in panels.items() if len(rows)]


def _panels(
    table: pd.DataFrame,
    splits: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    height: float = 3.1,
    sharex: bool = False,
) -> tuple[Plot, Sequence[Axes]]:
    """One panel for each split and part of a table of scores, two in a row; its title says of which ECGs."""
    panels = _by_panel(table)
    keys = [key for key, _ in panels]
    if not keys:
        figure = new_plot(0.4, 5.2)
        figure.text(0.02, 0.5, NO_SCORES, va="center", color=INK)
        return figure, []
    columns = min(2, len(keys))
    lines = -(-len(keys) // columns)
    figure = new_plot(height * lines, 7.5 if columns == 2 else 5.2)
    axes = list(np.ravel(figure.subplots(lines, columns, sharex=sharex, sharey=True, squeeze=False)))
    for ax, ((split, part), rows) in zip(axes, panels, strict=False):
        lines = [f"{PART_NAMES[part]}, {splits[split]}", *_of_which_ecgs(rows)]
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title("\n".join(textwrap.fill(line, TITLE_WIDTH) for line in lines))
        if ax in axes[1::columns] and columns > 1:
            ax.set_ylabel("")
            ax.tick_params(axis="y", length=0)
    for ax in axes[len(keys) :]:
        ax.set_visible(False)
    return figure, axes[: len(keys)]


def _of_which_ecgs(rows: pd.DataFrame) -> list[str]:
    """How many ECGs stand behind the scores of a panel, by outcome where there are several."""
    if "outcome" not in rows or rows.outcome.nunique() == 1:
        return [counts_text(rows.n, rows.n_positive)]
    return [
        f"{outcome_name(str(outcome))}: {counts_text(own.n, own.n_positive)}"
        for outcome, own in rows.groupby("outcome", sort=False)
    ]


def _draw_models(ax: Axes, rows: pd.DataFrame) -> None:
    """The first run of each model with its interval, moved apart a little, and every other as a faint dot.

    No mean: the limits of several runs, averaged, are no limits of their mean.
    """
    models = [model for model in MODEL_COLOURS if model in set(rows.model)]
    for place, model in enumerate(models):
        own = rows.loc[rows.model == model].sort_values("fraction")
        x = own.fraction * 1.06 ** (place - (len(models) - 1) / 2)
        first, colour = of_first_run(own), MODEL_COLOURS[model]
        ax.plot(x[~first], own.value[~first], ".", color=colour, alpha=0.5, markeredgewidth=0)
        ax.vlines(x[first], own.low[first], own.high[first], color=colour, linewidth=1)
        line = {"linestyle": "-", "linewidth": 1.2, "label": model}
        ax.plot(x[first], own.value[first], MODEL_MARKERS[model], color=colour, **line)


def _fraction_axis(ax: Axes, fractions: pd.Series) -> None:
    """A logarithmic axis with a tick at each fraction that was run."""
    ticks = sorted(set(fractions))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:g}")
    ax.set_xlim(min(ticks) / 1.5, max(ticks) * 1.4)


def _mark_not_estimable(ax: Axes, chosen: pd.DataFrame) -> None:
    """Say at which fractions no model could be trained, since a class has no patient there."""
    estimable = chosen.estimable.astype(bool)
    for fraction in sorted(set(chosen.fraction) - set(chosen.fraction[estimable])):
        ax.text(fraction, 0.5, "not\nestimable", transform=ax.get_xaxis_transform(), ha="center",
                color="#6f6f6f", fontsize=7.5)  # fmt: skip
