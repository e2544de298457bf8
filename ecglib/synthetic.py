"""The embedded cohort: made ECGs of five sites, with the signs of three outcomes put where an ECG shows them.

The beats come from the Pulse2Pulse generator (Thambawita et al., Sci. Rep. 11, 21896, 2021) in the wheel
`deepfake-ecg`, trained on 7,233 people with normal or nearly normal ECGs. The functions in `_SIGNS` put
disease in; evidence is wherever one of them changed the waveform, so it cannot differ from what was done.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.signal import find_peaks

from ecglib.errors import EcglibError
from ecglib.records import LEADS_8

Rows = Sequence[int] | np.ndarray  # positions in a table of records
Person = dict[str, Any]  # a row of the cohort
OUTCOMES = ("low_lvef", "hcm", "stemi")
EXTERNAL_SITE = "E"
SAMPLING_RATE = 500.0
N_SAMPLES = 5000
SIGN_MV = 0.025  # a change smaller than a quarter of a small square of ECG paper is no evidence
_BATCH = 4  # records made at once: always the same neighbours, so that the bytes never depend on the request
_PATIENT_SHARE = 0.98  # of the generator's input that a patient's ECGs have in common: they look related
_MIMICS = {
    "low_lvef": 0.25,
    "hcm": 0.35,
    "stemi": 0.2,
}  # share of the others who show the sign too, mostly faint
_ECGS_PER_PATIENT = (0.72, 0.18, 0.08, 0.02)  # shares of patients with 1, 2, 3 and 4 ECGs: 1.4 in the mean


@dataclass(frozen=True)
class Site:
    """How a hospital records, and whom it sees."""

    share: float  # of all patients
    gain: float  # of the recorder, 1 = exact
    wander_mv: float  # amplitude of the baseline wander
    hum_mv: float  # amplitude of the powerline hum at 60 Hz
    noise_mv: float  # standard deviation of the muscle noise
    low_lvef: float = 0.18  # share of patients (paper, Table 1)
    hcm: float = 0.38  # share of patients (paper, Table 1)
    stemi: float = 0.057  # share of ECGs (paper, Table 1)
    age: float = 60.0  # mean age in years


SITES = {
    "A": Site(0.28, 1.00, 0.04, 0.010, 0.008),
    "B": Site(0.24, 0.97, 0.06, 0.020, 0.010),
    "C": Site(0.21, 1.03, 0.05, 0.005, 0.014),
    "D": Site(0.19, 1.00, 0.08, 0.015, 0.010),
    EXTERNAL_SITE: Site(0.08, 1.12, 0.11, 0.030, 0.020, low_lvef=0.28, hcm=0.30, stemi=0.08, age=66.0),
}

# ST deviation of each lead of LEADS_8 as a share of the largest: elevation over the injured wall, depression
# opposite. III, aVF and aVL follow from I and II: inferior injury lifts III most and lowers aVL.
TERRITORIES = {
    "anterior": (0.0, -0.25, 0.5, 0.9, 1.0, 0.8, 0.4, 0.2),
    "inferior": (-0.4, 1.0, 0.0, -0.45, -0.35, -0.1, 0.0, 0.1),
    "lateral": (0.8, -0.1, -0.3, -0.3, 0.0, 0.4, 0.9, 1.0),
}


def draw_cohort(n_patients: int, seed: int) -> pd.DataFrame:
    """Draw patients and their ECGs: one row per ECG, those of a patient together.

    Columns: record_id, patient_id, patient (int), site, age (years), sex, voltage (the patient's amplitude,
    1 = usual), for each outcome the label (int8) and `<outcome>_severity` (0..1, how strong its sign is), and
    territory (of the ST deviation, if any). Low LVEF and HCM belong to the patient, STEMI to the ECG.
    """
    if n_patients < 50:
        raise EcglibError(f"n_patients={n_patients}: five sites and ten folds need at least 50; raise it")
    rng = np.random.default_rng([seed, 0])
    patients = _draw_patients(n_patients, rng)
    n_ecgs = 1 + rng.choice(len(_ECGS_PER_PATIENT), size=len(patients), p=_ECGS_PER_PATIENT)
    for outcome in ("low_lvef", "hcm"):
        share = patients.site.map({name: getattr(site, outcome) for name, site in SITES.items()})
        patients[outcome] = _mark(share, order=n_ecgs, rng=rng)
        patients[f"{outcome}_severity"] = _severity(patients[outcome].to_numpy(), _MIMICS[outcome], rng)
    cohort = patients.loc[np.repeat(patients.index, n_ecgs)].reset_index(drop=True)
    number = cohort.groupby("patient").cumcount() + 1
    cohort.insert(0, "record_id", cohort.patient_id + "-" + number.astype(str))
    share = cohort.site.map({name: site.stemi for name, site in SITES.items()})
    cohort["stemi"] = _mark(share, order=rng.random(len(cohort)), rng=rng)
    cohort["stemi_severity"] = _severity(cohort.stemi.to_numpy(), _MIMICS["stemi"], rng)
    cohort["territory"] = rng.choice(list(TERRITORIES), len(cohort))
    return cohort.astype(dict.fromkeys(OUTCOMES, np.int8))


def _draw_patients(n: int, rng: np.random.Generator) -> pd.DataFrame:
    last_of_site = np.rint(n * np.cumsum([site.share for site in SITES.values()]))
    site = np.array(list(SITES))[np.searchsorted(last_of_site, np.arange(n), side="right")]
    mean_age = [SITES[name].age for name in site]
    return pd.DataFrame(
        {
            "patient": np.arange(n),
            "patient_id": [f"{name}{number:05d}" for number, name in enumerate(site)],
            "site": site,
            "age": rng.normal(mean_age, 14.0).clip(18.0, 95.0).round(),
            "sex": rng.choice(["male", "female"], n),
            "voltage": rng.lognormal(0.0, 0.2, n),
        }
    )


def _mark(share: pd.Series, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark rows with probability `share`, evenly along `order` within a share: systematic sampling.

    The number marked differs from the expected one by less than one in every stretch of the order.
    """
    ranked = np.lexsort((rng.random(len(share)), order, share))
    expected = np.cumsum(share.to_numpy()[ranked]) + rng.random()
    marks = np.zeros(len(share), np.int8)
    marks[ranked] = np.diff(np.floor(expected), prepend=0.0) > 0
    return marks


