"""Heart beats in a waveform: where they are, and weights that follow the time since each R peak."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from ecglib.errors import EcglibError


def find_r_peaks(waveform: np.ndarray, sampling_rate: float) -> np.ndarray:
    """R peaks (samples) of a waveform (leads, samples): steepest over all leads, then the tallest nearby.

    Steepness is the root mean square slope of all leads over 80 ms, the length of a QRS, of a waveform
    smoothed over 10 ms; beats are at least 300 ms apart. The tallest point is sought within 50 ms.
    """
    smooth = uniform_filter1d(waveform, max(round(0.01 * sampling_rate), 1), axis=1)
    slope = np.square(np.diff(smooth, axis=1, prepend=smooth[:, :1])).sum(axis=0)
    steep = np.sqrt(np.maximum(uniform_filter1d(slope, max(round(0.08 * sampling_rate), 1)), 0.0))
    rough, _ = find_peaks(steep, distance=round(0.3 * sampling_rate), height=0.5 * np.quantile(steep, 0.98))
    if not len(rough):
        return rough
    size = _size(waveform)
    reach = round(0.05 * sampling_rate)
    nearby = np.clip(rough[:, None] + np.arange(-reach, reach), 0, len(size) - 1)
    return np.unique(nearby[np.arange(len(rough)), size[nearby].argmax(axis=1)])


@dataclass(frozen=True)
class Beats:
    """Where the heart beats: R peaks (samples); for every sample the time since its beat's R peak, in s.

    A beat lasts from 0.35 of the interval before its R peak to 0.65 after it; t_peak is the delay of the
    T wave's peak in s.
    """

    peaks: np.ndarray
    since_r: np.ndarray
    t_peak: float
    sampling_rate: float

    @classmethod
    def find(cls, waveform: np.ndarray, sampling_rate: float) -> "Beats":
        """Find the beats of a waveform (leads, samples); EcglibError where there are fewer than two."""
        peaks = find_r_peaks(waveform, sampling_rate)
        if len(peaks) < 2:
            raise EcglibError("no heart beat found in a generated ECG; take another seed")
        t_peak = _t_delay(_size(waveform), peaks, sampling_rate)
        return cls.at(peaks, waveform.shape[1], t_peak, sampling_rate)

    @classmethod
    def at(cls, peaks: np.ndarray, n_samples: int, t_peak: float, sampling_rate: float) -> "Beats":
        """Beats whose R peaks (samples, at least two) are known."""
        beats = with_neighbours(peaks, n_samples)
        bounds = beats[1:] - 0.35 * np.diff(beats)
        samples = np.arange(n_samples)
        since_r = (samples - beats[np.searchsorted(bounds, samples, side="right")]) / sampling_rate
        return cls(peaks, since_r.astype(np.float32), t_peak, sampling_rate)

    def window(self, start_s: float, stop_s: float, edge_s: float, fall_s: float | None = None) -> np.ndarray:
        """Weights (samples,), 1 between two times after R; they rise over edge_s and fall over fall_s."""
        rise = (self.since_r - start_s) / edge_s + 1.0
        fall = (stop_s - self.since_r) / (fall_s or edge_s) + 1.0
        ramp = np.clip(np.minimum(rise, fall), 0.0, 1.0)
        return ramp * ramp * (3.0 - 2.0 * ramp)

    def bump(self, centre_s: float, width_s: float, after_s: float | None = None) -> np.ndarray:
        """Gaussian weights (samples,) around a time after R; standard deviations before and after it."""
        away = self.since_r - centre_s
        if after_s is not None:
            return np.exp(-0.5 * (away / np.where(away < 0, np.float32(width_s), np.float32(after_s))) ** 2)
        return np.exp(-0.5 * (away / width_s) ** 2)

    def baseline(self, waveform: np.ndarray) -> np.ndarray:
        """The level (leads, samples) between P and QRS, joined by straight lines from beat to beat."""
        n = waveform.shape[1]
        start, stop = round(-0.08 * self.sampling_rate), round(-0.056 * self.sampling_rate)
        before = np.clip(self.peaks[:, None] + np.arange(start, stop), 0, n - 1)
        levels = waveform[:, before].mean(axis=2)
        place = np.interp(np.arange(n), self.peaks, np.arange(len(self.peaks)))
        return at_samples(levels, place)


def with_neighbours(peaks: np.ndarray, n_samples: int) -> np.ndarray:
    """R peaks with one more on each side: the first T and the last P wave belong to beats outside."""
    return np.array([min(2 * peaks[0] - peaks[1], 0), *peaks, max(2 * peaks[-1] - peaks[-2], n_samples)])


def at_samples(waveform: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a waveform (leads, samples) at places between samples, by straight lines; clamped."""
    places = np.clip(places, 0, waveform.shape[1] - 1)
    left = np.minimum(places.astype(np.int64), max(waveform.shape[1] - 2, 0))
    share = (places - left).astype(waveform.dtype)
    right = np.minimum(left + 1, waveform.shape[1] - 1)
    return waveform[:, left] * (1 - share) + waveform[:, right] * share


def _size(waveform: np.ndarray) -> np.ndarray:
    """Distance from each lead's median, summed over leads; every tenth sample is enough for the median."""
    return np.abs(waveform - np.median(waveform[:, ::10], axis=1, keepdims=True)).sum(axis=0)


def _t_delay(size: np.ndarray, peaks: np.ndarray, sampling_rate: float) -> float:
    """Delay of the mean beat's T peak, looked for between 0.16 and 0.40 s after R, in s."""
    start, stop = round(0.16 * sampling_rate), round(0.40 * sampling_rate)
    inside = peaks[peaks + stop < len(size)]
    search = (inside if len(inside) else peaks[:1])[:, None] + np.arange(start, stop)
    return (start + int(size[np.minimum(search, len(size) - 1)].mean(axis=0).argmax())) / sampling_rate
