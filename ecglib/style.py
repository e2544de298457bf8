"""The look of figures and tables: one theme, one width, and one colour for a model on every page."""

import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH_IN = 7.5  # the book's column
DPI = 110
TABLE_CSS = (
    ".dataframe { font-size: 0.85em; } "
    ".dataframe td, .dataframe th { text-align: left; vertical-align: top; padding: 0.3em 0.6em; }"
)
# A number with its interval or spread, which a narrow column must not tear apart.
WITH_SPREAD = re.compile(r"[+-]?\d[\d.,]* (?:\([^()<>]{1,40}\)|± [\d.]+)")
PAGE = re.compile(r"<td>((\d\d_\w+)\.html(?:#[\w-]+)?)</td>")  # a page of the book, and a heading on it
P = ParamSpec("P")

_PALETTE = sns.color_palette("colorblind").as_hex()  # told apart with every common colour vision
INK, FAINT, ACCENT, WARM = "#222222", "#9a9a9a", _PALETTE[0], _PALETTE[3]
MODEL_NAMES = {
    "heartbeit": "HeartBEiT",
    "random": "random weights",
    "efficientnet_lite2": "EfficientNet-Lite2",
    "mobilenetv2": "MobileNetV2",
    "measurements": "classical measurements",
    "vit_b16": "ViT-B/16",
    "beit_b": "BEiT-B (photographs)",
    "efficientnet_b4": "EfficientNet-B4",
    "resnet152": "ResNet-152",
}
MODEL_COLOURS = {
    "heartbeit": _PALETTE[0],
    "random": "#6f6f6f",
    "efficientnet_lite2": _PALETTE[1],
    "mobilenetv2": _PALETTE[2],
    "vit_b16": _PALETTE[4],
    "beit_b": _PALETTE[6],
    "efficientnet_b4": _PALETTE[5],
    "resnet152": _PALETTE[9],
}
MODEL_MARKERS = dict(zip(MODEL_COLOURS, "os^DvP<X", strict=True))
OUTCOME_NAMES = {
    "low_lvef": "Low LVEF",
    "hcm": "HCM",
    "stemi": "STEMI",
    "mi_any": "Any infarction",
    "acute_stemi": "Acute STEMI",
    "normal": "Normal or not",
    "paper_prevalence": "STEMI (paper_prevalence)",
    "early_repolarisation": "Early repolarisation",
    "hypertension": "Hypertension (LVH)",
    "old_infarct": "Old infarct",
    "lbbb_alone": "LBBB alone",
}
PART_NAMES = {
    "train": "Training",
    "validation": "Validation",
    "test": "Internal test",
    "external": "External",
    "excluded": "Excluded",
}
INTERVAL_NAMES = {
    "percentile": "percentiles, by patient",
    "bca": "BCa, by patient",
    "by_record": "percentiles, by ECG",
    "of_mean": "of the bootstrap mean",
    "delong": "DeLong's test, by patient",
}
METRIC_NAMES = {"auroc": "AUROC", "auprc": "AUPRC"}
KIND_NAMES = {"finetuned": "fine-tuned", "head": "head on frozen features"}

STYLE: Any = {  # matplotlib's stubs want each key as a literal
    **sns.axes_style("ticks"),
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "figure.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.0,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "axes.titlelocation": "left",
    "image.cmap": "cividis",
    "text.color": INK,
    "axes.labelcolor": INK,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


class Plot(Figure):
    """A figure that a notebook shows by itself: no pyplot state, nothing drawn twice, any backend."""

    def _repr_png_(self) -> bytes:
        """What Jupyter shows."""
        stream = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(stream, format="png", dpi=DPI)
        return stream.getvalue()


NO_ROWS = "No rows: nothing of this kind was run, or nothing is estimable."


class Table(pd.DataFrame):
    """A table that a notebook shows whole: no row, column or word cut short, text at the left.

    A cell that names a page of the book, such as `01_cohorts.html#a-heading`, is a link to it. Instead of a
    table without rows it shows NO_ROWS.
    """

    @property
    def _constructor(self) -> type["Table"]:
        return Table

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        if self.empty:
            return f"<p>{NO_ROWS}</p>"
        shown = pd.DataFrame(self)
        if shown.index.nlevels == 1 and shown.columns.nlevels == 1:  # one line of headings
            shown = shown.rename_axis(index=None, columns=shown.index.name)
        with pd.option_context("display.max_colwidth", None):
            table = shown.to_html(border=0, justify="left", max_rows=None, max_cols=None)
        table = PAGE.sub(r'<td><a href="\1">\2</a></td>', table)
        table = WITH_SPREAD.sub(r'<span style="white-space: nowrap">\g<0></span>', table)
        return f'<div style="overflow-x: auto"><style>{TABLE_CSS}</style>{table}</div>'


def new_plot(height_in: float, width_in: float = WIDTH_IN) -> Plot:
    """An empty figure, sizes in inches, whose parts make room for each other."""
    return Plot(figsize=(width_in, height_in), dpi=DPI, layout="constrained")


def styled(plot: Callable[P, Plot]) -> Callable[P, Plot]:
    """Run a plotting function in this theme, whatever the notebook's own settings are."""

    @functools.wraps(plot)
    def run(*args: P.args, **kwargs: P.kwargs) -> Plot:
        with matplotlib.rc_context(STYLE):
            figure = plot(*args, **kwargs)
            figure.draw_without_rendering()  # ticks take the theme of the moment when they are first drawn
        return figure

    return run


def hide_axes(ax: Axes) -> None:
    """Leave the picture alone: no ticks, no frame, no grid."""
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def model_name(model: str) -> str:
    """What readers call a model."""
    return MODEL_NAMES.get(model, model)


def outcome_name(outcome: str) -> str:
    """What readers call an outcome."""
    return OUTCOME_NAMES.get(outcome, outcome)


def model_legend(figure: Plot, axes: Sequence[Axes]) -> None:
    """One legend for all panels, the models always in the same order."""
    found = {
        name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    names = [model for model in MODEL_COLOURS if model in found]
    if names:
        figure.legend(
            [found[m] for m in names],
            [model_name(m) for m in names],
            loc="outside upper left",
            ncols=4 if figure.get_figwidth() > 6 else 2,
        )


def legend_above(ax: Axes, columns: int) -> None:
    """A legend over the panel, where it hides no data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.4)


def number_text(value: float, digits: int) -> str:
    """A number with commas and so many digits behind the point; no sign before a zero."""
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def counts_text(n: Iterable[float], n_positive: Iterable[float]) -> str:
    """How many ECGs scores are of, and how many of these have the outcome; a range where scores differ."""
    return f"{least_to_most(n)} ECGs, {least_to_most(n_positive)} positive"


def least_to_most(counts: Iterable[float]) -> str:
    """A count, or the smallest and largest of several."""
    known = sorted(counts)
    return f"{known[0]:,.0f}" + (f"-{known[-1]:,.0f}" if known[0] != known[-1] else "")


def split_name(split: str, seen: float) -> str:
    """What readers call a split, of whose test ECGs HeartBEiT saw the share `seen` in pretraining."""
    return f"{split} (HeartBEiT saw {100 * seen:.0f} % of its test ECGs, unlabelled)" if seen else split


def difference_text(value: float, low: float, high: float) -> str:
    """A difference and its interval with their signs."""
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
