"""The embedded cohort: made ECGs of five sites, with the signs of three outcomes put where an ECG shows them.

Who is ill, how badly, and what the label says is drawn here; `generator` makes the beats, `signs` puts
disease into them, and each site's recorder adds its own noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecglib import signs
from ecglib.beats import Beats, at_samples, with_neighbours
from ecglib.errors import EcglibError
from ecglib.generator import SAMPLING_RATE, SHAPE, generate
from ecglib.signs import MIMICS, TERRITORIES, Person

Rows = Sequence[int] | np.ndarray  # positions in a table of records
EXTERNAL_SITE = "E"
_BATCH = 4  # records made at once: always the same neighbours, so that the bytes never depend on the request
_PATIENT_SHARE = 0.98  # of the generator's input that a patient's ECGs have in common: they look related
_ECGS_PER_PATIENT = (0.72, 0.18, 0.08, 0.02)  # shares of patients with 1, 2, 3 and 4 ECGs: 1.4 in the mean
# Of the ill, the share whose label says well; as many of the well are labelled ill.
LABEL_NOISE = {"low_lvef": 0.05, "hcm": 0.05, "stemi": 0.04}


@dataclass(frozen=True)
class Site:
    """How a hospital records, and whom it sees."""

    share: float  # of all patients
    gain: float  # of the recorder, 1 = exact
    wander_mv: float  # amplitude of the baseline wander
    hum_mv: float  # amplitude of the powerline hum
    noise_mv: float  # standard deviation of the muscle noise
    low_lvef: float  # share of ECGs; the internal sites together have the paper's (Table 1): 18 %
    hcm: float  # likewise: 38 %
    stemi: float  # likewise: 5.7 %
    hum_hz: float = 60.0  # of the power line
    age: float = 60.0  # mean age in years


SITES = {
    "A": Site(0.28, 1.00, 0.04, 0.010, 0.008, 0.150, 0.430, 0.0450, age=57.0),
    "B": Site(0.24, 0.97, 0.06, 0.020, 0.010, 0.200, 0.340, 0.0600, age=62.0),
    "C": Site(0.21, 1.03, 0.05, 0.005, 0.014, 0.170, 0.400, 0.0700, hum_hz=50.0),
    "D": Site(0.19, 1.00, 0.08, 0.015, 0.010, 0.210, 0.335, 0.0565, age=63.0),
    EXTERNAL_SITE: Site(0.08, 1.12, 0.11, 0.030, 0.020, 0.280, 0.300, 0.0800, age=66.0),
}


@dataclass(frozen=True)
class Risk:
    """Who falls ill: weights of a liability, beside a standard normal of everybody's own; who is how ill."""

    age: float  # per 14 years
    male: float
    frailty: float  # what a patient's risks have in common
    severity: tuple[float, float]  # Beta distribution of the ill
    share: float = 0.0  # of patients; an outcome's depends on the site


RISKS = {
    "low_lvef": Risk(0.35, 0.3, 0.45, (1.3, 2.5)),
    "hcm": Risk(-0.15, 0.15, 0.35, (1.6, 1.8)),
    "stemi": Risk(0.3, 0.4, 0.4, (2.2, 1.8)),
    "early_repolarisation": Risk(-0.8, 0.7, 0.0, (2.0, 2.0), 0.12),
    "hypertension": Risk(0.6, 0.0, 0.4, (2.0, 2.5), 0.30),
    "old_infarct": Risk(0.5, 0.4, 0.5, (2.0, 2.0), 0.14),
    "lbbb_alone": Risk(0.5, 0.0, 0.2, (2.0, 1.5), 0.06),
}


