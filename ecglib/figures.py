"""Charts of data, training, distances and saliency: tables in, a Plot out."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.signal import welch

from ecglib.cohort import known_labels
from ecglib.patchbook import GRID
from ecglib.records import LEADS_8
from ecglib.splits import EXCLUDED
from ecglib.style import (
    ACCENT,
    FAINT,
    INK,
    MODEL_COLOURS,
    PART_NAMES,
    WARM,
    Plot,
    legend_above,
    model_legend,
    new_plot,
    outcome_name,
    styled,
)

_OUTCOME_SHADES = (ACCENT, "#de8f05", "#029e73", "#cc78bc")


# --- the data ---


@styled
def cohort(manifest: pd.DataFrame, parts: pd.Series, outcomes: Sequence[str]) -> Plot:
    """Ages by part, and the prevalence of each outcome by part."""
    figure = new_plot(3.1)
    ages, prevalence = figure.subplots(1, 2)
    present = [part for part in PART_NAMES if part != EXCLUDED and (parts == part).any()]
    for part, shade in zip(present, (INK, FAINT, ACCENT, WARM), strict=False):
        known = manifest.age[parts == part].dropna()
        share, edges = np.histogram(known, bins=np.arange(10, 101, 10))
        ages.stairs(100 * share / max(1, share.sum()), edges, color=shade, label=PART_NAMES[part])
    ages.set(xlabel="Age (years)", ylabel="Share of ECGs (%)")
    legend_above(ages, 2)
    for k, outcome in enumerate(outcomes):
        shares = [100 * known_labels(manifest.loc[parts == part], outcome).mean() for part in present]
        places = np.arange(len(present)) + (k - (len(outcomes) - 1) / 2) * 0.22
        prevalence.bar(places, shares, 0.2, color=_OUTCOME_SHADES[k], label=outcome_name(outcome))
    prevalence.set_xticks(range(len(present)), [PART_NAMES[part].replace(" ", "\n") for part in present])
    prevalence.set(xlabel="Part", ylabel="Prevalence (% of ECGs)")
    legend_above(prevalence, 3)
    return figure


@styled
def spectra(stages: Mapping[str, np.ndarray], sampling_rate: float) -> Plot:
    """Power spectra, mean over the leads, of several stages (leads, samples) in mV; rate in Hz."""
    figure = new_plot(2.9)
    ax = figure.subplots()
    for colour, (name, waveform) in zip((FAINT, ACCENT, WARM), stages.items(), strict=False):
        frequency, power = welch(
            waveform, sampling_rate, nperseg=min(waveform.shape[1], round(2 * sampling_rate))
        )
        ax.loglog(frequency[1:], power.mean(axis=0)[1:], color=colour, label=name, linewidth=1.2)
    ax.set(
        xlabel="Frequency (Hz)", ylabel="Power (mV² / Hz)", xlim=(0.4, sampling_rate / 2), ylim=(1e-8, None)
    )
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend()
    return figure


# --- tokens and pretraining ---


@styled
def code_use(tokens: np.ndarray, vocab_size: int, commonest_limit: float) -> Plot:
    """How often each code is used, the commonest first, beside the limit for the commonest."""
    counts = np.sort(np.bincount(tokens.ravel(), minlength=vocab_size))[::-1]
    share = 100 * counts / counts.sum()
    figure = new_plot(2.7)
    ax = figure.subplots()
    used = np.flatnonzero(share)  # on a logarithmic axis nothing else has a place
    ax.stairs(
        share[used], np.arange(len(used) + 1) + 0.5, fill=True, color=ACCENT, baseline=share[used].min() / 2
    )
    ax.axhline(100 * commonest_limit, color=WARM, linestyle="--", linewidth=1)
    ax.text(vocab_size, 100 * commonest_limit, "limit for the commonest code ", ha="right", va="bottom")
    ax.set(xlabel="Code, by rank of use", ylabel="Share of all patches (%)", xlim=(0, vocab_size + 1))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    return figure


@styled
def courses(history: pd.DataFrame, labels: Mapping[str, str]) -> Plot:
    """One panel for each column of a training history over its `step`; `labels`: column -> axis label.

    Columns that the history does not have are left out.
    """
    labels = {column: label for column, label in labels.items() if column in history}
    figure = new_plot(2.6)
    axes = np.ravel(figure.subplots(1, len(labels)))
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        ax.plot(history.step, history[column], color=ACCENT)
        ax.set(xlabel="Step (batches)", ylabel=label)
    return figure


@styled
def pretraining(history: pd.DataFrame, vocab_size: int) -> Plot:
    """Loss beside that of even guesses, accuracy beside that of always guessing the commonest token."""
    figure = new_plot(2.9)
    loss, accuracy = figure.subplots(1, 2)
    chance = math.log(vocab_size)
    loss.plot(history.step, history.loss, color=ACCENT, label="loss")
    loss.axhline(chance, color=WARM, linestyle="--", linewidth=1, label=f"ln({vocab_size}) = {chance:.2f}")
    loss.set(xlabel="Step (batches)", ylabel="Loss on hidden patches (nats)")
    accuracy.plot(history.step, 100 * history.accuracy, color=ACCENT, label="model")
    accuracy.plot(
        history.step,
        100 * history.majority_accuracy,
        color=WARM,
        linestyle="--",
        linewidth=1,
        label="always the commonest token",
    )
    accuracy.set(xlabel="Step (batches)", ylabel="Hidden tokens predicted (%)", ylim=(0, None))
    for ax in (loss, accuracy):
        ax.legend()
    return figure


@styled
def attention(by_network: Mapping[str, pd.DataFrame], even: Mapping[str, float], seconds: float) -> Plot:
    """How far each layer looks, in time and across leads: the mean over its heads, and each head as a dot.

    Tables of `attention.attention_distances` by network; even: the distances where attention is equal
    everywhere; seconds: shown by an image.
    """
    figure = new_plot(3.0)
    axes = figure.subplots(1, 2)
    # In a patch are so many seconds, and so much of the band of a lead.
    scales = {"time": seconds / GRID, "leads": len(LEADS_8) / GRID}
    labels = {"time": "Distance in time (s)", "leads": "Distance across leads (bands)"}
    for ax, (direction, scale) in zip(axes, scales.items(), strict=True):
        for (name, table), colour in zip(by_network.items(), (ACCENT, FAINT), strict=True):
            layers, distances = table["layer"].to_numpy(), scale * table[direction].to_numpy()
            means = [distances[layers == layer].mean() for layer in np.unique(layers)]
            ax.plot(np.unique(layers), means, color=colour, label=name)
            ax.plot(layers, distances, ".", color=colour)
        ax.axhline(even[direction] * scale, color=WARM, linestyle="--", linewidth=1, label="evenly")
        highest = max([even[direction], *(table[direction].max() for table in by_network.values())])
        ax.set(xlabel="Layer", ylabel=labels[direction], ylim=(0, 1.1 * scale * highest))
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend_above(axes[0], 3)
    return figure


@styled
def days_over_utilisation(table: pd.DataFrame, marks: Mapping[str, float]) -> Plot:
    """How long pretraining lasts over the share of the GPUs' peak that is used; named shares are marked."""
    figure = new_plot(3.0, 5.2)
    ax = figure.subplots()
    ax.plot(100 * table.utilisation, table.days, color=ACCENT)
    for name, share in marks.items():
        days = float(np.interp(share, table.utilisation, table.days))
        ax.plot(100 * share, days, "o", color=WARM)
        ax.annotate(f"{name}: {days:.0f} days", (100 * share, days), (7, 5), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel="Share of the peak that is used (%)", ylabel="Days")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.set_xticks([2, 5, 10, 20, 40, 80])
    return figure


