"""What a cardiologist measures on an ECG: rate, intervals and amplitudes of the median beat.

They describe ECGs of any source, and serve as a plain baseline beside the networks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from ecglib.beats import find_r_peaks
from ecglib.errors import EcglibError
from ecglib.filtering import resample
from ecglib.records import LEADS_8, LEADS_12, derive_limb_leads

RATE_HZ = 500  # every waveform is measured at this rate
_BEFORE, _AFTER = 150, 300  # samples of the median beat before and after R
_QRS_SHARE = 0.03  # of the fastest change; set on LUDB's annotations
_REST = 2.0  # times the speed at rest; likewise
_CALM = 6  # samples that must be slow before QRS begins: 12 ms, longer than the turning point of a wave
GROUPS = {
    "anterior": ("V1", "V2", "V3", "V4"),
    "inferior": ("II", "III", "aVF"),
    "lateral": ("I", "aVL", "V5", "V6"),
}
MEASUREMENTS = (
    "heart_rate_bpm",
    "qrs_duration_ms",
    "qt_ms",
    "qtc_ms",
    "qrs_axis_deg",
    "r_v1_mv",
    "s_v1_mv",
    "s_v2_mv",
    "r_v3_mv",
    "r_v4_mv",
    "r_v5_mv",
    "r_v6_mv",
    "r_i_mv",
    "r_avl_mv",
    "sokolow_lyon_mv",
    "cornell_mv",
    "limb_voltage_mv",
    "st_anterior_mv",
    "st_inferior_mv",
    "st_lateral_mv",
    "t_anterior_mv",
    "t_inferior_mv",
    "t_lateral_mv",
    "q_inferior_mv",
    "q_lateral_mv",
)


@dataclass(frozen=True)
class Delineation:
    """The median beat (12 leads, samples) of an ECG in mV at 500 Hz over its baseline, and its boundaries.

    Boundaries are samples of the beat, common to all leads: R, start and end of QRS, end of T. Waves by lead
    in mV: q, s and the T wave's largest deviation, r (q, r, s at least 0), q_ms (how long Q lasts), st_j (at
    the J point) and st_60 (60 ms later).
    """

    beat: np.ndarray
    rate_bpm: float
    qrs_on: int
    qrs_off: int
    t_off: int
    q: dict[str, float]
    r: dict[str, float]
    s: dict[str, float]
    t: dict[str, float]
    q_ms: dict[str, float]
    st_j: dict[str, float]
    st_60: dict[str, float]

    @property
    def qrs_duration_ms(self) -> float:
        """From the earliest start to the latest end in any lead."""
        return (self.qrs_off - self.qrs_on) * 1000 / RATE_HZ


def measure(waveform: np.ndarray, sampling_rate: float) -> dict[str, float]:
    """MEASUREMENTS of a waveform in mV, (8, samples) in the order of LEADS_8 or (12, samples) of LEADS_12.

    st_* are means over a group of leads 60 ms after the J point; t_* means of the T waves' largest
    deviations; q_* the deepest Q; limb_voltage the mean of R + S over the limb leads; qtc Fridericia's; the
    axis follows from the areas of QRS in I and aVF. NaN only for intervals and axis that cannot be told: no
    T wave above the noise, or no net area. EcglibError where no beat is found or a sample is missing.
    """
    found = delineate(waveform, sampling_rate)
    qt_ms = (found.t_off - found.qrs_on) * 1000 / RATE_HZ if found.t_off > 0 else np.nan
    row = {
        "heart_rate_bpm": found.rate_bpm,
        "qrs_duration_ms": found.qrs_duration_ms,
        "qt_ms": qt_ms,
        "qtc_ms": qt_ms / np.cbrt(60.0 / found.rate_bpm),
        "qrs_axis_deg": _axis_deg(found),
    }
    row |= {f"r_{lead.lower()}_mv": found.r[lead] for lead in ("V1", "V3", "V4", "V5", "V6", "I", "aVL")}
    row |= {f"s_{lead.lower()}_mv": found.s[lead] for lead in ("V1", "V2")}
    row["sokolow_lyon_mv"] = found.s["V1"] + max(found.r["V5"], found.r["V6"])
    row["cornell_mv"] = found.r["aVL"] + found.s["V3"]
    limb = LEADS_12[:6]
    row["limb_voltage_mv"] = float(
        np.mean([found.r[lead] + max(found.s[lead], found.q[lead]) for lead in limb])
    )
    for group, leads in GROUPS.items():
        row[f"st_{group}_mv"] = float(np.mean([found.st_60[lead] for lead in leads]))
        row[f"t_{group}_mv"] = float(np.mean([found.t[lead] for lead in leads]))
    for group in ("inferior", "lateral"):
        row[f"q_{group}_mv"] = max(found.q[lead] for lead in GROUPS[group])
    return {name: float(row[name]) for name in MEASUREMENTS}


def measure_many(waveforms: Iterable[np.ndarray], sampling_rate: float) -> pd.DataFrame:
    """`measure` of each waveform: one row each, one column a measurement."""
    rows = [measure(waveform, sampling_rate) for waveform in waveforms]
    return pd.DataFrame(rows, columns=pd.Index(MEASUREMENTS))


def delineate(waveform: np.ndarray, sampling_rate: float) -> Delineation:
    """Find the beats of a waveform, as `measure` takes it, and the waves of the median beat."""
    waveform = _eight_leads(waveform)
    waveform = resample(waveform, sampling_rate, RATE_HZ)
    waveform = waveform - np.median(waveform, axis=1, keepdims=True)
    peaks = find_r_peaks(waveform, RATE_HZ)
    inside = peaks[(peaks >= _BEFORE) & (peaks + _AFTER <= waveform.shape[1])]
    if len(peaks) < 2 or not len(inside):
        raise EcglibError("no two heart beats found in the waveform; leave this record out")
    interval = float(np.median(np.diff(peaks)))
    cut = waveform[:, inside[:, None] + np.arange(-_BEFORE, _AFTER)]
    cut = cut - cut[:, :, _BEFORE - 45 : _BEFORE - 30].mean(axis=2, keepdims=True)
    beat = np.median(cut, axis=1)
    qrs_on, qrs_off = _qrs(beat)
    beat = beat - np.median(beat[:, max(qrs_on - 12, 0) : qrs_on - 2], axis=1, keepdims=True)
    t_off = _t_end(beat, qrs_off, min(_AFTER, round(0.75 * interval)) + _BEFORE)
    return _waves(_twelve_leads(beat), 60.0 * RATE_HZ / interval, qrs_on, qrs_off, t_off)


def _eight_leads(waveform: np.ndarray) -> np.ndarray:
    orders: dict[int, Sequence[str]] = {8: LEADS_8, 12: LEADS_12}
    if waveform.ndim != 2 or len(waveform) not in orders:
        raise EcglibError(f"waveform of shape {waveform.shape}: must be (8 or 12 leads, samples)")
    if not np.isfinite(waveform).all():
        raise EcglibError("waveform has missing (NaN) or infinite samples; leave this record out")
    order = orders[len(waveform)]
    return np.asarray(waveform, np.float32)[[order.index(lead) for lead in LEADS_8]]


def _twelve_leads(beat: np.ndarray) -> np.ndarray:
    leads = dict(zip(LEADS_8, beat, strict=True)) | derive_limb_leads(beat[0], beat[1])
    return np.stack([leads[lead] for lead in LEADS_12])


def _qrs(beat: np.ndarray) -> tuple[int, int]:
    """Start and end of QRS in a median beat (8, samples): where the change over all leads becomes QRS-fast.

    The threshold lies a little over the speed of the beat at rest, between P and QRS and in the ST segment.
    """
    speed = np.sqrt((ndimage.gaussian_filter1d(beat, 2.0, axis=1, order=1) ** 2).sum(axis=0))
    peak = _BEFORE - 40 + int(speed[_BEFORE - 40 : _BEFORE + 50].argmax())
    top = speed[peak]
    rest = float(np.quantile(speed[_BEFORE - 75 : _BEFORE + 200], 0.3))
    threshold = max(_QRS_SHARE * top, min(_REST * rest, 0.2 * top))
    onset, offset = max(_BEFORE - 65, 3), min(_BEFORE + 80, len(speed) - 3)
    before = np.flatnonzero(_calm(speed[onset:peak], threshold))
    after = np.flatnonzero(_calm(speed[peak:offset][::-1], threshold))
    start = onset + int(before[-1]) + 1 if len(before) else onset
    stop = offset - 1 - int(after[-1]) if len(after) else offset
    return start, stop


def _calm(speed: np.ndarray, threshold: float) -> np.ndarray:
    """Whether a sample ends a run of `_CALM` slow ones."""
    slow = np.cumsum(np.concatenate([[0], speed < threshold]))
    calm = np.zeros(len(speed), bool)
    calm[_CALM - 1 :] = slow[_CALM:] - slow[:-_CALM] == _CALM
    return calm


def _t_end(beat: np.ndarray, qrs_off: int, stop: int) -> int:
    """End of T by the tangent at its steepest descent in the root mean square of all leads; 0 if no T."""
    start = qrs_off + 30
    size = np.sqrt((ndimage.gaussian_filter1d(beat, 4.0, axis=1)[:, start:stop] ** 2).mean(axis=0))
    if len(size) < 40:
        return 0
    top = int(size[: len(size) - 20].argmax())
    rest = float(np.quantile(size[top:], 0.1))
    if size[top] < 0.03 or size[top] < 1.5 * rest:
        return 0
    slope = np.diff(size[top:])
    steepest = int(slope[:60].argmin())
    if slope[steepest] >= 0:
        return 0
    return start + top + steepest + round((size[top + steepest] - rest) / -float(slope[steepest]))


def _waves(beat: np.ndarray, rate_bpm: float, qrs_on: int, qrs_off: int, t_off: int) -> Delineation:
    qrs = beat[:, qrs_on : qrs_off + 1]
    qrs = qrs - qrs[:, -1:] * np.linspace(0, 1, qrs.shape[1])  # a raised J point is no R wave
    top = qrs.argmax(axis=1)
    r = np.maximum(qrs.max(axis=1), 0.0)
    before = np.arange(qrs.shape[1]) < top[:, None]
    q = np.maximum(-np.where(before, qrs, 0.0).min(axis=1), 0.0)
    s = np.maximum(-np.where(before, 0.0, qrs).min(axis=1), 0.0)
    small = r < np.maximum(
        0.05, 0.05 * -qrs.min(axis=1)
    )  # no R wave: the whole is a QS, which counts as both
    q, s = np.where(small, -qrs.min(axis=1), q), np.where(small, -qrs.min(axis=1), s)
    negative = np.where(small[:, None], qrs < -0.03, before & (qrs < -0.03)).sum(axis=1) * 1000 / RATE_HZ
    end = min(t_off if t_off > qrs_off + 60 else _BEFORE + 230, beat.shape[1])
    t_part = beat[:, qrs_off + 40 : end]
    t = np.take_along_axis(t_part, np.abs(t_part).argmax(axis=1)[:, None], axis=1)[:, 0]

    def by_lead(values: np.ndarray) -> dict[str, float]:
        return dict(zip(LEADS_12, values.astype(float).tolist(), strict=True))

    return Delineation(
        beat=beat,
        rate_bpm=rate_bpm,
        qrs_on=qrs_on,
        qrs_off=qrs_off,
        t_off=t_off,
        q=by_lead(q),
        r=by_lead(r),
        s=by_lead(s),
        t=by_lead(t),
        q_ms=by_lead(negative),
        st_j=by_lead(beat[:, qrs_off : qrs_off + 4].mean(axis=1)),
        st_60=by_lead(beat[:, qrs_off + 28 : qrs_off + 33].mean(axis=1)),
    )


def _axis_deg(found: Delineation) -> float:
    """Frontal axis from the net areas of QRS in I and aVF; aVF is scaled to I's length."""
    area = found.beat[:, found.qrs_on : found.qrs_off + 1].sum(axis=1)
    left, down = float(area[LEADS_12.index("I")]), float(area[LEADS_12.index("aVF")]) * 2 / np.sqrt(3)
    if max(abs(left), abs(down)) < 1e-3:
        return np.nan
    return float(np.degrees(np.arctan2(down, left)))