def _severity(label: np.ndarray, mimics: float, rng: np.random.Generator) -> np.ndarray:
    """Strength of a sign: any in the ill, 0 in the others but for the mimics, who are fainter in the mean."""
    ill = rng.beta(2.0, 2.0, len(label))
    mimic = (rng.random(len(label)) < mimics) * rng.beta(2.0, 4.0, len(label))
    return np.where(label == 1, ill, mimic)


def waveforms(cohort: pd.DataFrame, rows: Rows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the ECGs at the positions `rows` of a cohort from draw_cohort, always the same bytes for a row.

    Returns waveforms, float32 (n, 8, 5000) in mV at 500 Hz, leads LEADS_8, and evidence, uint8 of that shape:
    bit k is set where the sign of OUTCOMES[k] is, in the ECGs that have this outcome.
    """
    positions = np.asarray(rows, dtype=np.int64)
    made = np.empty((len(positions), len(LEADS_8), N_SAMPLES), np.float32)
    evidence = np.empty(made.shape, np.uint8)
    for batch in np.unique(positions // _BATCH):
        asked = np.flatnonzero(positions // _BATCH == batch)
        healthy = _healthy(cohort, np.arange(batch * _BATCH, (batch + 1) * _BATCH), seed)
        for place in asked:
            row = positions[place]
            rng = np.random.default_rng([seed, 2, row])
            made[place], evidence[place] = _record(healthy[row % _BATCH], cohort.iloc[row].to_dict(), rng)
    return made, evidence


def _healthy(cohort: pd.DataFrame, rows: np.ndarray, seed: int) -> np.ndarray:
    """Beats without disease, float64 (n, 8, 5000) in mV; rows past the cohort's end fill the last batch."""
    import torch

    patients = cohort.patient.to_numpy()
    noise = [_latent(seed, int(patients[min(row, len(patients) - 1)]), int(row)) for row in rows]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of summation, so the bytes, could depend on it
    try:
        with torch.inference_mode():
            output = _generator()(torch.from_numpy(np.stack(noise)))
    finally:
        torch.set_num_threads(threads)
    return output.numpy().astype(np.float64) * 6.0  # the output times 6,000 is in microvolts


def _latent(seed: int, patient: int, row: int) -> np.ndarray:
    """The generator's input, uniform in (-1, 1), float32 (8, 5000): the patient's, partly renewed."""
    shape = (len(LEADS_8), N_SAMPLES)
    own = np.random.default_rng([seed, 1, patient]).random(shape, np.float32)
    rng = np.random.default_rng([seed, 3, row])
    renewed = rng.random(shape, np.float32) >= _PATIENT_SHARE
    own[renewed] = rng.random(int(renewed.sum()), np.float32)
    return 2 * own - 1


@cache
def _generator() -> Any:
    """The Pulse2Pulse generator with the weights from its wheel."""
    import deepfakeecg
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it names an initialiser that torch has renamed
        generator = deepfakeecg.Generator()
    weights = Path(deepfakeecg.__file__).parent / "checkpoints" / "g_stat.pt"
    generator.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["stat_dict"])
    return generator.eval().requires_grad_(False)


