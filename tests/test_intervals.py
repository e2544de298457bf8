"""Intervals: by hand, against SciPy, and by what they must hold."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicted import predictions, study
from scipy import stats

from ecglib.intervals import bca, hanley_mcneil, honest_interval, of_mean, percentile
from ecglib.metrics import METRICS, auroc, bootstrap, leave_one_patient_out, point_scores


def test_bootstrap_of_the_papers_test_part_agrees_with_hanley_mcneil_and_the_mean_interval_does_not():
    """AUROC .88 with 235 positives of 4,352: the 95 % interval is about .85-.91; the paper prints .88-.89."""
    y_true, y_score, _ = study(4352, 235, 4352, distance=1.66, digits=6)
    value = auroc(y_true, y_score)
    draws = bootstrap(y_true, y_score, np.arange(4352), seed=1)["auroc"].to_numpy()
    formula = hanley_mcneil(value, 235, 4352 - 235)
    low, high = percentile(draws)
    assert high - low == pytest.approx(formula[1] - formula[0], rel=0.25)
    assert low < value < high
    narrow_low, narrow_high = of_mean(draws)
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(np.sqrt(500), rel=0.1)


def test_over_label_permutations_one_half_lies_inside_the_interval():
    rng = np.random.default_rng(0)
    y_true, y_score, groups = study(150, 50, 150, digits=6)
    inside = np.zeros(2)
    for i in range(200):
        labels = rng.permutation(y_true)
        draws = bootstrap(labels, y_score, groups, n_draws=200, seed=i)["auroc"].to_numpy()
        jackknife = leave_one_patient_out(labels, y_score, groups)["auroc"].to_numpy()
        limits = percentile(draws), bca(auroc(labels, y_score), draws, jackknife)
        inside += [low <= 0.5 <= high for low, high in limits]
    assert ((inside >= 180) & (inside <= 198)).all()


def test_interval_worked_by_hand():
    values = np.arange(101.0)
    assert percentile(values, 0.9) == pytest.approx((5, 95))
    half = 1.6448536 * values.std(ddof=1) / np.sqrt(101)
    assert of_mean(values, 0.9) == pytest.approx((50 - half, 50 + half))


@settings(max_examples=25)
@given(predictions(), st.integers(2, 3))
def test_duplicating_every_record_of_every_patient_changes_no_interval(data, times):
    once, again = ({m: limits_of(d, m) for m in METRICS} for d in (data, [np.repeat(x, times) for x in data]))
    for metric in METRICS:
        assert again[metric] == pytest.approx(once[metric], abs=1e-9)


def limits_of(data, metric: str) -> list[float]:
    draws = bootstrap(*data, n_draws=40, seed=2)[metric].to_numpy()
    jackknife = leave_one_patient_out(*data)[metric].to_numpy()
    # Rounding may move a draw over a value that it equals: the ties of both must be those of the numbers.
    value, draws, jackknife = (np.round(x, 10) for x in (point_scores(*data[:2])[metric], draws, jackknife))
    return list(honest_interval(float(value), draws, jackknife).values())


@pytest.mark.parametrize(("metric", "n_positive"), [("auroc", 8), ("auprc", 8), ("auroc", 40)])
def test_bca_is_scipys_for_the_same_draws(metric, n_positive):
    y_true, y_score, _ = study(80, n_positive, 80, distance=1.5, digits=1, seed=3)
    order = np.argsort(np.arange(80).astype(str))  # ours are in the order of the ids as text
    data = y_true, y_score, np.arange(80)
    draws = bootstrap(*data, n_draws=300, seed=1)[metric].to_numpy()
    ours = bca(point_scores(*data[:2])[metric], draws, leave_one_patient_out(*data)[metric].to_numpy())
    theirs = stats.bootstrap(
        (order,),
        lambda rows: point_scores(y_true[rows], y_score[rows])[metric],
        vectorized=False,
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=draws),
        method="BCa",
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=1e-9)
    assert ours != pytest.approx(percentile(draws), abs=1e-3)


def test_bca_without_bias_and_skewness_is_the_percentile_interval():
    draws, jackknife = np.arange(-100.0, 101), np.array([-1.0, 0, 1])
    for confidence in (0.5, 0.95):
        assert bca(0.0, draws, jackknife, confidence) == pytest.approx(percentile(draws, confidence))
    flat = np.ones(50)
    assert bca(1.0, flat, np.ones(5)) == (1, 1)
    assert bca(0.0, draws, np.array([np.nan])) == pytest.approx(percentile(draws))


def test_bca_moves_towards_where_the_value_lies_among_the_draws():
    draws, jackknife = np.arange(-100.0, 101), np.array([-1.0, 0, 1])
    low, high = bca(20.0, draws, jackknife)
    assert low > percentile(draws)[0]
    assert high > percentile(draws)[1]
    assert all(np.isfinite(bca(value, draws, jackknife)).all() for value in (-1000.0, 1000.0))
    mirrored = bca(-20.0, -draws, -jackknife)
    assert mirrored == pytest.approx((-high, -low))


def test_hanley_and_mcneils_formula_worked_by_hand():
    """Their Table II: AUROC .9 from 50 and 50: a standard error of .0301 (Q1 .8182, Q2 .8526)."""
    variance = (0.9 * 0.1 + 49 * (0.9 / 1.1 - 0.81) + 49 * (1.62 / 1.9 - 0.81)) / 2500
    low, high = hanley_mcneil(0.9, 50, 50)
    assert (high - low) / (2 * 1.959964) == pytest.approx(np.sqrt(variance), rel=1e-6)
    assert (low + high) / 2 == pytest.approx(0.9)
