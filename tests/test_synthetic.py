"""The embedded cohort: prevalences, repeatable bytes, and signs where cardiology puts them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecglib import synthetic
from ecglib.errors import EcglibError
from ecglib.records import LEADS_8, derive_limb_leads
from ecglib.synthetic import OUTCOMES, SAMPLING_RATE, Beats, draw_cohort, waveforms

LEAD = {name: row for row, name in enumerate(LEADS_8)}


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return draw_cohort(2400, seed=0)


@pytest.fixture(scope="module")
def drawn(cohort: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return waveforms(cohort, range(24), seed=0)


def test_default_cohort_is_large_enough_and_hits_the_papers_prevalences(cohort: pd.DataFrame) -> None:
    assert len(cohort) >= 3000
    assert cohort.patient_id.nunique() >= 2000
    assert cohort.record_id.is_unique
    assert draw_cohort(203, seed=1).patient_id.nunique() == 203
    internal = cohort[cohort.site != "E"]
    for outcome, prevalence in (("low_lvef", 0.18), ("hcm", 0.38), ("stemi", 0.057)):
        assert internal[outcome].mean() == pytest.approx(prevalence, abs=0.002)
    assert set(cohort.site) == set("ABCDE")


def test_heart_disease_belongs_to_the_patient_and_infarction_to_the_ecg(cohort: pd.DataFrame) -> None:
    per_patient = cohort.groupby("patient_id")
    for column in ("low_lvef", "hcm", "low_lvef_severity", "site", "age", "sex"):
        assert per_patient[column].nunique().max() == 1
    assert per_patient.stemi.nunique().max() == 2


def test_cases_show_stronger_signs_than_mimics_but_overlap(cohort: pd.DataFrame) -> None:
    for outcome in OUTCOMES:
        severity = cohort[f"{outcome}_severity"]
        assert severity.between(0, 1).all()
        ill, well = severity[cohort[outcome] == 1], severity[cohort[outcome] == 0]
        assert (ill > 0).all()
        assert (well == 0).mean() > 0.5
        assert np.quantile(well, 0.95) > np.quantile(ill, 0.25)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.05, 0.2, 0.7]), min_size=1, max_size=200), st.integers(0, 2**32 - 1))
def test_the_number_marked_is_the_expected_one(shares: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = synthetic._mark(pd.Series(shares), order=rng.random(len(shares)), rng=rng)
    assert abs(marks.sum() - sum(shares)) < 1


def test_same_seed_same_cohort_other_seed_another(cohort: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(cohort, draw_cohort(2400, seed=0))
    assert not cohort.stemi.equals(draw_cohort(2400, seed=1).stemi)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(EcglibError, match="n_patients=10: "):
        draw_cohort(10, seed=0)


def test_waveforms_have_the_stated_form(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    made, evidence = drawn
    assert made.shape == evidence.shape == (24, 8, 5000)
    assert made.dtype == np.float32
    assert evidence.dtype == np.uint8
    assert np.isfinite(made).all()
    assert (np.ptp(made, axis=2) < 15).all()  # mV: no lead of a living person swings more


def test_bytes_do_not_depend_on_what_is_asked_together(
    cohort: pd.DataFrame, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    rows = [17, 3, 3]
    made, evidence = waveforms(cohort, rows, seed=0)
    assert made.tobytes() == drawn[0][rows].tobytes()
    assert evidence.tobytes() == drawn[1][rows].tobytes()
    last, _ = waveforms(cohort, [len(cohort) - 1], seed=0)
    assert np.isfinite(last).all()


def test_bytes_do_not_depend_on_the_number_of_threads(
    cohort: pd.DataFrame, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    import torch

    torch.set_num_threads(2)
    try:
        made, _ = waveforms(cohort, [5], seed=0)
        assert torch.get_num_threads() == 2, "the caller's setting is put back"
    finally:
        torch.set_num_threads(1)
    assert made[0].tobytes() == drawn[0][5].tobytes()


def test_evidence_is_only_where_the_outcome_is(
    cohort: pd.DataFrame, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    for row in range(24):
        for bit, outcome in enumerate(OUTCOMES):
            marked = (drawn[1][row] >> bit & 1).any()
            clear = cohort[f"{outcome}_severity"][row] > 0.15
            assert not marked if cohort[outcome][row] == 0 else marked or not clear


def ecg(rate_per_min: float = 70.0, seconds: float = 10.0) -> SimpleNamespace:
    """A drawn ECG with known R peaks: P, QRS and T as Gaussian bumps, of usual size in each lead."""
    n = int(seconds * SAMPLING_RATE)
    peaks = np.arange(0.5, seconds - 0.4, 60 / rate_per_min)
    time = np.arange(n) / SAMPLING_RATE

    def bumps(delay: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((time - peaks[:, None] - delay) / width) ** 2).sum(axis=0)

    r = np.array([0.8, 1.0, 0.2, 0.4, 0.7, 1.3, 1.3, 1.1])[:, None]
    s = np.array([0.1, 0.1, 0.9, 1.3, 0.9, 0.5, 0.2, 0.1])[:, None]
    t = np.array([0.2, 0.3, 0.05, 0.4, 0.4, 0.35, 0.3, 0.25])[:, None]
    waveform = (
        r * bumps(0, 0.010) - s * bumps(0.022, 0.010) + t * bumps(0.27, 0.04) + 0.1 * bumps(-0.16, 0.02)
    )
    return SimpleNamespace(waveform=waveform, peaks=(peaks * SAMPLING_RATE).round().astype(int))


def person(**changes: object) -> dict:
    return {f"{outcome}_severity": 0.7 for outcome in OUTCOMES} | {"territory": "anterior"} | changes


def beat_level(waveform: np.ndarray, peaks: np.ndarray, delay_s: float) -> np.ndarray:
    """Median level of each lead (n_leads,) at a time after R."""
    samples = peaks[1:-1] + round(delay_s * SAMPLING_RATE)
    return np.median(waveform[:, samples], axis=1)


@pytest.mark.parametrize("rate", [45.0, 70.0, 120.0])
def test_r_peaks_are_found_to_20_ms(rate: float) -> None:
    drawn = ecg(rate)
    found = Beats.find(drawn.waveform)
    assert len(found.peaks) == len(drawn.peaks)
    assert np.abs(found.peaks - drawn.peaks).max() <= 12  # V1-V3 may have their tallest point in S
    assert found.t_peak == pytest.approx(0.27, abs=0.03)
    assert np.abs(found.since_r[drawn.peaks]).max() <= 0.025


def test_a_flat_line_has_no_beats() -> None:
    with pytest.raises(EcglibError, match="no heart beat"):
        Beats.find(np.zeros((8, 5000)))


@pytest.mark.parametrize(
    ("territory", "raised", "lowered"),
    [
        ("anterior", ["V2", "V3", "V4"], ["II", "III", "aVF"]),
        ("inferior", ["II", "III", "aVF"], ["I", "aVL", "V2"]),
        ("lateral", ["I", "aVL", "V5", "V6"], ["III", "V1"]),
    ],
)
def test_stemi_raises_st_over_the_injured_wall(territory: str, raised: list[str], lowered: list[str]) -> None:
    drawn = ecg()
    changed = synthetic._stemi(drawn.waveform, Beats.find(drawn.waveform), person(territory=territory))
    level = dict(zip(LEADS_8, beat_level(changed - drawn.waveform, drawn.peaks, 0.12), strict=True))
    level |= derive_limb_leads(level["I"], level["II"])
    assert all(level[lead] > 0.1 for lead in raised)  # mV, one small square: what guidelines ask for
    assert all(level[lead] < -0.03 for lead in lowered)
    before_qrs = beat_level(changed - drawn.waveform, drawn.peaks, -0.08)
    assert np.abs(before_qrs).max() < 1e-6


def test_hcm_has_tall_precordial_r_septal_q_and_lateral_t_inversion() -> None:
    drawn = ecg()
    beats = Beats.find(drawn.waveform)
    changed = synthetic._hcm(drawn.waveform, beats, person())
    r_peak = beat_level(changed, drawn.peaks, 0) / beat_level(drawn.waveform, drawn.peaks, 0)
    assert r_peak[LEAD["V5"]] > 1.4
    septal_q = beat_level(changed - drawn.waveform, beats.peaks, -0.036)
    assert (septal_q[[LEAD["I"], LEAD["V5"], LEAD["V6"]]] < -0.1).all()
    assert np.abs(septal_q[[LEAD["II"], LEAD["V1"]]]).max() < 0.02
    t_peak = beat_level(changed, drawn.peaks, 0.27)
    assert (t_peak[[LEAD["V4"], LEAD["V5"], LEAD["V6"]]] < -0.1).all()
    assert t_peak[LEAD["V2"]] > 0.3


def test_low_lvef_has_wide_qrs_poor_r_progression_and_low_voltage() -> None:
    drawn = ecg()
    beats = Beats.find(drawn.waveform)
    changed = synthetic._low_lvef(drawn.waveform, beats, person())
    assert width_ms(changed[LEAD["II"]], beats) > 1.4 * width_ms(drawn.waveform[LEAD["II"]], beats)
    r_peak = beat_level(changed, drawn.peaks, 0) / beat_level(drawn.waveform, drawn.peaks, 0)
    assert (r_peak[[LEAD["V3"], LEAD["V4"]]] < 0.45).all()
    assert 0.6 < r_peak[LEAD["I"]] < 0.85
    untouched = np.abs(beats.since_r) > 0.15
    assert np.abs(changed - drawn.waveform)[:, untouched].max() < 0.01


def width_ms(lead: np.ndarray, beats: Beats) -> float:
    """Time a beat's QRS spends above half its height, in ms."""
    qrs = np.abs(beats.since_r) < 0.1
    return (lead[qrs] > lead[qrs].max() / 2).sum() / len(beats.peaks) / SAMPLING_RATE * 1e3


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_no_severity_no_sign(outcome: str) -> None:
    drawn = ecg()
    changed = synthetic._SIGNS[outcome](
        drawn.waveform, Beats.find(drawn.waveform), person(**{f"{outcome}_severity": 0.0})
    )
    np.testing.assert_allclose(changed, drawn.waveform, atol=1e-12)