def draw_cohort(n_patients: int, seed: int) -> pd.DataFrame:
    """Draw patients and their ECGs: one row per ECG, those of a patient together.

    Columns: record_id, patient_id, patient (int), site, age (years), sex; the patient's anatomy (see
    `_draw_anatomy`); for each outcome the label (int8), the truth `<outcome>_true` (int8) and
    `<outcome>_severity` (0..1, how strong its signs are, 0 in the truly well); `<mimic>_severity`; territory
    (the wall of any infarct), stemi_stage, hcm_apical (0..1) and low_lvef_lbbb (bool), the forms of disease.
    STEMI, its stage and its label belong to the ECG, everything else to the patient, except that a mimic is
    silent in an ECG with the outcome that it imitates.
    """
    if n_patients < 50:
        raise EcglibError(f"n_patients={n_patients}: five sites and ten folds need at least 50; raise it")
    rng = np.random.default_rng([seed, 0])
    patients = _draw_patients(n_patients, rng)
    n_ecgs = 1 + rng.choice(len(_ECGS_PER_PATIENT), size=n_patients, p=_ECGS_PER_PATIENT)
    frailty = rng.standard_normal(n_patients)
    for outcome in ("low_lvef", "hcm"):
        _draw_outcome(patients, outcome, frailty, n_ecgs, rng)
    for mimic in MIMICS:
        liability = _liability(patients, RISKS[mimic], frailty, rng)
        share = pd.Series(RISKS[mimic].share, patients.index)
        ill = _most_liable(liability, np.ones(n_patients), share)
        patients[f"{mimic}_severity"] = np.where(ill, rng.beta(*RISKS[mimic].severity, n_patients), 0.0)
    patients["territory"] = rng.choice(list(TERRITORIES), n_patients, p=(0.4, 0.4, 0.2))
    patients["hcm_apical"] = rng.beta(0.8, 1.2, n_patients)
    patients["low_lvef_lbbb"] = rng.random(n_patients) < 0.35
    cohort = patients.loc[np.repeat(patients.index, n_ecgs)].reset_index(drop=True)
    number = cohort.groupby("patient").cumcount() + 1
    cohort.insert(0, "record_id", cohort.patient_id + "-" + number.astype(str))
    _draw_outcome(cohort, "stemi", np.repeat(frailty, n_ecgs), np.ones(len(cohort), np.int64), rng)
    cohort["stemi_stage"] = rng.random(len(cohort))
    for mimic, imitated in MIMICS.items():
        has_it = cohort[[f"{outcome}_true" for outcome in imitated]].any(axis=1)
        cohort.loc[has_it, f"{mimic}_severity"] = 0.0
    return cohort


def _draw_patients(n: int, rng: np.random.Generator) -> pd.DataFrame:
    last_of_site = np.rint(n * np.cumsum([site.share for site in SITES.values()]))
    site = np.array(list(SITES))[np.searchsorted(last_of_site, np.arange(n), side="right")]
    mean_age = [SITES[name].age for name in site]
    patients = pd.DataFrame(
        {
            "patient": np.arange(n),
            "patient_id": [f"{name}{number:05d}" for number, name in enumerate(site)],
            "site": site,
            "age": rng.normal(mean_age, 14.0).clip(18.0, 95.0).round(),
            "sex": rng.choice(["male", "female"], n),
        }
    )
    return patients.join(_draw_anatomy(patients, rng))