def _record(healthy: np.ndarray, person: Person, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put the patient's signs into healthy beats (8, n), then record it as the site does."""
    waveform = healthy * person["voltage"]
    evidence = np.zeros(waveform.shape, np.uint8)
    beats = Beats.find(waveform)
    for bit, outcome in enumerate(OUTCOMES):
        if person[f"{outcome}_severity"] > 0.0:
            changed = _SIGNS[outcome](waveform, beats, person)
            if person[outcome]:
                evidence |= (np.abs(changed - waveform) > SIGN_MV).astype(np.uint8) << bit
            waveform = changed
    return _recorded(waveform, SITES[person["site"]], rng).astype(np.float32), evidence


@dataclass(frozen=True)
class Beats:
    """Where the heart beats: R peaks (samples); for every sample the time since its beat's R peak, in s.

    A beat lasts from 0.35 of the interval before its R peak to 0.65 after it; t_peak is the delay of the
    T wave's peak in s.
    """

    peaks: np.ndarray
    since_r: np.ndarray
    t_peak: float

    @classmethod
    def find(cls, waveform: np.ndarray) -> "Beats":
        """Find R peaks by the slope over all leads (leads, samples), then the tallest point within 50 ms."""
        n = waveform.shape[1]
        slope = np.abs(np.diff(waveform, axis=1, prepend=waveform[:, :1])).sum(axis=0)
        energy = np.convolve(slope, np.ones(40) / 40, mode="same")  # over 80 ms, a QRS
        rough, _ = find_peaks(energy, distance=150, height=0.5 * np.quantile(energy, 0.98))
        size = np.abs(waveform - np.median(waveform, axis=1, keepdims=True)).sum(axis=0)
        peaks = np.array([(a := max(r - 25, 0)) + int(size[a : r + 25].argmax()) for r in rough], dtype=int)
        if len(peaks) < 2:
            raise EcglibError("no heart beat found in a generated ECG; take another seed")
        # The first T wave and the last P wave belong to beats outside the record.
        beats = np.array([min(2 * peaks[0] - peaks[1], 0), *peaks, max(2 * peaks[-1] - peaks[-2], n)])
        bounds = beats[1:] - 0.35 * np.diff(beats)
        since_r = (np.arange(n) - beats[np.searchsorted(bounds, np.arange(n), side="right")]) / SAMPLING_RATE
        return cls(peaks, since_r, _t_delay(size, peaks))

    def window(self, start_s: float, stop_s: float, edge_s: float) -> np.ndarray:
        """Weights (samples,), 1 between two times after R, falling smoothly to 0 over the edge outside."""
        inside = np.minimum(self.since_r - start_s, stop_s - self.since_r) / edge_s + 1.0
        ramp = np.clip(inside, 0.0, 1.0)
        return ramp * ramp * (3.0 - 2.0 * ramp)

    def bump(self, centre_s: float, width_s: float) -> np.ndarray:
        """Gaussian weights (samples,) around a time after R; the width is the standard deviation."""
        return np.exp(-0.5 * ((self.since_r - centre_s) / width_s) ** 2)

    def baseline(self, waveform: np.ndarray) -> np.ndarray:
        """The level (leads, samples) between P and QRS, joined by straight lines from beat to beat."""
        samples = np.arange(waveform.shape[1])
        before = np.clip(self.peaks[:, None] + np.arange(-40, -28), 0, len(samples) - 1)
        return np.stack([np.interp(samples, self.peaks, lead[before].mean(axis=1)) for lead in waveform])


def _t_delay(size: np.ndarray, peaks: np.ndarray) -> float:
    """Delay of the mean beat's T peak, looked for between 0.16 and 0.40 s after R, in s."""
    search = peaks[peaks + 200 < len(size), None] + np.arange(80, 200)
    return (80 + int(size[search].mean(axis=0).argmax())) / SAMPLING_RATE


def _low_lvef(waveform: np.ndarray, beats: Beats, person: Person) -> np.ndarray:
    """Wide QRS, R waves that do not grow from V1 to V4, low voltage."""
    severity = person["low_lvef_severity"]
    baseline = beats.baseline(waveform)
    height = waveform - baseline
    qrs = beats.window(-0.06, 0.06, 0.03)
    height[2:6] -= qrs * 0.9 * severity * np.maximum(height[2:6], 0.0)
    height *= 1.0 - 0.4 * severity * qrs
    wide = 0.045 * (1.0 + severity)  # where the edge of a normal QRS, 0.045 s from R, is moved to
    before_widening = np.interp(beats.since_r, [-0.12, -wide, wide, 0.14], [-0.12, -0.045, 0.045, 0.14])
    moved = np.where((beats.since_r > -0.12) & (beats.since_r < 0.14), before_widening - beats.since_r, 0.0)
    samples = np.arange(waveform.shape[1])
    source = samples + moved * SAMPLING_RATE
    return baseline + np.stack([np.interp(source, samples, lead) for lead in height])


def _hcm(waveform: np.ndarray, beats: Beats, person: Person) -> np.ndarray:
    """Tall R waves in V4-V6 and deep S in V1-V2, narrow septal Q, T inversion in I and V4-V6."""
    severity = person["hcm_severity"]
    baseline = beats.baseline(waveform)
    height = waveform - baseline
    qrs = beats.window(-0.05, 0.05, 0.02)
    taller = np.array([0.3, 0.0, 0.4, 0.5, 0.3, 0.7, 1.0, 0.8])[:, None]
    height *= 1.0 + 0.8 * severity * taller * qrs
    septal_q = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.6, 1.0, 1.0])[:, None]
    height -= 0.4 * severity * septal_q * beats.bump(-0.036, 0.008)
    inverted = np.array([0.6, 0.2, 0.0, 0.0, 0.2, 0.9, 1.0, 0.9])[:, None]
    t_wave = beats.window(beats.t_peak - 0.09, beats.t_peak + 0.07, 0.05)
    height *= 1.0 - min(1.3 * severity, 1.0) * inverted * t_wave
    height -= 0.4 * severity * inverted * beats.bump(beats.t_peak, 0.05)
    return baseline + height


