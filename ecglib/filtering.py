"""Waveforms as the paper prepares them: 500 Hz, Butterworth band-pass, median filter, the first 5 seconds.

The paper (Methods) states 500 Hz, 0.5-40 Hz, "then a median filter" and 2,500 samples; it leaves open the
orders, the kernel, the phase and which samples. Ours are the defaults of `FilterSettings`.
"""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import ndimage, signal

from ecglib.errors import EcglibError

# Filtered beyond the cut, so that the cut is no edge: a longer stretch changes nothing above 0.002 mV.
SUPPORT_S = 2.0
# Mirrored on each side; scipy's default of 15 samples leaves 0.22 mV of error in the last second.
PADDING_S = 2.0


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """How a waveform becomes the one that is drawn. EcglibError for a value that makes no filter."""

    sampling_rate: int = 500  # rate of the prepared waveform, Hz
    n_samples: int = 2500  # samples kept, from the first one on
    low_hz: float = 0.5  # lower edge of the band, Hz: takes out baseline wander
    high_hz: float = 40.0  # upper edge of the band, Hz: takes out mains hum and muscle noise
    order: int = 2  # Butterworth order, run forwards and backwards; each edge passes half the amplitude
    median_samples: int = 3  # kernel of the median filter, samples (odd; 1 = none)

    def __post_init__(self) -> None:
        if not 0 < self.low_hz < self.high_hz < self.sampling_rate / 2:
            raise EcglibError(
                f"low_hz={self.low_hz}, high_hz={self.high_hz}: must rise, above 0 and below half of "
                f"sampling_rate={self.sampling_rate}"
            )
        if self.median_samples < 1 or self.median_samples % 2 == 0:
            raise EcglibError(f"median_samples={self.median_samples}: must be odd and positive")
        for name in ("n_samples", "order"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name}={getattr(self, name)}: must be at least 1")

    @property
    def window_s(self) -> float:
        """How long the prepared waveform lasts, s."""
        return self.n_samples / self.sampling_rate


def preprocess(
    waveform: np.ndarray, sampling_rate: float, settings: FilterSettings | None = None
) -> np.ndarray:
    """Waveform (leads, samples) in mV at `sampling_rate` Hz -> (leads, n_samples) float32 mV.

    Resampled, band-passed without delay, median-filtered, cut. Where the recording goes on after the cut, two
    seconds of it support the filters there. EcglibError for missing samples or a waveform that is too short.
    """
    settings = settings or FilterSettings()
    _check(waveform, sampling_rate, settings)
    waveform = waveform[:, : math.ceil((settings.window_s + SUPPORT_S) * sampling_rate)]
    waveform = resample(waveform, sampling_rate, settings.sampling_rate)
    waveform = band_pass(waveform, settings)
    waveform = waveform[:, : settings.n_samples + settings.median_samples // 2]
    if settings.median_samples > 1:
        waveform = ndimage.median_filter(waveform, size=(1, settings.median_samples), mode="nearest")
    return np.ascontiguousarray(waveform[:, : settings.n_samples], dtype=np.float32)


def resample(waveform: np.ndarray, sampling_rate: float, target_rate: float) -> np.ndarray:
    """Waveform (leads, samples) from one rate to another, Hz: polyphase filter, edges mirrored, no delay."""
    ratio = Fraction(target_rate / sampling_rate).limit_denominator(1000)
    if abs(float(ratio) * sampling_rate - target_rate) > 1e-6 * target_rate:
        raise EcglibError(
            f"sampling rate {sampling_rate} Hz: no ratio of small numbers to {target_rate} Hz; resample it"
        )
    if ratio == 1:
        return waveform
    up, down = ratio.numerator, ratio.denominator
    window = _antialias(max(up, down)).astype(np.result_type(waveform, np.float32))
    return signal.resample_poly(waveform, up, down, axis=1, padtype="reflect", window=window)


def band_pass(waveform: np.ndarray, settings: FilterSettings) -> np.ndarray:
    """Zero-phase Butterworth on (leads, samples) at `settings.sampling_rate`, float64.

    The amplitude at f is multiplied by |H(f)|^2, where H is the filter of `settings.order`.
    """
    sections = _sections(settings.order, settings.low_hz, settings.high_hz, settings.sampling_rate)
    padding = min(round(PADDING_S * settings.sampling_rate), waveform.shape[1] - 1)
    return signal.sosfiltfilt(sections, waveform, axis=1, padtype="even", padlen=padding)


@functools.cache
def _antialias(factor: int) -> Any:
    """scipy's own choice for resample_poly, which designs it anew in each call."""
    kaiser: Any = ("kaiser", 5.0)
    return signal.firwin(20 * factor + 1, 1 / factor, window=kaiser)


@functools.cache
def _sections(order: int, low_hz: float, high_hz: float, sampling_rate: float) -> Any:
    return signal.butter(order, (low_hz, high_hz), "bandpass", fs=sampling_rate, output="sos")


def _check(waveform: np.ndarray, sampling_rate: float, settings: FilterSettings) -> None:
    if waveform.ndim != 2 or not waveform.size:
        raise EcglibError(f"waveform of shape {waveform.shape}: must be (leads, samples), not empty")
    if not 0 < sampling_rate < np.inf:
        raise EcglibError(f"sampling rate {sampling_rate} Hz: must be above 0")
    if not np.isfinite(waveform).all():
        lead = int(np.argmin(np.isfinite(waveform).all(axis=1)))
        raise EcglibError(
            f"waveform has missing (NaN) or infinite samples in lead row {lead}; leave this record out"
        )
    needed_s, given_s = settings.window_s, waveform.shape[1] / sampling_rate
    if given_s < needed_s:
        raise EcglibError(
            f"waveform lasts {given_s:g} s: must be at least {needed_s:g} s; leave this record out"
        )
