"""Calibration: against scikit-learn and SciPy, by hand, and by the laws that scaling must keep."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from ecglib.calibration import (
    TEMPERATURES,
    bin_codes,
    ece_by_chance,
    fit_temperature,
    logits,
    measure,
    reliability_curve,
    temperature_scaled,
    weighted_measures,
)
from ecglib.errors import EcglibError
from ecglib.metrics import ScoreSettings, auroc

SETTINGS = ScoreSettings(n_draws=100, seed=1)
PROBABILITIES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30)


def simulated(n: int, *, slope: float = 1.0, shift: float = 0.0, seed: int = 0) -> tuple:
    """Labels drawn from true logits t - 1, and probabilities that say slope * (t - 1) + shift instead."""
    rng = np.random.default_rng(seed)
    true = 1.5 * rng.normal(size=n) - 1
    return (rng.random(n) < expit(true)).astype(int), expit(slope * true + shift), np.arange(n)


def measured(y_true: np.ndarray, y_score: np.ndarray, n_bins: int = 10) -> dict[str, float]:
    once = weighted_measures(y_true, y_score, np.ones((1, len(y_true))), n_bins)
    return {name: float(value[0]) for name, value in once.items()}


# --- the curve ---


@settings(max_examples=40)
@given(PROBABILITIES, st.integers(2, 12), st.integers(0, 99))
def test_bins_are_scikit_learns(scores: list[float], n_bins: int, seed: int) -> None:
    y_score = np.array(scores)
    y_true = np.random.default_rng(seed).integers(0, 2, len(y_score))
    y_true[:2] = 0, 1
    curve = reliability_curve(y_true, y_score, np.arange(len(y_score)), n_bins)
    observed, predicted = calibration_curve(y_true, y_score, n_bins=n_bins, strategy="quantile")
    assert np.allclose(curve.observed, observed)
    assert np.allclose(curve.predicted, predicted)
    assert curve.n.sum() == len(y_score)


def test_bins_hold_equally_many_records_and_equal_scores_share_one() -> None:
    y_true, y_score, patients = simulated(200)
    assert (reliability_curve(y_true, y_score, patients, 10).n == 20).all()
    assert list(bin_codes(np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.9]), 3)) == [0, 0, 0, 0, 0, 1]
    assert set(bin_codes(np.full(9, 0.3), 5)) == {0}


def test_a_bins_interval_is_wilsons_and_counts_patients() -> None:
    y_true, y_score = np.array([0, 0, 1, 0, 1, 1, 1, 0]), np.array([0.1] * 4 + [0.8] * 4)
    curve = reliability_curve(y_true, y_score, np.arange(8), 2)
    for row in curve.to_dict("records"):
        ends = binomtest(row["n_positive"], row["n"]).proportion_ci(0.95, method="wilson")
        assert np.allclose([row["low"], row["high"]], ends)
    fewer = reliability_curve(y_true, y_score, np.array([0, 0, 1, 1, 2, 2, 3, 3]), 2)
    assert (fewer.n_patients == 2).all()
    assert ((fewer.high - fewer.low) > (curve.high - curve.low)).all()


def test_a_bin_without_a_positive_still_has_an_interval() -> None:
    curve = reliability_curve(np.array([0] * 20 + [1] * 20), np.repeat([0.1, 0.9], 20), np.arange(40), 2)
    assert curve.low.iloc[0] == 0
    assert 0.1 < curve.high.iloc[0] < 0.2


# --- the measures ---


def test_measures_by_hand() -> None:
    y_true, y_score = np.array([0, 1, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    found = measured(y_true, y_score, n_bins=2)
    assert found["ece"] == pytest.approx((abs(0.5 - 0.2) + abs(1 - 0.7)) / 2)
    assert found["brier"] == pytest.approx((0.01 + 0.49 + 0.16 + 0.04) / 4)
    assert found["brier_skill"] == pytest.approx(1 - 0.175 / (0.75 * 0.25))


def test_intercept_by_hand_is_what_the_mean_lacks() -> None:
    y_true = np.array([1, 0, 0, 0, 0])
    assert measured(y_true, np.full(5, 0.5))["intercept"] == pytest.approx(logit(0.2))
    assert measured(y_true, np.full(5, 0.2))["intercept"] == pytest.approx(0, abs=1e-9)
    assert np.isnan(measured(y_true, np.full(5, 0.5))["slope"])


@settings(max_examples=25)
@example(187, 4.0, 0.0)
@given(st.integers(0, 1000), st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([-3.0, 0.0, 2.0]))
def test_brier_and_slope_are_scikit_learns(seed: int, slope: float, shift: float) -> None:
    y_true, y_score, _ = simulated(120, slope=slope, shift=shift, seed=seed)
    found, z = measured(y_true, y_score), logits(y_score)  # float32's, so at most 17
    assert found["brier"] == pytest.approx(brier_score_loss(y_true, y_score))
    fitted = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(z[:, None], y_true)
    assert found["slope"] == pytest.approx(float(np.ravel(fitted.coef_)[0]), rel=1e-4)
    assert expit(z + found["intercept"]).mean() == pytest.approx(y_true.mean(), abs=1e-6)


def test_weights_count_a_record_as_often_as_they_say() -> None:
    y_true, y_score, _ = simulated(60)
    weights = np.random.default_rng(0).integers(0, 4, (3, 60)).astype(float)
    found = weighted_measures(y_true, y_score, weights, 5)
    for draw, own in enumerate(weights.astype(int)):
        repeated = measured(np.repeat(y_true, own), np.repeat(y_score, own))
        for name in ("brier", "brier_skill", "intercept", "slope"):
            assert found[name][draw] == pytest.approx(repeated[name], abs=1e-6)


@pytest.mark.parametrize("outlier", [-104.0, 17.0])  # the logits of float32's 0 and 1
def test_every_draw_whose_classes_overlap_has_a_slope(outlier: float) -> None:
    rng = np.random.default_rng(0)
    for scale in (0.2, 2.0, 20.0):
        z = np.append(rng.normal(size=199) * scale - 1, outlier)
        y_true = (rng.random(200) < expit((z + 1) / scale)).astype(float)
        weights = rng.multinomial(200, np.full(200, 1 / 200), size=400).astype(float)
        slopes = weighted_measures(y_true, expit(z), weights, 10)["slope"]
        assert np.isfinite(slopes).all()


def test_a_perfectly_calibrated_simulation_has_slope_1_and_no_error_beyond_chance() -> None:
    y_true, y_score, patients = simulated(20_000)
    table = measure(y_true, y_score, patients, 10, SETTINGS).set_index("measure")
    assert table.value["slope"] == pytest.approx(1, abs=0.05)
    assert table.value["intercept"] == pytest.approx(0, abs=0.05)
    assert table.value["ece"] < 0.012
    assert ece_by_chance(y_score, patients, 10, SETTINGS).mean() < 0.012
    others = table.drop(index="ece")
    assert (others.low <= others.value).all()
    assert (others.value <= others.high).all()
    assert table.loc["ece", ["low", "high"]].isna().all()


def test_slope_and_intercept_undo_what_was_done_to_the_logits() -> None:
    y_true, y_score, _ = simulated(20_000, slope=2.0)
    assert measured(y_true, y_score)["slope"] == pytest.approx(0.5, abs=0.03)
    y_true, y_score, _ = simulated(20_000, shift=-1.5)
    assert measured(y_true, y_score)["intercept"] == pytest.approx(1.5, abs=0.05)


def beyond_chance(shift: float, ecgs_each: int = 1) -> float:
    """Share of 200 studies of 300 patients, whose logits are shifted, with an ECE beyond chance."""
    found = 0
    for seed in range(200):
        y_true, y_score, patients = simulated(300, shift=shift, seed=seed)
        study = [np.repeat(values, ecgs_each) for values in (y_true, y_score, patients)]
        by_chance = ece_by_chance(study[1], study[2], 10, SETTINGS)
        found += measured(study[0], study[1])["ece"] > np.quantile(by_chance, 0.95)
    return found / 200


def test_the_error_of_true_probabilities_is_beyond_chance_in_one_study_of_twenty() -> None:
    assert 0.01 <= beyond_chance(0) <= 0.1
    assert beyond_chance(0.6) > 0.7


def test_more_ecgs_of_the_same_patients_make_chance_no_smaller() -> None:
    assert 0.01 <= beyond_chance(0, ecgs_each=4) <= 0.1
    _, y_score, patients = simulated(300)
    repeated = [np.repeat(values, 4) for values in (y_score, patients)]
    as_if_independent = ece_by_chance(repeated[0], np.arange(1200), 10, SETTINGS)
    assert as_if_independent.mean() < 0.6 * ece_by_chance(y_score, patients, 10, SETTINGS).mean()


def test_few_records_have_an_error_by_chance() -> None:
    few, many = (
        ece_by_chance(y_score, patients, 10, SETTINGS).mean()
        for _, y_score, patients in (simulated(40), simulated(20_000))
    )
    assert few > 5 * many


def test_scores_that_part_the_classes_have_no_slope_and_a_draw_like_that_no_interval() -> None:
    parted = measure(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.arange(4), 2, SETTINGS)
    assert np.isnan(parted.set_index("measure").value["slope"])
    y_true, y_score = np.array([0, 0, 0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.35, 0.4, 0.5])
    touching = measure(y_true, y_score, np.arange(6), 2, SETTINGS).set_index("measure")
    assert np.isfinite(touching.value["slope"])
    assert np.isnan(touching.low["slope"])
    assert np.isfinite(touching.low["brier"])


# --- temperature ---


def test_logits_are_those_of_the_two_neurons() -> None:
    assert np.allclose(logits(expit(np.array([-30.0, -2.0, 0.0, 5.0]))), [-30, -2, 0, 5])


def test_logits_stay_finite_and_in_order_at_0_and_1() -> None:
    edge = np.array([0, np.finfo(np.float32).smallest_subnormal, 1e-7, 0.5, 1 - 2.0**-24, 1], np.float32)
    z = logits(edge)
    assert np.isfinite(z).all()
    assert (np.diff(z) > 0).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(EcglibError, match="between 0 and 1"):
        logits(np.array([0.5, bad]))


@settings(max_examples=40)
@given(PROBABILITIES, st.floats(0.01, 100), st.integers(0, 99))
def test_temperature_changes_no_auroc(scores: list[float], temperature: float, seed: int) -> None:
    y_score = np.array(scores, np.float32)
    y_true = np.random.default_rng(seed).integers(0, 2, len(y_score))
    y_true[:2] = 0, 1
    assert auroc(y_true, logits(y_score) / temperature) == auroc(y_true, y_score)
    scaled = temperature_scaled(y_score, temperature)
    assert (np.diff(scaled[np.argsort(y_score, kind="stable")]) >= 0).all()


def test_scaled_probabilities_keep_their_auroc() -> None:
    y_true, y_score, _ = simulated(300)
    for temperature in (0.3, 1.7, 20.0):
        assert auroc(y_true, temperature_scaled(y_score, temperature)) == auroc(y_true, y_score)


def test_the_temperature_that_made_the_scores_is_found() -> None:
    for temperature in (0.5, 1.0, 3.0):
        y_true, y_score, _ = simulated(20_000, slope=temperature)
        assert fit_temperature(y_true, y_score) == pytest.approx(temperature, rel=0.05)
    y_true, y_score, _ = simulated(20_000, slope=3.0)
    scaled = temperature_scaled(y_score, fit_temperature(y_true, y_score))
    assert measured(y_true, scaled)["slope"] == pytest.approx(1, abs=0.05)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([0.2, 1.0, 5.0]), st.sampled_from([-2.0, 0.0, 2.0]))
def test_no_other_temperature_fits_better(seed: int, slope: float, shift: float) -> None:
    y_true, y_score, _ = simulated(60, slope=slope, shift=shift, seed=seed)
    best = fit_temperature(y_true, y_score)
    loss = log_loss(y_true, temperature_scaled(y_score, best))
    for other in np.clip([best * 0.9, best * 1.1, 1.0], *TEMPERATURES):
        assert loss <= log_loss(y_true, temperature_scaled(y_score, other)) + 1e-9


def test_a_temperature_without_a_minimum_stops_at_the_end() -> None:
    y_true = np.array([0, 0, 1, 1])
    assert fit_temperature(y_true, np.array([0.2, 0.3, 0.7, 0.8])) == TEMPERATURES[0]
    assert fit_temperature(y_true, np.array([0.8, 0.7, 0.3, 0.2])) == TEMPERATURES[1]