# --- domain shift and saliency ---


@styled
def distances(by_pair: Mapping[str, np.ndarray], paper_means: Mapping[str, float]) -> Plot:
    """Distributions of pairwise Wasserstein distances in grey levels, with ours and the paper's means."""
    figure = new_plot(1.05 * len(by_pair) + 0.8)
    axes = np.ravel(figure.subplots(len(by_pair), 1, sharex=True))
    bins = np.linspace(0, max(float(d.max()) for d in by_pair.values()) * 1.02, 120)
    for ax, (pair, values) in zip(axes, by_pair.items(), strict=True):
        share = 100 * np.histogram(values, bins)[0] / values.size
        ax.stairs(share, bins, fill=True, color=ACCENT, alpha=0.45)
        ax.axvline(values.mean(), color=ACCENT, label=f"mean of ours {values.mean():.1f}")
        if pair in paper_means:
            value = paper_means[pair]
            ax.axvline(value, color=WARM, linestyle="--", label=f"mean of the paper's {value:g}")
        ax.set(title=pair, ylabel="Pairs (%)", ylim=(0, None))
        ax.legend(loc="best")
    axes[-1].set(xlabel="Wasserstein distance between pixel values (grey levels, 0-255)", xlim=(0, bins[-1]))
    return figure


@styled
def histograms(ecg_pixels: np.ndarray, photograph_pixels: np.ndarray) -> Plot:
    """Mean share of pixels at each grey level: uint8 images (n, ...) of both kinds."""
    figure = new_plot(2.7)
    ax = figure.subplots()
    edges = np.arange(0, 257, 4)
    for name, pixels, colour in (("ECGs", ecg_pixels, ACCENT), ("photographs", photograph_pixels, WARM)):
        counts = np.bincount(pixels.ravel(), minlength=256).reshape(-1, 4).sum(axis=1)
        ax.stairs(100 * counts / pixels.size, edges, color=colour, label=name, linewidth=1.5)
    ax.set(xlabel="Grey level (0 = black, 255 = white)", ylabel="Share of pixels (%)", xlim=(0, 256))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    legend_above(ax, 2)
    return figure


@styled
def lead_shares(table: pd.DataFrame) -> Plot:
    """Share of saliency in each lead's band: columns outcome, model and one a lead (shares, sum 1)."""
    outcomes = list(dict.fromkeys(table.outcome))
    figure = new_plot(1.6 * len(outcomes) + 0.8)
    axes = list(np.ravel(figure.subplots(len(outcomes), 1, sharex=True, sharey=True)))
    for ax, outcome in zip(axes, outcomes, strict=True):
        rows = table.loc[table.outcome == outcome].to_dict("records")
        for k, row in enumerate(rows):
            places = np.arange(8) + (k - (len(rows) - 1) / 2) * 0.8 / len(rows)
            shares = [100 * row[lead] for lead in LEADS_8]
            ax.bar(places, shares, 0.75 / len(rows), color=MODEL_COLOURS[row["model"]], label=row["model"])
        ax.axhline(100 / 8, color=INK, linestyle=":", linewidth=1)
        ax.set(title=outcome_name(outcome), ylabel="Saliency (%)")
    axes[-1].set_xticks(range(8), LEADS_8)
    axes[-1].set_xlabel("Lead")
    model_legend(figure, axes)
    return figure
