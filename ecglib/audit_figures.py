"""Charts of the audit and of the label lab: tables in, a Plot out."""

import numpy as np
import pandas as pd

from ecglib.style import ACCENT, FAINT, INK, WARM, Plot, hide_axes, legend_above, new_plot, styled


@styled
def expected_gains(gains: pd.DataFrame) -> Plot:
    """Expected gain in AUROC (columns: correlations) over the number of looks at the test set (index)."""
    figure = new_plot(2.9, 5.6)
    ax = figure.subplots()
    for correlation, colour, line in zip(gains, (INK, ACCENT, WARM), ("-", "--", ":"), strict=False):
        ax.plot(gains.index, gains[correlation], line, color=colour, label=f"correlation {correlation:g}")
    ax.set(xlabel="Epochs scored on the test set", ylabel="Best minus one look (AUROC)", ylim=(0, None))
    legend_above(ax, 3)
    return figure


@styled
def learning_rate(rates: pd.DataFrame, said: tuple[float, float]) -> Plot:
    """The learning rate (column rate) over the training (share, 0..1), and the range that the text says."""
    figure = new_plot(2.7, 5.6)
    ax = figure.subplots()
    ax.axhspan(*said, color=FAINT, alpha=0.35, linewidth=0, label="the text's range")
    ax.plot(100 * rates["share"], rates["rate"], color=ACCENT, label="drawn by the public code's schedule")
    ax.set(xlabel="Share of the training (%)", ylabel="Learning rate", yscale="log")
    legend_above(ax, 2)
    return figure


@styled
def cells(pixels: np.ndarray, grids: dict[str, int]) -> Plot:
    """An ECG image (size, size) under the cells of each saliency map; grids: name -> cells in a row."""
    figure = new_plot(3.9)
    for ax, (name, n) in zip(np.ravel(figure.subplots(1, len(grids))), grids.items(), strict=True):
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        for edge in np.arange(n + 1) * len(pixels) / n - 0.5:
            ax.axhline(edge, color=WARM, linewidth=0.6)
            ax.axvline(edge, color=WARM, linewidth=0.6)
        hide_axes(ax)
        ax.set_title(f"{name}: {n} x {n} cells")
    return figure


@styled
def overlap(jaccard: pd.DataFrame) -> Plot:
    """Jaccard indices (0..1) between definitions, as a heat map with the numbers in it."""
    names = [str(name) for name in jaccard.index]
    figure = new_plot(0.5 * len(names) + 1.4, 6.2)
    ax = figure.subplots()
    ax.imshow(jaccard, vmin=0, vmax=1)
    for row, column in np.ndindex(*jaccard.shape):
        value = float(jaccard.iloc[row, column])
        shade = "white" if value < 0.5 else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=8)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    ax.set(xlabel="Definition", ylabel="Definition")
    return figure