def _stemi(waveform: np.ndarray, beats: Beats, person: Person) -> np.ndarray:
    """ST elevation over the injured wall that runs into a taller T wave, reciprocal depression opposite."""
    deviation = np.array(TERRITORIES[person["territory"]])[:, None] * 0.5 * person["stemi_severity"]
    st_segment = beats.window(0.05, beats.t_peak - 0.02, 0.03)
    t_wave = beats.bump(beats.t_peak, 0.045)
    return waveform + deviation * np.maximum(st_segment, 1.2 * t_wave)


_SIGNS = {"low_lvef": _low_lvef, "hcm": _hcm, "stemi": _stemi}


def _recorded(waveform: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """What the site's recorder makes of a waveform (8, n) in mV: gain, baseline wander, hum, muscle noise."""
    n_leads, n = waveform.shape
    seconds = np.arange(n) / SAMPLING_RATE
    breath_hz = rng.uniform(0.15, 0.4)
    wander = np.sin(2 * np.pi * (breath_hz * seconds + rng.random((n_leads, 1))))
    drift = np.sin(np.pi * (breath_hz * seconds + 2 * rng.random((n_leads, 1))))
    hum = np.sin(2 * np.pi * (60.0 * seconds + rng.random()))
    strength = rng.uniform(0.5, 1.5, (4, n_leads, 1)) * rng.lognormal(0.0, 0.4, (4, 1, 1))
    noisy = (
        waveform
        + site.wander_mv * (strength[0] * wander + strength[1] * drift)
        + site.hum_mv * strength[2] * hum
        + site.noise_mv * strength[3] * rng.standard_normal((n_leads, n), np.float32)
    )
    return site.gain * noisy
