"""Signs of disease, put into the beats of a healthy ECG, and the conditions that show them.

A sign changes the beats (leads, samples) in place, by a strength from 0 to 1. A condition, an outcome or a
mimic of one, shows several signs, each with a strength that follows from its severity and form. Evidence of
an outcome is wherever its signs changed the waveform, so it cannot differ from what was done.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ecglib.beats import Beats, at_samples

Person = Mapping[str, Any]  # a row of the cohort
Strengths = dict[str, float]  # sign -> strength

OUTCOMES = ("low_lvef", "hcm", "stemi")
# Conditions that look like an outcome, and the outcomes that a person with it does not have.
MIMICS = {
    "early_repolarisation": ("stemi",),
    "hypertension": ("hcm",),
    "old_infarct": ("stemi", "low_lvef"),
    "lbbb_alone": ("low_lvef",),
}
SIGN_MV = 0.025  # a change smaller than a quarter of a small square of ECG paper is no evidence

# Each lead of LEADS_8 as a share of the largest ST deviation: elevation over the injured wall, depression
# opposite. III, aVF and aVL follow from I and II: inferior injury lifts III most and lowers aVL.
TERRITORIES = {
    "anterior": (0.1, -0.25, 0.5, 0.95, 1.0, 0.85, 0.45, 0.2),
    "inferior": (-0.4, 0.9, 0.0, -0.45, -0.35, -0.1, 0.0, 0.1),
    "lateral": (0.9, -0.1, -0.35, -0.3, 0.0, 0.4, 0.9, 1.0),
}


def _leads(*weights: float) -> np.ndarray:
    """One weight for each lead of LEADS_8, as a column: I, II, V1 to V6."""
    return np.array(weights, np.float32)[:, None]


# --- signs: (height over the baseline (8, samples) in mV, beats, strength, wall (8, 1)) ---


def _lbbb(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Left bundle branch block: broad notched R in I, V5, V6, rS in V1-V3, ST and T the other way."""
    height *= 1.0 - strength * beats.window(-0.06, 0.09, 0.03)
    height *= 1.0 - strength * _t_window(beats)
    notched = 0.85 * beats.bump(-0.012, 0.017) + beats.bump(0.033, 0.018)
    deep = beats.bump(0.01, 0.023) + 0.4 * beats.bump(0.046, 0.016)
    late_st = beats.window(0.09, beats.t_peak, 0.04, 0.08)
    height += strength * (
        _leads(0.8, 0.45, 0, 0, 0, 0.35, 0.9, 1.0) * notched
        - _leads(0, 0.1, 1.2, 1.8, 1.6, 0.8, 0.1, 0) * deep
        + _leads(0, 0, 0.12, 0.18, 0.15, 0.1, 0, 0) * beats.bump(-0.05, 0.009)
        + _leads(-0.05, -0.02, 0.1, 0.17, 0.15, 0.03, -0.06, -0.08) * late_st
        + _leads(-0.2, -0.1, 0.3, 0.45, 0.4, 0.1, -0.2, -0.25) * beats.bump(beats.t_peak, 0.06, 0.04)
    )


