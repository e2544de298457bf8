"""Images as the paper's: eight leads under one another, black on white, five seconds wide.

Each lead has a row of the same height, and 1 mV is as many pixels in every ECG, because voltage carries
information; a tall trace runs into its neighbours' rows and ends at the edge of the picture. Coordinates are
those of OpenCV: pixel centres are whole numbers, so the picture spans -0.5 to size - 0.5. The layout, the
line width and the scale are our choices: the paper leaves them open.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike

from ecglib.errors import EcglibError
from ecglib.provenance import atomic_path
from ecglib.records import LEADS_8

PAPER_SIZE = 1000  # the paper's PNG, pixels
MODEL_SIZE = 224  # what its models see, pixels
SHIFT = 8  # OpenCV's fixed point: coordinates in 1/256 pixel
MARGIN = 4  # drawn and cut off, pixels: OpenCV's anti-aliasing fades at the edge of its canvas


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How a waveform is drawn. EcglibError for a value that makes no picture."""

    size: int = 224  # rows and columns of the image, pixels; a multiple of 8
    mv_per_row: float = 2.0  # voltage that fills one lead's row, mV; the same for all ECGs
    baseline: float = 0.625  # where 0 mV lies in a row: 0 = top, 1 = bottom; R waves need room above
    line_width: float = 1.4  # width of the ink, pixels of a 224 x 224 image; scaled with the size

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % len(LEADS_8):
            raise EcglibError(f"size={self.size}: must be a positive multiple of 8, the number of leads")
        for name in ("mv_per_row", "line_width"):
            if not 0 < getattr(self, name) < np.inf:
                raise EcglibError(f"{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.baseline <= 1:
            raise EcglibError(f"baseline={self.baseline}: must lie in 0..1")

    @property
    def pixels_per_mv(self) -> float:
        """Pixels that 1 mV moves the trace."""
        return self.size / len(LEADS_8) / self.mv_per_row


def draw(waveform: np.ndarray, settings: ImageSettings | None = None) -> np.ndarray:
    """Waveform (8, samples) in mV, leads as LEADS_8 -> uint8 (size, size), ink 0 on paper 255."""
    settings = settings or ImageSettings()
    _check(waveform)
    return _ink(list(_trace_points(waveform, settings)), settings)


def paper_png(waveform: np.ndarray, settings: ImageSettings | None = None) -> np.ndarray:
    """The same drawing in the paper's own format: uint8 (1000, 1000, 3), three equal channels."""
    grey = draw(waveform, replace(settings or ImageSettings(), size=PAPER_SIZE))
    return np.repeat(grey[:, :, None], 3, axis=2)


def write_paper_png(path: Path, waveform: np.ndarray, settings: ImageSettings | None = None) -> None:
    """Write the paper's PNG: 1000 x 1000, three channels of 8 bits."""
    _, encoded = cv2.imencode(".png", paper_png(waveform, settings))
    with atomic_path(path) as partial:
        partial.write_bytes(encoded.tobytes())


def lead_rows(size: int) -> np.ndarray:
    """First row and the row after the last of each lead's band: int (8, 2), top to bottom as LEADS_8."""
    edges = np.arange(len(LEADS_8) + 1) * ImageSettings(size=size).size // len(LEADS_8)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def sample_columns(n_samples: int, size: int) -> np.ndarray:
    """Horizontal position of each sample's centre, pixels: float (n_samples,), within -0.5..size - 0.5."""
    return (np.arange(n_samples) + 0.5) * (size / n_samples) - 0.5


def lead_time_to_pixel(
    lead: ArrayLike, time: ArrayLike, settings: ImageSettings, amplitude_mv: ArrayLike = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where the trace is drawn: (row, column) in pixels, float; the three arrays broadcast.

    `lead` is a position in LEADS_8; `time` runs from 0 (left edge) to 1 (right edge); `amplitude_mv` in mV.
    """
    height = settings.size / len(LEADS_8)
    above = np.asarray(amplitude_mv) * settings.pixels_per_mv
    row = (np.asarray(lead) + settings.baseline) * height - 0.5 - above
    return row, np.asarray(time) * settings.size - 0.5


def pixel_to_lead_time(row: ArrayLike, column: ArrayLike, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lead whose band holds the pixel (position in LEADS_8) and its time, 0..1: the way back."""
    bands = np.clip((np.asarray(row) + 0.5) * len(LEADS_8) // size, 0, len(LEADS_8) - 1).astype(int)
    return bands, (np.asarray(column) + 0.5) / size


def evidence_to_pixels(
    evidence: np.ndarray, waveform: np.ndarray, settings: ImageSettings | None = None
) -> np.ndarray:
    """Pixels inked by the samples that `evidence` marks, neighbours included: bool (size, size).

    `evidence` bool and `waveform` mV are both (8, samples): EcglibError where they are not.
    """
    settings = settings or ImageSettings()
    _check(waveform)
    if evidence.shape != waveform.shape:
        raise EcglibError(f"evidence has shape {evidence.shape}, waveform {waveform.shape}: must be the same")
    pieces, step = [], _step(waveform.shape[1], settings.size)
    for points, marked in zip(_trace_points(waveform, settings), evidence.astype(bool), strict=True):
        starts_and_ends = np.flatnonzero(np.diff(marked, prepend=False, append=False)).reshape(-1, 2)
        pieces += [points[start // step : end // step + 2] for start, end in starts_and_ends]
    return _ink(pieces, settings) < 255


def _trace_points(waveform: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """The points of the traces as (column, row) in OpenCV's fixed point: int32 (8, points, 2)."""
    n_leads, n_samples = waveform.shape
    drawn = np.append(np.arange(0, n_samples - 1, _step(n_samples, settings.size)), n_samples - 1)
    times = (drawn + 0.5) / n_samples
    rows, columns = lead_time_to_pixel(np.arange(n_leads)[:, None], times, settings, waveform[:, drawn])
    # Far outside the picture nothing shows, but a fixed-point number could overflow.
    rows = rows.clip(-10 * settings.size, 11 * settings.size)
    points = MARGIN + np.stack([np.broadcast_to(columns, rows.shape), rows], axis=-1)
    return np.rint(points * 2**SHIFT).astype(np.int32, order="C")  # OpenCV takes no other order


def _step(n_samples: int, size: int) -> int:
    """Draw every second sample where that leaves at least four a pixel: half the time, and no peak is lost,
    because a running median of three leaves none that is narrower than two samples."""
    return 2 if n_samples >= 8 * size else 1


def _ink(traces: list[np.ndarray], settings: ImageSettings) -> np.ndarray:
    """Draw anti-aliased polylines: uint8 (size, size). OpenCV does this in the calling thread alone."""
    canvas = np.full((settings.size + 2 * MARGIN, settings.size + 2 * MARGIN), 255, dtype=np.uint8)
    thickness = _thickness(settings.line_width * settings.size / MODEL_SIZE)
    cv2.polylines(canvas, traces, False, 0, thickness, cv2.LINE_AA, SHIFT)
    return canvas[MARGIN:-MARGIN, MARGIN:-MARGIN].copy()


def _thickness(width: float) -> int:
    """OpenCV's thickness whose ink is nearest to `width` pixels.

    Measured on OpenCV 5.0: its anti-aliased lines ink 1.4, 3.5, 5.5, 7.5 ... pixels at 1, 2, 3, 5 ...
    """
    if width < (1.4 + 3.5) / 2:
        return 1
    return max(2, 2 * round((width - 1.5) / 2) - 1)


def _check(waveform: np.ndarray) -> None:
    if waveform.ndim != 2 or len(waveform) != len(LEADS_8) or waveform.shape[1] < 2:
        raise EcglibError(
            f"waveform of shape {waveform.shape}: an image takes (8, samples), the leads {', '.join(LEADS_8)}"
        )
    if not np.isfinite(waveform).all():
        raise EcglibError(
            "waveform has missing (NaN) or infinite samples: none can be drawn; filter it first"
        )
