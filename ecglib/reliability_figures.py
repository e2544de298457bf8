"""Charts of `ecglib.reliability`: table or forecasts in, a Plot out; the paper's Suppl. Figs. 2-6."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ParamSpec

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from sklearn.metrics import precision_recall_curve, roc_curve

from ecglib.reliability import SCORES, Forecast
from ecglib.style import (
    FAINT,
    INK,
    KIND_NAMES,
    MODEL_COLOURS,
    MODEL_MARKERS,
    PART_NAMES,
    Plot,
    counts_text,
    hide_axes,
    model_legend,
    model_name,
    new_plot,
    styled,
)

GREY = "#6f6f6f"
P = ParamSpec("P")


def _estimable(plot: Callable[P, Plot]) -> Callable[P, Plot]:
    """A plot in the book's style that says so where a table which it needs is empty."""

    @functools.wraps(plot)
    def run(*args: P.args, **kwargs: P.kwargs) -> Plot:
        if not any(isinstance(table, pd.DataFrame) and table.empty for table in args):
            return plot(*args, **kwargs)
        figure = new_plot(0.6)
        ax = figure.subplots()
        hide_axes(ax)
        ax.set_title("Nothing is estimable here")
        return figure

    return styled(run)


@_estimable
def roc(given: Sequence[Forecast], discrimination: pd.DataFrame) -> Plot:
    """ROC curves of all models, a panel for each part and kind; AUROC with interval in the legend."""

    def draw(ax: Axes, y_true: np.ndarray, y_score: np.ndarray, look: dict) -> None:
        false_positives, found, _ = roc_curve(y_true, y_score)
        ax.plot(false_positives, found, **look)

    figure = _curves(given, discrimination, "auroc", draw, "1 - specificity", "Sensitivity")
    for ax in figure.axes:
        ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
        ax.legend(loc="lower right", fontsize=7.5)
    return figure


@_estimable
def precision_recall(given: Sequence[Forecast], discrimination: pd.DataFrame) -> Plot:
    """Precision over recall, as steps; average precision with interval in the legend; dotted: prevalence."""

    def draw(ax: Axes, y_true: np.ndarray, y_score: np.ndarray, look: dict) -> None:
        precision, recall, _ = precision_recall_curve(y_true, y_score)
        precision[-1] = precision[-2]  # scikit-learn ends every curve at 1, where nothing was flagged
        ax.plot(recall, precision, drawstyle="steps-post", **look)
        ax.axhline(y_true.mean(), color=FAINT, linestyle=":", linewidth=1)

    figure = _curves(given, discrimination, "auprc", draw, "Recall (sensitivity)", "Precision")
    for ax in figure.axes:  # every corner of the panel may hold a curve
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.1 - 0.06 * bool(ax.get_xlabel())), fontsize=7.5)
    return figure


def _curves(
    given: Sequence[Forecast],
    discrimination: pd.DataFrame,
    metric: str,
    draw: Callable[[Axes, np.ndarray, np.ndarray, dict], None],
    xlabel: str,
    ylabel: str,
) -> Plot:
    scores = discrimination.loc[discrimination.metric == metric].set_index(["kind", "part", "model"])
    figure, panels = _panels(discrimination, xlabel, ylabel, 3.5)
    for ax, kind, part in panels:
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
        for one in _in_order(given, kind, part):
            score, rows = scores.loc[(kind, part, one.cell.model)], one.part(part)
            interval = f"{score.low:.2f}-{score.high:.2f}" if np.isfinite(score.low) else "no interval"
            label = f"{model_name(one.cell.model)} {score.value:.2f} ({interval})"
            look = {"color": MODEL_COLOURS[one.cell.model], "label": label, "linewidth": 1.2}
            draw(ax, rows.y_true.to_numpy(), rows.y_score.to_numpy(), look)
    return figure


def _in_order(given: Sequence[Forecast], kind: str, part: str) -> Iterator[Forecast]:
    for model in MODEL_COLOURS:
        yield from (f for f in given if (f.cell.model, f.cell.kind) == (model, kind) and part in f.scored)