def _slow_conduction(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """A wide QRS of unchanged form."""
    wide = 0.045 * (1.0 + 1.1 * strength)  # where the edge of a normal QRS, 0.045 s from R, is moved to
    before = np.interp(beats.since_r, [-0.13, -wide, wide, 0.15], [-0.13, -0.045, 0.045, 0.15])
    moved = np.where((beats.since_r > -0.13) & (beats.since_r < 0.15), before - beats.since_r, 0.0)
    height[:] = at_samples(height, np.arange(height.shape[1]) + moved * beats.sampling_rate)


def _poor_r(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """R waves that do not grow from V1 to V4."""
    kept = 1.0 - strength * _leads(0.3, 0.85, 0.92, 0.8) * beats.window(-0.06, 0.06, 0.02)
    height[2:6] = np.minimum(height[2:6], height[2:6] * kept)


def _low_voltage(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Small QRS in all leads, smallest in the limb leads."""
    height *= 1.0 - strength * _leads(0.6, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4) * beats.window(
        -0.06, 0.08, 0.03
    )


def _lv_voltage(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Taller R in I and V4-V6, deeper S in V1-V3: every lead's own QRS, grown by so many mV."""
    more_mv = _leads(0.5, 0.0, 1.2, 1.0, 0.3, 0.8, 1.7, 1.4)
    qrs = beats.window(-0.05, 0.05, 0.02)
    around = np.clip(beats.peaks[:, None] + np.arange(-20, 25), 0, height.shape[1] - 1)
    usual_mv = np.median(np.abs(height[:, around]).max(axis=2), axis=1)[:, None]
    height *= 1.0 + strength * np.minimum(more_mv / np.maximum(usual_mv, 0.2), 4.0) * qrs


def _septal_q(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Narrow deep Q in I and V4-V6."""
    height -= 0.45 * strength * _leads(0.6, 0.2, 0, 0, 0, 0.5, 1.0, 1.0) * beats.bump(-0.034, 0.007)


def _deep_t_inversion(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Symmetrical, deep T inversion in I and V3-V6."""
    leads = _leads(0.5, 0.25, 0, 0.1, 0.5, 0.9, 1.0, 0.8)
    height *= 1.0 - min(1.5 * strength, 1.0) * np.minimum(leads * 1.2, 1.0) * _t_window(beats)
    height -= 0.7 * strength * leads * beats.bump(beats.t_peak, 0.045)


def _strain(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """ST sagging into an asymmetrical T inversion in I, V5, V6: slow down, fast up."""
    leads = _leads(0.7, 0.1, -0.4, -0.3, 0, 0.3, 0.9, 1.0)
    height *= 1.0 - min(1.3 * strength, 1.0) * np.maximum(leads, 0.0) * _t_window(beats)
    height -= 0.28 * strength * leads * beats.bump(beats.t_peak, 0.085, 0.03) * beats.window(0.06, 0.5, 0.04)
    height -= 0.06 * strength * leads * beats.window(0.06, beats.t_peak, 0.03, 0.06)


def _j_point(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Early repolarisation: a notch at J and a concave ST elevation in V2-V6 and II, with a tall T."""
    leads = _leads(0.3, 0.5, 0.1, 0.9, 1.0, 0.9, 0.6, 0.4)
    sagging = beats.bump(0.06, 0.012, 0.055) + 0.9 * beats.bump(beats.t_peak, 0.07, 0.05)
    height += strength * leads * (0.22 * sagging + 0.12 * beats.bump(0.054, 0.008))


def _st_elevation(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """A convex ST elevation over the injured wall that swallows the T wave, depression opposite."""
    dome = beats.window(0.055, beats.t_peak - 0.03, 0.025, 0.11)
    dome *= 0.85 + 0.25 * beats.bump(0.7 * beats.t_peak, 0.06)
    height += 0.5 * strength * wall * dome


def _tall_t(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Hyperacute: broad, symmetrical, tall T over the injured wall."""
    height += 0.75 * strength * np.maximum(wall, 0.0) * beats.bump(beats.t_peak, 0.055)


def _q_waves(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Dead muscle: wide Q and a smaller R over the wall."""
    dead = np.clip(1.4 * wall, 0.0, 1.0)
    kept = 1.0 - 0.9 * strength * dead * beats.window(-0.06, 0.05, 0.02)
    np.minimum(height, height * kept, out=height)
    height -= 0.55 * strength * dead * beats.bump(-0.014, 0.012)


def _t_inversion(height: np.ndarray, beats: Beats, strength: float, wall: np.ndarray) -> None:
    """Symmetrical T inversion over the wall."""
    over = np.maximum(wall, 0.0)
    height *= 1.0 - strength * np.minimum(1.2 * over, 1.0) * _t_window(beats)
    height -= 0.4 * strength * over * beats.bump(beats.t_peak, 0.045)


def _t_window(beats: Beats) -> np.ndarray:
    return beats.window(beats.t_peak - 0.09, beats.t_peak + 0.07, 0.05)


SIGNS: dict[str, Callable[[np.ndarray, Beats, float, np.ndarray], None]] = {
    "lbbb": _lbbb,
    "slow_conduction": _slow_conduction,
    "poor_r": _poor_r,
    "low_voltage": _low_voltage,
    "lv_voltage": _lv_voltage,
    "septal_q": _septal_q,
    "deep_t_inversion": _deep_t_inversion,
    "strain": _strain,
    "j_point": _j_point,
    "st_elevation": _st_elevation,
    "tall_t": _tall_t,
    "q_waves": _q_waves,
    "t_inversion": _t_inversion,
}


# --- conditions: severity and form -> the strength of each sign ---


def _low_lvef(severity: float, person: Person) -> Strengths:
    """A dilated heart: wide QRS or LBBB, poor R progression, low voltage."""
    if person["low_lvef_lbbb"]:
        return {"lbbb": severity**0.7, "poor_r": severity}
    return {"slow_conduction": severity, "poor_r": severity, "low_voltage": 0.7 * severity}


def _hcm(severity: float, person: Person) -> Strengths:
    """From septal (voltage, narrow Q) to apical (giant T inversion) hypertrophy."""
    apical = person["hcm_apical"]
    return {
        "lv_voltage": severity * (1.0 - 0.5 * apical),
        "septal_q": severity * (1.0 - apical),
        "deep_t_inversion": severity * (0.4 + 0.6 * apical),
    }


def _stemi(severity: float, person: Person) -> Strengths:
    """Hours of an infarct, from 0 to 1: hyperacute T, then ST elevation, then Q waves and T inversion."""
    stage = person["stemi_stage"]
    return {
        "tall_t": severity * float(np.interp(stage, [0.0, 0.15, 0.35], [1.0, 1.0, 0.0])),
        "st_elevation": severity * float(np.interp(stage, [0.0, 0.25, 0.6, 1.0], [0.25, 1.0, 1.0, 0.4])),
        "q_waves": severity * float(np.interp(stage, [0.4, 0.9], [0.0, 1.0])),
        "t_inversion": severity * float(np.interp(stage, [0.6, 1.0], [0.0, 1.0])),
    }


def _early_repolarisation(severity: float, person: Person) -> Strengths:
    return {"j_point": severity}


def _hypertension(severity: float, person: Person) -> Strengths:
    """A ventricle grown against pressure: voltage and strain, no septal Q, no deep T inversion."""
    return {"lv_voltage": severity, "strain": 0.8 * severity}


def _old_infarct(severity: float, person: Person) -> Strengths:
    """Q waves stay, T waves partly; ST is back but for a remainder."""
    return {"q_waves": severity, "t_inversion": 0.4 * severity, "st_elevation": 0.15 * severity}


def _lbbb_alone(severity: float, person: Person) -> Strengths:
    return {"lbbb": severity}


CONDITIONS: dict[str, Callable[[float, Person], Strengths]] = {
    "early_repolarisation": _early_repolarisation,
    "hypertension": _hypertension,
    "old_infarct": _old_infarct,
    "lbbb_alone": _lbbb_alone,
    "low_lvef": _low_lvef,
    "hcm": _hcm,
    "stemi": _stemi,
}


def strengths(condition: str, person: Person) -> Strengths:
    """How strongly a person shows each sign of a condition; empty without it."""
    severity = person[f"{condition}_severity"]
    return CONDITIONS[condition](severity, person) if severity > 0 else {}


def put_in(waveform: np.ndarray, beats: Beats, person: Person) -> tuple[np.ndarray, np.ndarray]:
    """Put a person's conditions into healthy beats (8, samples) in mV, mimics first.

    Returns the waveform and the evidence, uint8 of its shape: bit k is set where OUTCOMES[k] changed it.
    """
    evidence = np.zeros(waveform.shape, np.uint8)
    ill = [condition for condition in CONDITIONS if person[f"{condition}_severity"] > 0]
    if not ill:
        return waveform, evidence
    baseline = beats.baseline(waveform)
    height = waveform - baseline
    for condition in ill:
        before = height.copy() if condition in OUTCOMES else None
        wall = np.array(TERRITORIES[person["territory"]], np.float32)[:, None]
        for sign, strength in strengths(condition, person).items():
            if strength > 0:
                SIGNS[sign](height, beats, float(strength), wall)
        if before is not None:
            evidence |= (np.abs(height - before) > SIGN_MV).astype(np.uint8) << OUTCOMES.index(condition)
    return baseline + height, evidence