def test_ecgs_of_one_patient_look_more_alike_than_those_of_two(cohort: pd.DataFrame) -> None:
    well = cohort[cohort[list(OUTCOMES)].sum(axis=1) == 0]
    in_pairs = well.groupby("patient_id").record_id.transform("size") == 2
    pairs = well.index.to_numpy()[in_pairs][:40]
    beats = np.stack([mean_beat(lead) for lead in waveforms(cohort, pairs, seed=0)[0]])
    distance = np.linalg.norm(beats[:, None] - beats[None], axis=2)
    own = np.median(distance[np.arange(0, 40, 2), np.arange(1, 40, 2)])
    others = np.median(distance[np.triu_indices(40, 2)])
    assert own < 0.85 * others


def mean_beat(waveform: np.ndarray) -> np.ndarray:
    peaks = Beats.find(waveform.astype(np.float64)).peaks
    windows = [waveform[:, peak - 100 : peak + 200] for peak in peaks if 100 <= peak <= 4800]
    return np.mean(windows, axis=0).ravel()


def test_the_external_site_records_more_noise_and_other_patients(cohort: pd.DataFrame) -> None:
    external = synthetic.SITES["E"]
    for name, site in synthetic.SITES.items():
        if name != "E":
            assert external.noise_mv > site.noise_mv
            assert external.gain > site.gain
    means = cohort.groupby(cohort.site == "E")[["low_lvef", "hcm", "stemi", "age"]].mean()
    assert means.low_lvef[True] > means.low_lvef[False] + 0.05
    assert means.hcm[True] < means.hcm[False]
