"""Weights of the bootstrap are the draws of `metrics.bootstrap`."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import average_precision_score, roc_auc_score

from ecglib.intervals import percentile
from ecglib.metrics import ScoreSettings, bootstrap
from ecglib.resampling import mean_over_runs, record_weights, spread, spread_scores

SETTINGS = ScoreSettings(n_draws=40, seed=3)


def test_weights_give_the_scores_of_the_bootstraps_own_draws() -> None:
    rng = np.random.default_rng(0)
    y_true, y_score, patients = rng.integers(0, 2, 80), rng.random(80).round(1), rng.integers(0, 50, 80)
    weights = record_weights(y_true, patients, SETTINGS)
    draws = bootstrap(y_true, y_score, patients, n_draws=SETTINGS.n_draws, seed=SETTINGS.seed)
    for own, row in zip(weights, draws.to_dict("records"), strict=True):
        assert np.isclose(roc_auc_score(y_true, y_score, sample_weight=own), row["auroc"])
        assert np.isclose(average_precision_score(y_true, y_score, sample_weight=own), row["auprc"])


def test_a_patient_brings_all_records_and_no_draw_lacks_a_class() -> None:
    y_true, patients = np.array([1, 0, 0, 0, 0, 0]), np.array(["a", "a", "b", "b", "c", "c"])
    weights = record_weights(y_true, patients, SETTINGS)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights.sum(axis=1) == 6).all()
    assert (weights[:, 0] > 0).all()


def test_scores_that_part_the_classes_have_no_interval_and_equal_scores_do() -> None:
    y_true, patients = np.repeat([0, 1], 10), np.arange(20)
    for y_score, value in ((y_true, 1), (1 - y_true, 0)):
        auroc = spread_scores(y_true, y_score, patients, SETTINGS)["auroc"]
        assert auroc["value"] == value
        assert np.isnan([auroc["low"], auroc["high"]]).all()
    nothing = spread_scores(y_true, np.ones(20), patients, SETTINGS)["auroc"]
    assert nothing == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_a_draw_without_a_number_leaves_no_interval() -> None:
    assert np.isnan(spread(np.array([0.1, np.nan, 0.3]), SETTINGS)["low"])
    assert spread(np.full(5, 0.25), SETTINGS) == {"low": 0.25, "high": 0.25}


def test_a_mean_over_runs_is_as_wide_as_students_t_where_patients_do_not_vary() -> None:
    runs = np.array([0.70, 0.74, 0.81, 0.65, 0.78])
    low, high = mean_over_runs(runs, np.repeat(runs[:, None], 4_000, axis=1), ScoreSettings(n_draws=4_000))
    by_scipy = ttest_1samp(runs, 0).confidence_interval(0.95)
    np.testing.assert_allclose([low, high], by_scipy, atol=2e-4)


def test_a_mean_over_runs_adds_what_patients_and_runs_vary() -> None:
    rng, settings = np.random.default_rng(0), ScoreSettings(n_draws=20_000, seed=1)
    runs = rng.normal(0.1, 0.05, 200)  # so many that Student's t is normal
    draws = runs[:, None] + rng.normal(0, 0.004, settings.n_draws)
    low, high = mean_over_runs(runs, draws, settings)
    assert high - low == pytest.approx(2 * 1.96 * np.hypot(0.004, runs.std(ddof=1) / np.sqrt(200)), rel=0.02)


def test_of_a_single_run_patients_alone_vary() -> None:
    draws = np.random.default_rng(0).normal(size=(1, 100))
    assert mean_over_runs(np.array([0.0]), draws, SETTINGS) == percentile(draws[0], SETTINGS.confidence)
