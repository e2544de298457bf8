"""How much of a lead's amplitude survives the tokenizer: its range in mV, read off picture and copy alike."""

from dataclasses import replace

import numpy as np
import pandas as pd

from ecglib.image import ImageSettings
from ecglib.patchbook import brightness
from ecglib.records import LEADS_8

INK = 0.5  # of black, where a trace begins: of .15 to .6 the value whose ranges are nearest to the waveforms


def read_ranges(pictures: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Largest minus smallest voltage of each lead, read off pictures (n, size, size): mV (n, 8).

    pictures: brightness, 0 = ink, 1 = paper, of any size. From the first to the last row of the lead's band
    where its darkest pixel reaches `INK`, between rows by interpolation; 0 where none does. What leaves the
    band is cut off, and a neighbour's ink inside it counts, for picture and copy alike.

    (The centre of the ink in each column would halve a QRS complex, which rises and falls within a column.)
    """
    n, size, _ = pictures.shape
    bands = 1 - pictures.reshape(n, len(LEADS_8), -1, size)
    darkest = np.pad(bands.max(axis=3), ((0, 0), (0, 0), (1, 1)))  # (n, 8, rows)
    inked = darkest >= INK
    above, below = _edge(darkest, inked), _edge(darkest[..., ::-1], inked[..., ::-1])
    rows = darkest.shape[2] - 1 - below - above
    return np.where(inked.any(axis=2), rows / replace(settings, size=size).pixels_per_mv, 0.0)


def _edge(darkest: np.ndarray, inked: np.ndarray) -> np.ndarray:
    """Where the profile (n, 8, rows) first reaches INK, in rows, by interpolation; the first row is paper."""
    first = np.maximum(inked.argmax(axis=2), 1)[..., None]
    here, before = (np.take_along_axis(darkest, first - back, axis=2) for back in (0, 1))
    return (first - (here - INK) / np.maximum(here - before, 1e-6))[..., 0]


def compare_ranges(pixels: np.ndarray, copies: np.ndarray, settings: ImageSettings) -> pd.DataFrame:
    """Ranges in images uint8 (n, 224, 224) and in their tokenizer's copies (n, 112, 112), lead by lead.

    One row a lead and one for all: lead, original_mv and copy_mv (medians), correlation (NaN where one of the
    two does not vary), error_mv (median of the absolute differences).
    """
    original = read_ranges(brightness(pixels)[:, 0].numpy(), settings)
    copied = read_ranges(copies, settings)
    groups = {lead: (original[:, k], copied[:, k]) for k, lead in enumerate(LEADS_8)}
    groups["all"] = original.ravel(), copied.ravel()
    rows = [
        {
            "lead": lead,
            "original_mv": np.median(a),
            "copy_mv": np.median(b),
            "correlation": np.corrcoef(a, b)[0, 1] if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan,
            "error_mv": np.median(np.abs(a - b)),
        }
        for lead, (a, b) in groups.items()
    ]
    return pd.DataFrame(rows)
