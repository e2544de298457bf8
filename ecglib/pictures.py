"""Pictures of the stages: waveforms, images, patches, tokens, masks and saliency; arrays in, a Plot out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from ecglib.beats import find_r_peaks
from ecglib.cohort import Cohort
from ecglib.evidence import sign_samples
from ecglib.image import ImageSettings, lead_rows, lead_time_to_pixel
from ecglib.records import LEADS_8
from ecglib.saliency import overlay
from ecglib.style import ACCENT, FAINT, INK, WARM, WIDTH_IN, Plot, hide_axes, new_plot, styled
from ecglib.synthetic import KINDS, SAMPLING_RATE, textbook_cases
from ecglib.synthetic import waveforms as waveforms_of

GRID = 14  # patches in a row
SIGN_RGB = (213, 94, 0)  # the colour WARM on images
_STAGE_COLOURS = (FAINT, ACCENT, WARM)


@styled
def waveforms(
    stages: Mapping[str, np.ndarray],
    sampling_rate: float,
    *,
    leads: Sequence[str] = LEADS_8,
    seconds: float = 5.0,
) -> Plot:
    """Leads under one another, each stage (its name -> (leads, samples) in mV) drawn over the one before.

    `sampling_rate` in Hz.
    """
    figure = new_plot(0.62 * len(leads) + 0.7)
    axes = list(np.ravel(figure.subplots(len(leads), 1, sharex=True, sharey=True)))
    for colour, (name, waveform) in zip(_STAGE_COLOURS, stages.items(), strict=False):
        kept = waveform[:, : round(seconds * sampling_rate)]
        for ax, samples in zip(axes, kept, strict=True):
            ax.plot(np.arange(len(samples)) / sampling_rate, samples, color=colour, linewidth=0.9, label=name)
    _name_leads(axes, leads)
    axes[-1].set(xlabel="Time (s)", xlim=(0, seconds))
    if len(stages) > 1:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=len(stages))
    return figure


@styled
def evidence(cohort: Cohort, row: int, outcome: str, seconds: float = 5.0) -> Plot:
    """An ECG with the samples that carry the outcome's sign in another colour, where that is known."""
    record = cohort.read(row)
    waveform, n = record.select(LEADS_8), round(seconds * record.sampling_rate)
    known = sign_samples(cohort, [row], outcome)
    signs = np.zeros(waveform.shape, bool) if known is None else known[0]
    times = np.arange(n) / record.sampling_rate
    figure = new_plot(0.62 * len(LEADS_8) + 0.7)
    axes = list(np.ravel(figure.subplots(len(LEADS_8), 1, sharex=True, sharey=True)))
    for ax, samples, sign in zip(axes, waveform[:, :n], signs[:, :n], strict=True):
        ax.plot(times, samples, color=FAINT, linewidth=0.9, label="ECG")
        ax.plot(times, np.where(sign, samples, np.nan), color=WARM, linewidth=1.6, label="sign put in")
    _name_leads(axes, LEADS_8)
    axes[-1].set(xlabel="Time (s)", xlim=(0, seconds))
    if known is None:
        figure.suptitle("A recording: nobody knows which samples carry the sign", x=0.01, ha="left")
    else:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2)
    return figure