@_estimable
def reliability(curves: pd.DataFrame) -> Plot:
    """Observed over predicted share in each bin, a panel a model; open: as predicted, filled: scaled."""
    kinds, models = _present(curves.kind, KIND_NAMES), _present(curves.model, MODEL_COLOURS)
    figure = new_plot(2.2 * len(kinds) + 0.5, 7.5 if len(models) > 2 else 5.0)
    axes = figure.subplots(len(kinds), len(models), sharex=True, sharey=True, squeeze=False)
    top = min(1.03, 1.05 * max(curves.high.max(), curves.predicted.max()))
    for line, kind in enumerate(kinds):
        for ax, model in zip(axes[line], models, strict=True):
            own = curves.loc[(curves.model == model) & (curves.kind == kind)]
            if own.empty:
                ax.set_visible(False)
                continue
            ax.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
            for column in SCORES:
                _draw_bins(ax, own.loc[own.scores == column], MODEL_COLOURS[model], column == "scaled")
            counts = own.loc[own.scores == own.scores.iloc[0], ["n", "n_positive"]].sum()
            title = (
                f"{model_name(model)},\n{KIND_NAMES[kind]}:\n{counts_text([counts.n], [counts.n_positive])}"
            )
            ax.set_title(title, fontsize=8)
            ax.set(xlim=(-0.03 * top, top), ylim=(-0.03 * top, top), box_aspect=1)
    figure.supxlabel("Predicted probability (mean of the bin)", fontsize=9)
    figure.supylabel("Share with the outcome", fontsize=9)
    faces = ("white", INK)
    handles = [Line2D([], [], marker="o", color=INK, markerfacecolor=face, linewidth=0.8) for face in faces]
    figure.legend(handles, list(SCORES.values()), loc="outside upper left", ncols=2)
    return figure


def _present(column: pd.Series, order: Iterable[str]) -> list[str]:
    return [name for name in order if name in set(column)]


def _draw_bins(ax: Axes, bins: pd.DataFrame, colour: str, filled: bool) -> None:
    strength = 1.0 if filled else 0.55
    ax.vlines(bins.predicted, bins.low, bins.high, color=colour, linewidth=1, alpha=strength)
    face = colour if filled else "white"
    ax.plot(bins.predicted, bins.observed, "o-", color=colour, markerfacecolor=face, markersize=3.5,
            linewidth=0.8, alpha=strength)  # fmt: skip


@_estimable
def decisions(table: pd.DataFrame) -> Plot:
    """Net benefit over the threshold, with treating all and none; a panel for each part and kind.

    The band is the interval of HeartBEiT, or of the first model where it was not run.
    """
    figure, panels = _panels(
        table, "Threshold probability (%)", "Net benefit\n(true positives per 100 ECGs)", 3.0
    )
    for ax, kind, part in panels:
        rows = table.loc[(table.kind == kind) & (table.part == part)]
        models = _present(rows.model, MODEL_COLOURS)
        for model in models:
            own = rows.loc[rows.model == model]
            ax.plot(100 * own.threshold, 100 * own.value, color=MODEL_COLOURS[model], label=model)
        one = rows.loc[rows.model == models[0]]
        ax.fill_between(100 * one.threshold, 100 * one.low, 100 * one.high, color=MODEL_COLOURS[models[0]],
                        alpha=0.12, linewidth=0)  # fmt: skip
        ax.plot(100 * one.threshold, 100 * one.treat_all, color=INK, linestyle="--", linewidth=1)
        ax.axhline(0, color=INK, linewidth=1)
        bottom, top = -0.25 * one.prevalence.iloc[0], max(one.treat_all.max(), rows.high.max())
        ax.set_ylim(100 * bottom, 105 * top)
        ax.axvline(100 * one.prevalence.iloc[0], color=FAINT, linestyle=":", linewidth=1)
        place = np.searchsorted(-one.treat_all.to_numpy(), -0.45 * one.treat_all.max())
        ax.annotate("treat all", (100 * one.threshold.iloc[place], 100 * one.treat_all.iloc[place]), (4, 2),
                    textcoords="offset points", fontsize=7.5, color=INK)  # fmt: skip
        ax.annotate("treat none", (1, 0), (0, -9), xycoords=("axes fraction", "data"), ha="right",
                    textcoords="offset points", fontsize=7.5, color=INK)  # fmt: skip
    model_legend(figure, figure.axes)
    return figure


