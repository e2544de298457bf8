"""What is wrong with a waveform, by reason: nothing is left out, and nothing is let in, in silence.

Only the eight leads that are drawn are judged, over the whole record; stored III, aVR, aVL and aVF serve to
check Einthoven's law. The thresholds were set on PTB-XL (docs/decisions.md).
"""

from dataclasses import dataclass, fields

import numpy as np

from ecglib.errors import EcglibError
from ecglib.records import LEADS_8, LIMB_LEADS, Record, derive_limb_leads

UNUSABLE = ("missing lead", "too short", "missing samples", "all leads flat")  # nothing honest can be drawn
DOUBTFUL = ("flat lead", "saturated", "amplitude", "Einthoven")  # counted, drawn and used
FAULTS = UNUSABLE + DOUBTFUL
WINDOW_S = 5.0  # the part of a record that the paper draws, s
_RAIL = 0.01  # of a lead's peak to peak: resampling rounds the corners of a clipped trace by as much


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """From where on a waveform is called faulty. EcglibError for a threshold that is not above 0."""

    flat_mv: float = 0.05  # a lead that moves by less is flat, mV
    still_s: float = 0.6  # a lead that stands still for as long is flat too, s
    saturated_mv: float = 1.0  # only a trace that stands still at least so far from zero is saturated, mV
    saturated_s: float = 0.15  # and only if it stands still at its extremes for as long in all, s
    amplitude_mv: float = 12.0  # a lead with a larger range is implausible, mV; real beats reach 11
    einthoven_mv: float = 0.05  # a stored limb lead that differs from I and II by more breaks the law, mV

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise EcglibError(f"{field.name}={getattr(self, field.name)}: must be above 0")


@dataclass(frozen=True)
class Quality:
    """What was measured on one record, a figure or two for each fault; NaN where there was none."""

    missing_leads: int  # of the eight
    lacking_s: float  # by which the record is shorter than the window, s
    missing_samples: int  # NaN or infinite
    most_moving_mv: float  # range in the window of the lead that moves most, mV
    least_moving_mv: float  # range of the lead that moves least, mV
    still_s: float  # longest time that a lead stands still, s
    saturated_s: float  # longest time that a lead stands still at its extremes, far from zero, s
    amplitude_mv: float  # largest range of a lead, mV
    einthoven_mv: float  # largest difference of a stored limb lead from what I and II make it, mV

    def faults(self, settings: QualitySettings) -> tuple[str, ...]:
        """The reasons that hold, in the order of FAULTS."""
        all_flat = self.most_moving_mv < settings.flat_mv
        flat = self.least_moving_mv < settings.flat_mv or self.still_s >= settings.still_s
        found = (
            self.missing_leads > 0,
            self.lacking_s > 0,
            self.missing_samples > 0,
            all_flat,
            flat and not all_flat,
            self.saturated_s >= settings.saturated_s,
            self.amplitude_mv > settings.amplitude_mv,
            self.einthoven_mv > settings.einthoven_mv,
        )
        return tuple(reason for reason, holds in zip(FAULTS, found, strict=True) if holds)


def faults(record: Record, settings: QualitySettings, window_s: float = WINDOW_S) -> tuple[str, ...]:
    """What is wrong with a record whose first `window_s` seconds are to be drawn: reasons of FAULTS."""
    return measure(record, settings, window_s).faults(settings)


def usable(reasons: tuple[str, ...]) -> bool:
    """Whether a record with these faults can be drawn honestly."""
    return set(UNUSABLE).isdisjoint(reasons)


def measure(record: Record, settings: QualitySettings, window_s: float = WINDOW_S) -> Quality:
    """Measure what `faults` judges."""
    stored = {lead.lower(): row for row, lead in enumerate(record.leads)}
    rows = [stored[lead.lower()] for lead in LEADS_8 if lead.lower() in stored]
    rate, whole, finite = record.sampling_rate, record.waveform, np.isfinite(record.waveform)
    if not finite.all():
        whole = np.where(finite, whole, np.nan)
    waveform = whole[rows]
    highest, lowest = _extremes(waveform)
    drawn_highest, drawn_lowest = _extremes(waveform[:, : round(window_s * rate)])
    ranges = highest - lowest
    lead, level, length = _still_stretches(waveform)
    near = _RAIL * ranges[lead]
    at_rail = (level >= highest[lead] - near) | (level <= lowest[lead] + near)
    clipped = np.where(at_rail & (np.abs(level) >= settings.saturated_mv), length, 0)
    return Quality(
        missing_leads=len(LEADS_8) - len(rows),
        lacking_s=max(0.0, window_s - waveform.shape[1] / rate),
        missing_samples=int(np.count_nonzero(~finite[rows])),
        most_moving_mv=_most(drawn_highest - drawn_lowest),
        least_moving_mv=-_most(-ranges),
        still_s=int(length.max(initial=0)) / rate,
        saturated_s=float(np.bincount(lead, clipped, minlength=1).max()) / rate,
        amplitude_mv=_most(ranges),
        einthoven_mv=_einthoven(whole, stored),
    )


def _extremes(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest and lowest value of each lead; NaN counts for nothing."""
    if not waveform.size:
        return np.full(len(waveform), np.nan), np.full(len(waveform), np.nan)
    return np.fmax.reduce(waveform, axis=1), np.fmin.reduce(waveform, axis=1)


def _most(values: np.ndarray) -> float:
    """The largest value, NaN counting for nothing; NaN where there is none."""
    return float(np.fmax.reduce(values, axis=None, initial=np.nan))


def _still_stretches(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lead, level in mV and length of each stretch of at least three equal samples: (leads, samples) -> (n,).

    Two are often chance, and most of the work is to look at stretches.
    """
    equal = waveform[:, 1:] == waveform[:, :-1]
    third = np.zeros_like(equal)  # equal to the two before; the last column parts the leads
    np.logical_and(equal[:, 1:], equal[:, :-1], out=third[:, :-1])
    found = np.flatnonzero(third)
    begins = np.flatnonzero(np.diff(found, prepend=-2) != 1)
    length = np.diff(begins, append=len(found)) + 2
    lead, sample = np.divmod(found[begins], max(1, waveform.shape[1] - 1))
    return lead, waveform[lead, sample], length


def _einthoven(waveform: np.ndarray, stored: dict[str, int]) -> float:
    limb = [lead for lead in LIMB_LEADS if lead.lower() in stored]
    if not limb or not {"i", "ii"} <= stored.keys():
        return float("nan")
    derived = derive_limb_leads(waveform[stored["i"]], waveform[stored["ii"]])
    return max(_most(np.abs(waveform[stored[lead.lower()]] - derived[lead])) for lead in limb)