@styled
def kinds(seed: int) -> Plot:
    """One made beat of every kind of ECG at full severity, over the same patient's healthy beat.

    A column for each kind, a row for each of the eight leads; the samples that carry an outcome's sign stand
    in another colour. A square of the grid is 0.2 s by 0.5 mV.
    """
    made = {name: waveforms_of(textbook_cases(kind, 1, seed), [0], seed) for name, kind in KINDS.items()}
    (healthy,), _ = made["Well"]
    peaks = find_r_peaks(healthy, SAMPLING_RATE)
    start = int(peaks[len(peaks) // 2] - 0.25 * SAMPLING_RATE)
    beat = slice(start, start + int(0.8 * SAMPLING_RATE))
    times = np.arange(beat.stop - beat.start) / SAMPLING_RATE
    figure = new_plot(7.0)
    axes = list(np.ravel(figure.subplots(len(LEADS_8), 1, sharex=True, sharey=True)))
    for lead, ax in enumerate(axes):
        for column, ((waveform,), (signs,)) in enumerate(made.values()):
            own, sign = waveform[lead, beat], signs[lead, beat] > 0
            ax.plot(times + column, healthy[lead, beat], color=FAINT, linewidth=0.6)
            ax.plot(times + column, own, color=INK, linewidth=0.8)
            ax.plot(times + column, np.where(sign, own, np.nan), color=WARM, linewidth=1.0)
        ax.set(xticks=np.arange(0, len(made), 0.2), yticks=np.arange(-2, 3.1, 0.5), ylim=(-2.4, 3.2))
        ax.tick_params(length=0, labelbottom=False, labelleft=False)
        ax.grid(True, axis="both", linewidth=0.4)
        ax.spines[:].set_visible(False)
    _name_leads(axes, LEADS_8)
    top = axes[0].secondary_xaxis("top")
    top.set_xticks(np.arange(len(made)) + 0.2, list(made), rotation=40, ha="left", fontsize=7.5)
    top.tick_params(length=0)
    top.spines[:].set_visible(False)
    axes[-1].set(xlabel="One beat of each kind; a square is 0.2 s by 0.5 mV", xlim=(-0.1, len(made) - 0.1))
    return figure


def _name_leads(axes: Sequence[Axes], leads: Sequence[str]) -> None:
    for ax, lead in zip(axes, leads, strict=True):
        ax.set_ylabel(f"{lead}\n(mV)", rotation=0, ha="right", va="center")
        ax.tick_params(axis="x", length=3 if ax is axes[-1] else 0)


@styled
def images(pixels: Mapping[str, np.ndarray], seconds: float) -> Plot:
    """Images (rows, cols) or (rows, cols, 3), uint8, beside each other, each under its title."""
    figure = new_plot(WIDTH_IN / len(pixels) + 0.3)
    axes = np.ravel(figure.subplots(1, len(pixels)))
    for ax, (title, picture) in zip(axes, pixels.items(), strict=True):
        _show_ecg(ax, picture)
        _time_axis(ax, len(picture), seconds)
        ax.set_title(f"{title}: {len(picture)} x {len(picture)} pixels")
    axes[0].set_ylabel("Lead")
    return figure


@styled
def patches(pixels: np.ndarray, seconds: float) -> Plot:
    """An image (size, size) cut into the 14 x 14 patches that become tokens."""
    size = len(pixels)
    figure = new_plot(5.2, 5.0)
    ax = figure.subplots()
    _show_ecg(ax, pixels)
    _time_axis(ax, size, seconds)
    edges = np.arange(GRID + 1) * size / GRID - 0.5
    ax.hlines(edges, -0.5, size - 0.5, color=ACCENT, linewidth=0.5, alpha=0.7)
    ax.vlines(edges, -0.5, size - 0.5, color=ACCENT, linewidth=0.5, alpha=0.7)
    ax.set(title=f"{GRID} x {GRID} patches of {size // GRID} x {size // GRID} pixels", ylabel="Lead")
    return figure


@styled
def maps(pixels: np.ndarray, signs: np.ndarray | None, settings: ImageSettings, seconds: float) -> Plot:
    """The way from lead and time to a pixel on an image, and the pixels (1, size, size) of a sign."""
    picture = np.repeat(pixels[:, :, None], 3, axis=2)
    if signs is not None:
        picture[signs[0]] = SIGN_RGB
    figure = new_plot(5.2, 5.0)
    ax = figure.subplots()
    _show_ecg(ax, picture)
    _time_axis(ax, settings.size, seconds)
    for lead in range(len(LEADS_8)):
        rows, columns = lead_time_to_pixel(lead, np.arange(0, seconds + 0.1, 0.2) / seconds, settings)
        ax.axhline(float(rows), color=ACCENT, linewidth=0.6)
        ax.plot(columns, np.full(columns.shape, rows), "|", color=ACCENT, markersize=4)
    ax.set(title="0 mV of each lead, with a mark every 0.2 s", ylabel="Lead")
    return figure


@styled
def reconstructions(originals: np.ndarray, decoded: np.ndarray) -> Plot:
    """Images (n, size, size) above what the tokenizer makes of their tokens, (n, rows, cols) in 0..1."""
    return _rows_of_images({"Original": originals, "From its tokens": decoded})


@styled
def guesses(pixels: np.ndarray, hidden: np.ndarray, decoded: np.ndarray, titles: Sequence[str] = ()) -> Plot:
    """Images (n, size, size), the same with hidden patches (n, 196) covered, and filled with guesses.

    titles: one above each column.
    """
    side = len(pixels[0]) // decoded.shape[1]
    enlarged = (255 * decoded).astype(np.uint8).repeat(side, axis=1).repeat(side, axis=2)
    behind = np.stack([patch_mask(mask, len(pixels[0])) for mask in hidden])
    rows = {
        "Original": pixels,
        "What it is given": np.stack(
            [cover(image, mask) for image, mask in zip(pixels, hidden, strict=True)]
        ),
        "What it guesses": np.where(behind, enlarged, pixels),
    }
    figure = _rows_of_images(rows)
    for ax, title in zip(figure.axes, titles, strict=False):
        ax.set_title(title)
    return figure


@styled
def token_maps(pixels: np.ndarray, tokens: np.ndarray, vocab_size: int) -> Plot:
    """Images (n, size, size) above their tokens (n, 196), one colour a token."""
    figure = _rows_of_images({"Image": pixels, "Tokens": tokens.reshape(-1, GRID, GRID)}, vocab_size)
    return figure


def _rows_of_images(rows: Mapping[str, np.ndarray], vocab_size: int = 0) -> Plot:
    n = len(next(iter(rows.values())))
    figure = new_plot(len(rows) * WIDTH_IN / n + 0.2)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax, picture in zip(line, pictures, strict=True):
            if picture.shape[0] == GRID:
                ax.imshow(picture, cmap=_token_colours(vocab_size), vmin=0, vmax=vocab_size - 1)
            else:
                ax.imshow(picture, cmap="gray", vmin=0, vmax=255 if picture.dtype == np.uint8 else 1)
            hide_axes(ax)
        line[0].set_ylabel(name)
    return figure


def _token_colours(vocab_size: int) -> ListedColormap:
    """Neighbouring ids mean nothing, so their colours are shuffled."""
    return ListedColormap(np.random.default_rng(0).uniform(0.15, 0.95, (vocab_size, 3)))


@styled
def masks(pixels: np.ndarray, masks_by_kind: Mapping[str, np.ndarray]) -> Plot:
    """An image (size, size) under several masks (n, 196) of each kind; hidden patches are covered."""
    n = len(next(iter(masks_by_kind.values())))
    figure = new_plot(len(masks_by_kind) * WIDTH_IN / n + 0.2)
    axes = figure.subplots(len(masks_by_kind), n, squeeze=False)
    for line, (kind, drawn) in zip(axes, masks_by_kind.items(), strict=True):
        for ax, mask in zip(line, drawn, strict=True):
            _show_ecg(ax, cover(pixels, mask), names=ax is line[0])
        line[0].set_ylabel(kind, labelpad=18)
    return figure


def cover(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour the hidden patches of an image: (size, size) uint8 and mask (196,) -> RGB uint8."""
    picture = np.repeat(pixels[:, :, None], 3, axis=2)
    picture[patch_mask(mask, len(pixels))] = (185, 196, 210)
    return picture


def patch_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask of patches (196,) as a mask of pixels (size, size)."""
    side = size // GRID
    return np.kron(mask.reshape(GRID, GRID), np.ones((side, side), bool))


@styled
def mask_shares(shares: Mapping[str, np.ndarray], seconds: float) -> Plot:
    """How often each patch is hidden: kind of mask -> share of draws (196,), as maps on one scale."""
    figure = new_plot(WIDTH_IN / len(shares) * 0.95, WIDTH_IN)
    axes = np.ravel(figure.subplots(1, len(shares)))
    shown = None
    for ax, (kind, share) in zip(axes, shares.items(), strict=True):
        grid = share.reshape(GRID, GRID)
        shown = ax.imshow(grid, vmin=0, vmax=max(s.max() for s in shares.values()), extent=(0, seconds, 8, 0))
        ax.set_aspect(seconds / 8)
        ax.set(title=kind, xlabel="Time (s)", ylabel="Lead", yticks=np.arange(8) + 0.5, yticklabels=LEADS_8)
        ax.grid(False)
    if shown is not None:
        figure.colorbar(shown, ax=axes, shrink=0.75, label="Share of masks that hide it")
    return figure


@styled
def saliency(pixels: np.ndarray, maps: Mapping[str, np.ndarray], row_names: Sequence[str]) -> Plot:
    """Saliency over the input: a row for each image (n, size, size), a column for each model's maps."""
    figure = new_plot(len(pixels) * 0.97 * WIDTH_IN / len(maps) + 0.2)
    axes = figure.subplots(len(pixels), len(maps), squeeze=False)
    for column, (model, saliencies) in enumerate(maps.items()):
        axes[0, column].set_title(model)
        for ax, picture, a_map in zip(axes[:, column], pixels, saliencies, strict=True):
            if np.isnan(a_map).any():
                hide_axes(ax)
                ax.set_box_aspect(1)
                ax.text(0.5, 0.5, "no map", ha="center", va="center", transform=ax.transAxes)
            else:
                _show_ecg(ax, overlay(picture, a_map), names=column == 0)
    for ax, name in zip(axes[:, 0], row_names, strict=True):
        ax.set_ylabel(name, labelpad=18)
    return figure


def _show_ecg(ax: Axes, picture: np.ndarray, names: bool = True) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    hide_axes(ax)
    if names:
        size = len(picture)
        ax.set_yticks(lead_rows(size - size % 8).mean(axis=1), LEADS_8, fontsize=7)
        ax.tick_params(axis="y", length=0, pad=2)


def _time_axis(ax: Axes, size: int, seconds: float) -> None:
    """Ticks at whole seconds under an image that shows `seconds` of ECG."""
    whole = np.arange(int(seconds) + 1)
    ax.set_xticks(whole * size / seconds - 0.5, [f"{second}" for second in whole])
    ax.set_xlabel("Time (s)")