def _draw_anatomy(patients: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """What all ECGs of a patient have in common, beside the generator's input.

    voltage and t_voltage (factors of QRS and T), axis_deg (turned so far to the left), rotation (chest leads
    moved so many places towards V6; below 0 towards V1), qrs_width and diastole (factors of durations).
    Ageing lowers voltage and T and turns the heart to the left; women have lower voltage and T, a narrower
    QRS and a faster heart.
    """
    n, decades, male = len(patients), (patients.age - 60) / 10, (patients.sex == "male").astype(float)
    return pd.DataFrame(
        {
            "voltage": np.exp(rng.normal(0.06 * (2 * male - 1) - 0.03 * decades, 0.22, n)),
            "t_voltage": np.exp(rng.normal(0.12 * (2 * male - 1) - 0.06 * decades, 0.20, n)),
            "axis_deg": rng.normal(5 * decades, 12.0, n),
            "rotation": rng.normal(0.0, 0.35, n).clip(-0.8, 0.8),
            "qrs_width": np.exp(rng.normal(0.04 * (2 * male - 1), 0.11, n)),
            "diastole": 1.0 + np.abs(rng.normal(0.12 * male, 0.25, n)),
        }
    )


def _draw_outcome(
    table: pd.DataFrame, outcome: str, frailty: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> None:
    """Add an outcome's label, truth and severity to a table; `weight` is the number of ECGs of a row."""
    risk = RISKS[outcome]
    share = table.site.map({name: getattr(site, outcome) for name, site in SITES.items()})
    ill = _most_liable(_liability(table, risk, frailty, rng), weight, share)
    table[outcome] = _mislabel(ill, table.site.to_numpy(), weight, LABEL_NOISE[outcome], rng).astype(np.int8)
    table[f"{outcome}_true"] = ill.astype(np.int8)
    table[f"{outcome}_severity"] = np.where(ill, rng.beta(*risk.severity, len(table)), 0.0)


def _liability(table: pd.DataFrame, risk: Risk, frailty: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    known = risk.age * (table.age - 60) / 14 + risk.male * (table.sex == "male")
    return known.to_numpy() + risk.frailty * frailty + rng.standard_normal(len(table))


def _most_liable(liability: np.ndarray, weight: np.ndarray, share: pd.Series) -> np.ndarray:
    """Mark the rows of highest liability, bool, until they weigh `share` of all rows with that share.

    What they weigh differs from that by at most half of one row's weight.
    """
    marked = np.zeros(len(liability), bool)
    for wanted, rows in share.groupby(share.to_numpy()).indices.items():
        ranked = rows[np.argsort(-liability[rows], kind="stable")]
        reached = np.cumsum(weight[ranked]) - 0.5 * weight[ranked]
        marked[ranked] = reached <= float(str(wanted)) * weight[rows].sum()
    return marked


def _mislabel(
    ill: np.ndarray, site: np.ndarray, weight: np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Swap the label of a share of the ill with as many of the well of the same site and weight."""
    label = ill.copy()
    for rows in pd.Series(ill).groupby([site, weight]).indices.values():
        sick, well = rng.permutation(rows[ill[rows]]), rng.permutation(rows[~ill[rows]])
        n = min(int(share * len(sick) + rng.random()), len(well))
        label[sick[:n]], label[well[:n]] = False, True
    return label


def waveforms(cohort: pd.DataFrame, rows: Rows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the ECGs at the positions `rows` of a cohort from draw_cohort, always the same bytes for a row.

    Returns waveforms, float32 (n, 8, 5000) in mV at 500 Hz, leads LEADS_8, and evidence, uint8 of that shape:
    bit k is set where the signs of OUTCOMES[k] are. It follows the truth, not the label: an ECG labelled with
    an outcome that its patient does not have has no evidence of it.
    """
    positions = np.asarray(rows, dtype=np.int64)
    made = np.empty((len(positions), *SHAPE), np.float32)
    evidence = np.empty(made.shape, np.uint8)
    people = cohort.iloc[positions].to_dict("records")
    for batch in np.unique(positions // _BATCH):
        beats = _generated(cohort, np.arange(batch * _BATCH, (batch + 1) * _BATCH), seed)
        for place in np.flatnonzero(positions // _BATCH == batch):
            row = positions[place]
            rng = np.random.default_rng([seed, 2, row])
            healthy, found = _of_patient(beats[row % _BATCH], people[place], rng)
            waveform, evidence[place] = signs.put_in(healthy, found, people[place])
            made[place] = _recorded(waveform, SITES[people[place]["site"]], rng)
    return made, evidence


def _generated(cohort: pd.DataFrame, rows: np.ndarray, seed: int) -> np.ndarray:
    """Normal beats, float32 (n, 8, 5000) in mV; rows past the cohort's end fill the last batch."""
    patients = cohort.patient.to_numpy()
    noise = [_latent(seed, int(patients[min(row, len(patients) - 1)]), int(row)) for row in rows]
    return generate(np.stack(noise))


def _latent(seed: int, patient: int, row: int) -> np.ndarray:
    """The generator's input, uniform in (-1, 1), float32 (8, 5000): the patient's, partly renewed."""
    own = np.random.default_rng([seed, 1, patient]).random(SHAPE, np.float32)
    rng = np.random.default_rng([seed, 3, row])
    renewed = rng.random(SHAPE, np.float32) >= _PATIENT_SHARE
    own[renewed] = rng.random(int(renewed.sum()), np.float32)
    return 2 * own - 1


def _of_patient(waveform: np.ndarray, person: Person, rng: np.random.Generator) -> tuple[np.ndarray, Beats]:
    """Give normal beats (8, 5000) the patient's anatomy; electrodes never sit quite where they sat before."""
    turned = _turn(person["axis_deg"] + rng.normal(0, 2.0), person["rotation"] + rng.normal(0, 0.06))
    waveform = (person["voltage"] * turned).astype(np.float32) @ waveform
    beats = Beats.find(waveform, SAMPLING_RATE)
    places, beats = _pace(beats, waveform.shape[1], person["qrs_width"], person["diastole"])
    waveform = at_samples(waveform, places)
    t_change = person["t_voltage"] * np.exp(rng.normal(0, 0.06)) - 1.0
    t_wave = beats.window(beats.t_peak - 0.09, beats.t_peak + 0.07, 0.06)
    return waveform + t_change * t_wave * (waveform - beats.baseline(waveform)), beats


def _turn(axis_deg: float, rotation: float) -> np.ndarray:
    """The matrix (8, 8) that turns the heart: its axis in the limb leads, its place under the chest leads."""
    matrix = np.eye(8)
    angle = np.deg2rad(axis_deg)
    to_xy = np.array([[1.0, 0.0], [-1 / np.sqrt(3), 2 / np.sqrt(3)]])  # I and II -> to the left, downwards
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix[:2, :2] = np.linalg.inv(to_xy) @ turn @ to_xy
    next_lead = np.eye(6, k=1 if rotation < 0 else -1)
    next_lead[[-1, 0], [-1, 0]] += 1.0 - next_lead[[-1, 0]].sum(axis=1)  # V1 and V6 have one neighbour
    matrix[2:, 2:] = (1 - abs(rotation)) * np.eye(6) + abs(rotation) * next_lead
    return matrix


def _pace(beats: Beats, n: int, qrs_width: float, diastole: float) -> tuple[np.ndarray, Beats]:
    """Where each of n samples comes from if QRS and the pause between T and P last so many times longer."""
    peaks = with_neighbours(beats.peaks, n) / SAMPLING_RATE
    interval = np.diff(peaks)
    p_start = 0.22
    t_end = min(beats.t_peak + 0.12, interval[1:-1].min() - p_start - 0.02)
    slowed = interval + (diastole - 1.0) * np.maximum(interval - p_start - t_end, 0.0)
    paced = np.concatenate([[0.0], np.cumsum(slowed)])
    paced += peaks[1] - paced[1]  # the first beat stays where it is
    before = np.array([-p_start, -0.12, -0.045, 0.045, 0.14, max(t_end, 0.15)])
    after = before * [1.0, 1.0, qrs_width, qrs_width, 1.0, 1.0]
    seconds = np.arange(n) / SAMPLING_RATE
    source = np.interp(seconds, (paced[:, None] + after).ravel(), (peaks[:, None] + before).ravel())
    inside = np.rint(paced[1:-1] * SAMPLING_RATE).astype(np.int64)
    paced_beats = Beats.at(inside[inside < n], n, beats.t_peak, SAMPLING_RATE)
    return source * SAMPLING_RATE, paced_beats


def _recorded(waveform: np.ndarray, site: Site, rng: np.random.Generator) -> np.ndarray:
    """What the site's recorder makes of a waveform (8, n) in mV: gain, baseline wander, hum, muscle noise."""
    n_leads, n = waveform.shape
    seconds = np.arange(n, dtype=np.float32) / np.float32(SAMPLING_RATE)
    breath_hz = rng.uniform(0.15, 0.4)
    strength = rng.uniform(0.5, 1.5, (4, n_leads, 1)) * rng.lognormal(0.0, 0.4, (4, 1, 1))
    noisy = np.float32(site.noise_mv) * strength[3].astype(np.float32)
    noisy = waveform + noisy * rng.standard_normal((n_leads, n), np.float32)
    waves = (
        (site.wander_mv * strength[0], breath_hz, rng.random((n_leads, 1))),
        (site.wander_mv * strength[1], 0.5 * breath_hz, rng.random((n_leads, 1))),
        (site.hum_mv * strength[2], site.hum_hz, np.full((n_leads, 1), rng.random())),
    )
    for amplitude, hertz, phase in waves:  # sin(a + b) = sin a cos b + cos a sin b: two sines for all leads
        angle, start = 2 * np.pi * hertz * seconds, 2 * np.pi * phase
        share = amplitude * np.hstack([np.cos(start), np.sin(start)])
        noisy += share.astype(np.float32) @ np.stack([np.sin(angle), np.cos(angle)])
    return np.float32(site.gain) * noisy


def oracle_features(cohort: pd.DataFrame) -> pd.DataFrame:
    """How strongly each sign was put into each ECG, whoever put it: the evidence itself, one column a sign.

    An outcome and its mimic add to the same column: even who reads this does not know the disease, nor which
    wall an infarct has.
    """
    return pd.DataFrame([_evidence_strength(person) for person in cohort.to_dict("records")])


def _evidence_strength(person: Mapping[str, object]) -> dict[str, float]:
    total = dict.fromkeys(signs.SIGNS, 0.0)
    for condition in signs.CONDITIONS:
        for sign, strength in signs.strengths(condition, person).items():
            total[sign] += strength
    return total


@dataclass(frozen=True)
class Kind:
    """A condition (None: well) with a form of it, and the textbook criteria that its ECG must meet."""

    condition: str | None
    form: Mapping[str, object]
    criteria: tuple[str, ...] = ()


# Every kind of ECG in the cohort.
KINDS = {
    "Well": Kind(None, {}),
    "Low LVEF, wide QRS": Kind("low_lvef", {"low_lvef_lbbb": False}, ("QRS 120 ms", "poor R progression")),
    "Low LVEF, LBBB": Kind("low_lvef", {"low_lvef_lbbb": True}, ("LBBB", "poor R progression")),
    "HCM, septal": Kind("hcm", {"hcm_apical": 0.0}, ("Sokolow-Lyon", "septal Q")),
    "HCM, apical": Kind("hcm", {"hcm_apical": 1.0}, ("T inversion",)),
    "STEMI, first": Kind("stemi", {"stemi_stage": 0.1, "territory": "anterior"}, ("hyperacute T",)),
    "STEMI, anterior": Kind("stemi", {"stemi_stage": 0.4, "territory": "anterior"}, ("ST elevation",)),
    "STEMI, inferior": Kind(
        "stemi", {"stemi_stage": 0.4, "territory": "inferior"}, ("ST elevation", "ST depression")
    ),
    "STEMI, lateral": Kind("stemi", {"stemi_stage": 0.4, "territory": "lateral"}, ("ST elevation",)),
    "STEMI, late": Kind("stemi", {"stemi_stage": 1.0, "territory": "anterior"}, ("infarct Q", "T inversion")),
    "Early repolarisation": Kind("early_repolarisation", {}, ("concave ST",)),
    "Hypertension": Kind("hypertension", {}, ("Sokolow-Lyon", "T inversion")),
    "Old infarct": Kind("old_infarct", {"territory": "anterior"}, ("infarct Q",)),
    "LBBB alone": Kind("lbbb_alone", {}, ("LBBB",)),
}


def textbook_cases(kind: Kind, n: int, seed: int) -> pd.DataFrame:
    """The first ECG of n patients of a cohort, with nothing but this kind of ECG at full severity."""
    cohort = draw_cohort(max(n, 50), seed).drop_duplicates("patient").reset_index(drop=True)[:n]
    severities = {f"{condition}_severity": 0.0 for condition in signs.CONDITIONS}
    if kind.condition is not None:
        severities[f"{kind.condition}_severity"] = 1.0
    return cohort.assign(**severities, **kind.form)
