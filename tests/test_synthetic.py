"""The embedded cohort: prevalences, repeatable bytes, textbook signs, and how hard it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ecglib import generator, synthetic
from ecglib.beats import Beats
from ecglib.criteria import criteria_met
from ecglib.errors import EcglibError
from ecglib.measurements import measure_many
from ecglib.records import LEADS_8
from ecglib.signs import CONDITIONS, MIMICS, OUTCOMES, TERRITORIES, put_in
from ecglib.synthetic import KINDS, LABEL_NOISE, SAMPLING_RATE, draw_cohort, textbook_cases, waveforms

LEAD = {name: row for row, name in enumerate(LEADS_8)}
N_TEXTBOOK = 12


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return draw_cohort(2400, seed=0)


@pytest.fixture(scope="module")
def many() -> pd.DataFrame:
    """Internal ECGs of so many patients that shares and AUROCs are steady."""
    drawn = draw_cohort(8000, seed=1)
    return drawn.loc[drawn.site != "E"]


@pytest.fixture(scope="module")
def drawn(cohort: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return waveforms(cohort, range(24), seed=0)


# --- who is ill ---


def test_default_cohort_is_large_enough_and_hits_the_papers_prevalences(cohort: pd.DataFrame) -> None:
    assert len(cohort) >= 3000
    assert cohort.patient_id.nunique() >= 2000
    assert cohort.record_id.is_unique
    assert draw_cohort(203, seed=1).patient_id.nunique() == 203
    internal = cohort[cohort.site != "E"]
    for outcome, prevalence in (("low_lvef", 0.18), ("hcm", 0.38), ("stemi", 0.057)):
        for column in (outcome, f"{outcome}_true"):
            assert internal[column].mean() == pytest.approx(prevalence, abs=0.005)
    assert set(cohort.site) == set("ABCDE")


def test_sites_differ_in_case_mix_noise_and_hum(cohort: pd.DataFrame) -> None:
    external = synthetic.SITES["E"]
    for name, site in synthetic.SITES.items():
        share = cohort.loc[cohort.site == name, list(OUTCOMES)].mean()
        assert share.to_list() == pytest.approx([site.low_lvef, site.hcm, site.stemi], abs=0.015)
        if name != "E":
            assert external.noise_mv > site.noise_mv
            assert external.gain > site.gain
    assert {site.hum_hz for site in synthetic.SITES.values()} == {50.0, 60.0}


def test_disease_and_anatomy_belong_to_the_patient_and_infarction_to_the_ecg(cohort: pd.DataFrame) -> None:
    per_patient = cohort.groupby("patient_id")
    own = ["low_lvef", "hcm", "hcm_true", "low_lvef_severity", "site", "age", "sex", "voltage", "axis_deg"]
    assert per_patient[[*own, "rotation", "qrs_width", "territory"]].nunique().max().max() == 1
    assert per_patient.stemi.nunique().max() == 2


def test_age_and_sex_change_the_risk_and_the_heart(many: pd.DataFrame) -> None:
    men, old = many[many.sex == "male"], many[many.age > 70]
    women, young = many[many.sex == "female"], many[many.age < 50]
    assert men.stemi_true.mean() > 1.3 * women.stemi_true.mean()
    assert old.low_lvef_true.mean() > 1.3 * young.low_lvef_true.mean()
    assert young.early_repolarisation_severity.mean() > 2 * old.early_repolarisation_severity.mean()
    assert men.voltage.mean() > women.voltage.mean()
    assert young.t_voltage.mean() > old.t_voltage.mean()
    assert men.diastole.mean() > women.diastole.mean()


def test_outcomes_go_together(many: pd.DataFrame) -> None:
    patients = many.drop_duplicates("patient_id")
    both = patients.low_lvef_true & patients.hcm_true
    assert both.mean() > 1.1 * patients.low_lvef_true.mean() * patients.hcm_true.mean()
    assert many.stemi_true[many.low_lvef_true == 1].mean() > 1.3 * many.stemi_true.mean()


def test_labels_are_wrong_as_often_as_stated(many: pd.DataFrame) -> None:
    for outcome in OUTCOMES:
        ill, label = many[f"{outcome}_true"] == 1, many[outcome] == 1
        assert (~label[ill]).mean() == pytest.approx(LABEL_NOISE[outcome], abs=0.015)
        assert label.sum() == ill.sum()
        assert (many[f"{outcome}_severity"] > 0).equals(ill)


def test_nobody_has_an_outcome_and_its_mimic_in_one_ecg(many: pd.DataFrame) -> None:
    for mimic, imitated in MIMICS.items():
        shown = many[f"{mimic}_severity"] > 0
        assert shown.mean() > 0.03
        assert not many.loc[shown, [f"{outcome}_true" for outcome in imitated]].any(axis=None)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.05, 0.2, 0.7]), st.integers(1, 4), st.floats(-3, 3)),
        min_size=1,
        max_size=200,
    )
)
def test_the_most_liable_are_ill_until_the_share_is_reached(rows: list[tuple[float, int, float]]) -> None:
    share, weight, liability = (np.array(column) for column in zip(*rows, strict=True))
    ill = synthetic._most_liable(liability, weight, pd.Series(share))
    for wanted in np.unique(share):
        group = share == wanted
        assert abs(weight[group & ill].sum() - wanted * weight[group].sum()) <= 2
        if (group & ill).any() and (group & ~ill).any():
            assert liability[group & ill].min() >= liability[group & ~ill].max()


def test_same_seed_same_cohort_other_seed_another(cohort: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(cohort, draw_cohort(2400, seed=0))
    assert not cohort.stemi.equals(draw_cohort(2400, seed=1).stemi)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(EcglibError, match="n_patients=10: "):
        draw_cohort(10, seed=0)


# --- the waveforms ---


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


def test_the_folded_generator_is_the_generator() -> None:
    import deepfakeecg
    import torch

    noise = np.random.default_rng(0).uniform(-1, 1, (2, 8, 5000)).astype(np.float32)
    whole = deepfakeecg.Generator()
    whole.load_state_dict(generator._weights())
    with torch.inference_mode():
        expected = 6.0 * whole.eval()(torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(generator.generate(noise), expected, atol=1e-4)


def test_evidence_follows_the_truth(cohort: pd.DataFrame, drawn: tuple[np.ndarray, np.ndarray]) -> None:
    for row in range(24):
        for bit, outcome in enumerate(OUTCOMES):
            marked = (drawn[1][row] >> bit & 1).any()
            severity = cohort[f"{outcome}_severity"][row]
            assert marked if severity > 0.2 else not marked or severity > 0


def test_an_ecg_labelled_by_mistake_has_no_evidence(cohort: pd.DataFrame) -> None:
    mistaken = np.flatnonzero((cohort.hcm == 1) & (cohort.hcm_true == 0))[:3]
    missed = np.flatnonzero((cohort.hcm == 0) & (cohort.hcm_severity > 0.3))[:3]
    assert not (waveforms(cohort, mistaken, seed=0)[1] >> 1 & 1).any()
    assert (waveforms(cohort, missed, seed=0)[1] >> 1 & 1).any(axis=(1, 2)).all()


def test_ecgs_of_one_patient_look_more_alike_than_those_of_two(cohort: pd.DataFrame) -> None:
    well = cohort[cohort[[f"{name}_severity" for name in CONDITIONS]].sum(axis=1) == 0]
    in_pairs = well.groupby("patient_id").record_id.transform("size") == 2
    pairs = well.index.to_numpy()[in_pairs][:40]
    beats = np.stack([mean_beat(lead) for lead in waveforms(cohort, pairs, seed=0)[0]])
    distance = np.linalg.norm(beats[:, None] - beats[None], axis=2)
    own = np.median(distance[np.arange(0, 40, 2), np.arange(1, 40, 2)])
    others = np.median(distance[np.triu_indices(40, 2)])
    assert own < 0.75 * others


def mean_beat(waveform: np.ndarray) -> np.ndarray:
    peaks = Beats.find(waveform, SAMPLING_RATE).peaks
    windows = [waveform[:, peak - 100 : peak + 200] for peak in peaks if 100 <= peak <= 4800]
    return np.mean(windows, axis=0).ravel()


# --- the signs ---


@pytest.mark.parametrize("name", list(KINDS))
def test_full_severity_meets_the_textbook(name: str) -> None:
    kind = KINDS[name]
    people = textbook_cases(kind, N_TEXTBOOK, seed=3)
    made, evidence = waveforms(people, range(N_TEXTBOOK), seed=3)
    who = zip(made, people.age, people.sex, strict=True)
    met = pd.DataFrame([criteria_met(lead, SAMPLING_RATE, age, sex) for lead, age, sex in who])
    for criterion in kind.criteria:
        assert met[criterion].mean() >= 0.75, criterion
    if kind.condition is None:
        for criterion in ("LBBB", "infarct Q", "Sokolow-Lyon", "poor R progression", "T inversion"):
            assert met[criterion].mean() <= 0.25, criterion
    assert evidence.any() == (kind.condition in OUTCOMES)


def bumps() -> tuple[np.ndarray, Beats]:
    """Healthy beats, float32 (8, 5000), R peaks known: P, QRS and T of usual size in each lead."""
    peaks = np.arange(250, 4900, 430)
    since = (np.arange(5000) - peaks[:, None]) / SAMPLING_RATE

    def bump(delay: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((since - delay) / width) ** 2).sum(axis=0)

    r = np.array([0.8, 1.0, 0.2, 0.4, 0.7, 1.3, 1.3, 1.1])[:, None]
    s = np.array([0.1, 0.1, 0.9, 1.3, 0.9, 0.5, 0.2, 0.1])[:, None]
    t = np.array([0.2, 0.3, 0.05, 0.4, 0.4, 0.35, 0.3, 0.25])[:, None]
    waves = r * bump(0, 0.01) - s * bump(0.022, 0.01) + t * bump(0.27, 0.04) + 0.1 * bump(-0.16, 0.02)
    return waves.astype(np.float32), Beats.at(peaks, 5000, 0.27, SAMPLING_RATE)


def person(**changes: object) -> dict:
    well = {f"{condition}_severity": 0.0 for condition in CONDITIONS}
    return (
        well
        | {"territory": "anterior", "stemi_stage": 0.4, "hcm_apical": 0.3, "low_lvef_lbbb": False}
        | changes
    )


@pytest.mark.parametrize("territory", list(TERRITORIES))
def test_stemi_raises_st_over_the_injured_wall_and_lowers_it_opposite(territory: str) -> None:
    healthy, beats = bumps()
    ill, _ = put_in(healthy, beats, person(stemi_severity=1.0, territory=territory))
    change = np.median((ill - healthy)[:, beats.peaks[1:-1] + 75], axis=1)  # 150 ms after R
    weights = np.array(TERRITORIES[territory])
    assert (change[weights >= 0.8] > 0.25).all()
    assert (change[weights <= -0.25] < -0.08).all()
    before_qrs = np.median((ill - healthy)[:, beats.peaks[1:-1] - 60], axis=1)
    assert np.abs(before_qrs).max() < 0.02


def test_an_infarct_evolves_from_tall_t_to_raised_st_to_q_and_inverted_t() -> None:
    healthy, beats = bumps()
    change = []
    for stage in (0.0, 0.4, 1.0):
        ill, _ = put_in(healthy, beats, person(stemi_severity=1.0, stemi_stage=stage))
        at = beats.peaks[1:-1, None] + np.array([-8, 60, 135])  # Q, ST segment, T peak
        change.append(np.median((ill - healthy)[LEAD["V3"]][at], axis=0))
    (first_q, first_st, first_t), (early_q, early_st, early_t), (late_q, late_st, late_t) = change
    assert first_t > early_t > 0.3 > 0 > late_t
    assert early_st > first_st
    assert early_st > late_st
    assert late_q < -0.3 < min(first_q, early_q)


@pytest.mark.parametrize("condition", list(CONDITIONS))
def test_signs_grow_with_severity_and_never_jump(condition: str) -> None:
    healthy, beats = bumps()
    sizes = [0.0]
    for severity in (0.2, 0.6, 1.0):
        ill, evidence = put_in(healthy, beats, person(**{f"{condition}_severity": severity}))
        change = ill - healthy
        sizes.append(float(np.abs(change).mean()))
        # No edge of a window is steeper than a QRS: 0.15 mV in 2 ms.
        assert np.abs(np.diff(change, axis=1)).max() < 0.5 * np.abs(np.diff(healthy, axis=1)).max() + 0.15
        if condition in OUTCOMES:
            marked = evidence >> OUTCOMES.index(condition) & 1
            np.testing.assert_array_equal(marked, np.abs(change) > 0.025)
    assert np.all(np.diff(sizes) > 0)


def test_no_condition_no_change() -> None:
    healthy, beats = bumps()
    same, evidence = put_in(healthy, beats, person())
    np.testing.assert_array_equal(same, healthy)
    assert not evidence.any()


# --- how hard it is ---


def auroc(features: np.ndarray, table: pd.DataFrame, outcome: str) -> float:
    """Of a logistic regression, each patient scored by a model that has not seen the patient."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    score: Any = cross_val_predict(
        model, features, table[outcome], groups=table.patient, cv=GroupKFold(5), method="predict_proba"
    )
    return float(roc_auc_score(table[outcome], score[:, 1]))


