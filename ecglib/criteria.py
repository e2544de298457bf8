"""Textbook criteria on a measured ECG, each with its source.

UDMI: Fourth Universal Definition of Myocardial Infarction (Thygesen et al., Circulation 138, e618, 2018).
AHA: AHA/ACCF/HRS recommendations for the standardization and interpretation of the ECG, parts III and V
(Surawicz et al. and Hancock et al., Circulation 119, e235 and e251, 2009).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ecglib.measurements import Delineation, delineate

_CHEST = ("V1", "V2", "V3", "V4", "V5", "V6")
_FRONTAL = ("aVL", "I", "II", "aVF", "III")  # neighbours in the frontal plane
_CONTIGUOUS = (_CHEST, _FRONTAL)


def criteria_met(waveform: np.ndarray, sampling_rate: float, age: float, sex: str) -> dict[str, bool]:
    """Which of CRITERIA a waveform meets, as `measurements.measure` takes it; age in years."""
    found = delineate(waveform, sampling_rate)
    return {name: bool(rule(found, age, sex)) for name, rule in CRITERIA.items()}


def _neighbours(is_met: Callable[[str], bool], runs: Sequence[Sequence[str]] = _CONTIGUOUS) -> bool:
    return any(is_met(a) and is_met(b) for run in runs for a, b in pairwise(run))


def st_elevation(found: Delineation, age: float, sex: str) -> bool:
    """UDMI: J raised in two contiguous leads, by 0.1 mV (V2-V3: 0.2, men under 40 0.25, women 0.15)."""
    usual = 0.15 if sex == "female" else 0.25 if age < 40 else 0.2
    return _neighbours(lambda lead: found.st_j[lead] >= (usual if lead in ("V2", "V3") else 0.1))


def st_depression(found: Delineation, age: float, sex: str) -> bool:
    """UDMI: ST lowered by 0.05 mV in two contiguous leads (60 ms after J)."""
    return _neighbours(lambda lead: found.st_60[lead] <= -0.05)


def hyperacute_t(found: Delineation, age: float, sex: str) -> bool:
    """T of 1 mV or more in two contiguous chest leads, or of 0.5 mV in two limb leads."""
    return _neighbours(lambda lead: found.t[lead] >= (1.0 if lead in _CHEST else 0.5))


def infarct_q(found: Delineation, age: float, sex: str) -> bool:
    """UDMI: Q of at least 30 ms and 0.1 mV, or QS, in two contiguous leads of I, aVL; II, III, aVF; V2-V6."""
    return _neighbours(
        lambda lead: found.q[lead] >= 0.1 and found.q_ms[lead] >= 30,
        (("aVL", "I"), ("II", "aVF", "III"), _CHEST[1:]),
    )


def t_inversion(found: Delineation, age: float, sex: str) -> bool:
    """UDMI: T inverted by 0.1 mV or more in two contiguous leads of V3-V6 and I, aVL, II, aVF."""
    return _neighbours(lambda lead: found.t[lead] <= -0.1, (_CHEST[2:], _FRONTAL[:4]))


def sokolow_lyon(found: Delineation, age: float, sex: str) -> bool:
    """S in V1 and R in V5 or V6 together at least 3.5 mV (Sokolow and Lyon, 1949)."""
    return found.s["V1"] + max(found.r["V5"], found.r["V6"]) >= 3.5


def septal_q(found: Delineation, age: float, sex: str) -> bool:
    """Q of 0.1 mV or more, under 40 ms, in two of I, V5, V6 beside an R wave."""
    leads = [lead for lead in ("I", "V5", "V6") if found.r[lead] > 0.3]
    return sum(found.q[lead] >= 0.1 and found.q_ms[lead] < 40 for lead in leads) >= 2


def wide_qrs(found: Delineation, age: float, sex: str) -> bool:
    """AHA: QRS of at least 120 ms."""
    return found.qrs_duration_ms >= 120


def lbbb(found: Delineation, age: float, sex: str) -> bool:
    """AHA: QRS of at least 120 ms, R without Q in I and V6, rS or QS in V1."""
    broad = all(found.r[lead] > 3 * max(found.q[lead], found.s[lead]) for lead in ("I", "V6"))
    return wide_qrs(found, age, sex) and broad and found.s["V1"] > 3 * found.r["V1"]


def poor_r_progression(found: Delineation, age: float, sex: str) -> bool:
    """R in V3 of at most 0.3 mV."""
    return found.r["V3"] <= 0.3


def low_limb_voltage(found: Delineation, age: float, sex: str) -> bool:
    """AHA: QRS from peak to peak at most 0.5 mV in I, II and III."""
    return all(found.r[lead] + max(found.q[lead], found.s[lead]) <= 0.5 for lead in ("I", "II", "III"))


def concave_st(found: Delineation, age: float, sex: str) -> bool:
    """J raised by 0.1 mV in two contiguous leads of V2-V6, ST sagging under the line from J to the T peak."""

    def sags(lead: str) -> bool:
        j, t = found.st_j[lead], found.t[lead]
        return j >= 0.1 and found.st_60[lead] < j + 0.2 * (t - j)

    return _neighbours(sags, (_CHEST[1:],))


CRITERIA: dict[str, Callable[[Delineation, float, str], bool]] = {
    "ST elevation": st_elevation,
    "ST depression": st_depression,
    "hyperacute T": hyperacute_t,
    "infarct Q": infarct_q,
    "T inversion": t_inversion,
    "Sokolow-Lyon": sokolow_lyon,
    "septal Q": septal_q,
    "QRS 120 ms": wide_qrs,
    "LBBB": lbbb,
    "poor R progression": poor_r_progression,
    "low limb voltage": low_limb_voltage,
    "concave ST": concave_st,
}