@_estimable
def subgroups(table: pd.DataFrame) -> Plot:
    """AUROC of HeartBEiT in each subgroup, fine-tuned (filled) and as a head (open); dotted: everybody.

    Of the first other model where HeartBEiT was not run.
    """
    model = _present(table.model, MODEL_COLOURS)[0]
    own = table.loc[table.model == model]
    rungs = own.drop_duplicates(["dimension", "group"]).reset_index(drop=True)
    places = _places(rungs)
    figure = new_plot(0.2 * (max(places.values()) + 2) + 0.8)
    ax = figure.subplots()
    kinds = _present(own.kind, KIND_NAMES)
    colour, marker = MODEL_COLOURS[model], MODEL_MARKERS[model]
    for kind in kinds:
        apart = 0.0 if len(kinds) == 1 else -0.16 if kind == "finetuned" else 0.16
        face = colour if kind == "finetuned" else "white"
        for row in own.loc[(own.kind == kind) & own.estimable].to_dict("records"):
            y = places[row["dimension"], row["group"]] + apart
            ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.2)
            ax.plot(row["value"], y, marker, color=colour, markerfacecolor=face, markersize=4.5)
    for row in rungs.loc[~rungs.estimable].to_dict("records"):
        place = (0.01, places[row["dimension"], row["group"]])
        ax.annotate("not estimable", place, xycoords=("axes fraction", "data"), va="center", color=GREY,
                    fontsize=7.5)  # fmt: skip
    for value in own.loc[(own.dimension == "everybody") & own.estimable].value:
        ax.axvline(value, color=FAINT, linestyle=":", linewidth=1)
    ax.set_yticks(list(places.values()), [_rung(row) for row in rungs.to_dict("records")])
    ax.set_ylim(max(places.values()) + 0.7, -0.7)
    ax.set(xlabel=f"AUROC of {model_name(model)}", ylabel="ECGs with the outcome, of all")
    ax.grid(axis="x")
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="",
               markerfacecolor=colour if kind == "finetuned" else "white") for kind in kinds
    ]  # fmt: skip
    figure.legend(handles, [KIND_NAMES[kind] for kind in kinds], loc="outside upper left", ncols=2)
    return figure


def _places(rungs: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Height of each rung, with a gap between dimensions."""
    gaps = (rungs.dimension != rungs.dimension.shift()).cumsum() - 1
    keys = zip(rungs.dimension, rungs.group, strict=True)
    return dict(zip(keys, (rungs.index + 0.6 * gaps).tolist(), strict=True))


def _rung(row: dict) -> str:
    name = row["group"] if row["dimension"] in ("everybody", "sex") else f"{row['dimension']} {row['group']}"
    return f"{name}: {row['n_positive']:,} of {row['n']:,}"


@_estimable
def shortcuts(table: pd.DataFrame, discrimination: pd.DataFrame, label: str) -> Plot:
    """AUROC of one label from what is known beforehand, above that of each model on the same ECGs."""
    known = table.loc[table.label == label]
    models = discrimination.loc[(discrimination.metric == "auroc") & (discrimination.part == "test")]
    rungs = [(row["known"], row, INK, "s") for row in known.to_dict("records")]
    for kind in KIND_NAMES:
        for model in MODEL_COLOURS:
            for row in models.loc[(models.kind == kind) & (models.model == model)].to_dict("records"):
                name = f"{model_name(model)}, {KIND_NAMES[kind]}"
                rungs.append((name, row, MODEL_COLOURS[model], MODEL_MARKERS[model]))
    figure = new_plot(0.22 * len(rungs) + 0.8, 6.0)
    ax = figure.subplots()
    for y, (_, row, colour, marker) in enumerate(rungs):
        if np.isnan(row["value"]):
            ax.annotate("not estimable", (0.5, y), va="center", ha="center", fontsize=7.5, color=GREY)
        ax.hlines(y, row["low"], row["high"], color=colour, linewidth=1.2)
        ax.plot(row["value"], y, marker, color=colour, markersize=4.5)
    ax.axvline(0.5, color=FAINT, linestyle=":", linewidth=1)
    ax.axhline(len(known) - 0.5, color=FAINT, linewidth=0.8)
    ax.set_yticks(range(len(rungs)), [name for name, *_ in rungs])
    ax.set_ylim(len(rungs) - 0.4, -0.6)
    ax.set(xlabel="AUROC", ylabel="Network, or known without", title=counts_text(known.n, known.n_positive))
    ax.grid(axis="x")
    return figure


def _panels(
    table: pd.DataFrame, xlabel: str, ylabel: str, height: float
) -> tuple[Plot, list[tuple[Axes, str, str]]]:
    """A row for each part and a column for each kind of the table, where they occur, titled with the ECGs."""
    parts, kinds = _present(table.part, PART_NAMES), _present(table.kind, KIND_NAMES)
    figure = new_plot(height * len(parts) + 0.3, 7.5 if len(kinds) == 2 else 4.5)
    axes = figure.subplots(len(parts), len(kinds), squeeze=False)
    panels = []
    for line, part in enumerate(parts):
        for column, kind in enumerate(kinds):
            ax = axes[line, column]
            own = table.loc[(table.part == part) & (table.kind == kind)]
            positive = (own.n * own.prevalence).round()
            ax.set_title(f"{PART_NAMES[part]}, {KIND_NAMES[kind]}\n{counts_text(own.n, positive)}")
            ax.set(xlabel=xlabel if line == len(parts) - 1 else "", ylabel=ylabel if column == 0 else "")
            panels.append((ax, kind, part))
    return figure, panels