def test_who_reads_the_evidence_scores_between_93_and_98(many: pd.DataFrame) -> None:
    """The oracle: how strongly each sign was put in, whoever put it, read to 5 % of full strength."""
    strength = synthetic.oracle_features(many).to_numpy()
    seen = strength + np.random.default_rng(0).normal(0, 0.05, strength.shape)
    for outcome in OUTCOMES:
        assert 0.93 <= auroc(seen, many, outcome) <= 0.98


def classical(n_patients: int) -> dict[str, float]:
    cohort = draw_cohort(n_patients, seed=0)
    rows = np.flatnonzero(cohort.site != "E")
    made, _ = waveforms(cohort, rows, seed=0)
    table = measure_many(made, SAMPLING_RATE)
    features = table.fillna(table.median()).to_numpy()
    return {outcome: auroc(features, cohort.iloc[rows], outcome) for outcome in OUTCOMES}


def test_classical_measurements_find_something_and_not_everything() -> None:
    found = classical(350)
    for outcome in ("low_lvef", "hcm"):  # too few ECGs for STEMI
        assert 0.70 <= found[outcome] <= 0.92


@pytest.mark.slow
def test_classical_measurements_score_between_75_and_88(
    record_property: Callable[[str, object], None],
) -> None:
    for outcome, score in classical(2150).items():
        record_property(f"AUROC of {outcome}", f"{score:.3f}")
        assert 0.75 <= score <= 0.88, outcome
