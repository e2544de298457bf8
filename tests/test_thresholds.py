"""Net benefit and operating points, worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ecglib.errors import EcglibError
from ecglib.metrics import ScoreSettings
from ecglib.thresholds import (
    at_threshold,
    decision_curve,
    net_benefit,
    threshold_at_specificity,
    thresholds_around,
)

SETTINGS = ScoreSettings(n_draws=60, seed=2)
# Ten patients, four ill; at 20 % three true and two false positives.
Y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
P = np.array([0.9, 0.5, 0.2, 0.1, 0.6, 0.3, 0.1, 0.05, 0.05, 0.0])


def test_net_benefit_by_hand() -> None:
    found = net_benefit(Y, P, np.array([0.2, 0.5]))[0]
    assert found == pytest.approx([3 / 10 - 2 / 10 * 0.25, 2 / 10 - 1 / 10 * 1.0])


def test_the_curve_stands_against_treating_all_and_none() -> None:
    table = decision_curve(Y, P, np.arange(10), np.array([0.2, 0.5]), SETTINGS)
    assert list(table.treat_all) == pytest.approx([0.4 - 0.6 * 0.25, 0.4 - 0.6])
    assert list(table.gain) == pytest.approx([0.25 - 0.25, 0.1 - 0.0])
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()


def test_acting_on_everybody_is_treating_all_and_gains_nothing() -> None:
    table = decision_curve(Y, np.ones(10), np.arange(10), thresholds_around(0.4, 5), SETTINGS)
    assert np.allclose(table.value, table.treat_all)
    gained = table.loc[table.threshold < 0.39, ["gain", "gain_low", "gain_high"]]
    assert len(gained) == 2
    assert np.allclose(gained, 0)


def test_the_interval_of_the_gain_holds_the_truth_at_the_prevalence_too() -> None:
    """Half of the patients have a risk of 2 %, half of 20 %. Taking each draw's better default held 88 %."""
    prevalence, n, held = 0.11, 400, 0
    true = 0.5 * (0.2 - 0.8 * prevalence / (1 - prevalence))
    for seed in range(400):
        rng = np.random.default_rng(seed)
        risk = rng.choice([0.02, 0.2], n)
        y_true = (rng.random(n) < risk).astype(int)
        settings = ScoreSettings(n_draws=200, seed=seed)
        row = decision_curve(y_true, risk, np.arange(n), np.array([prevalence]), settings).iloc[0]
        held += row["gain_low"] <= true <= row["gain_high"]
    assert 0.91 <= held / 400 <= 0.98


def test_weights_count_a_record_as_often_as_they_say() -> None:
    weights = np.array([[2, 0, 1, 1, 3, 0, 1, 1, 0, 1]])
    t = np.array([0.1, 0.3])
    repeated = net_benefit(np.repeat(Y, weights[0]), np.repeat(P, weights[0]), t)
    assert np.allclose(net_benefit(Y, P, t, weights), repeated)


def test_thresholds_lie_around_the_prevalence() -> None:
    found = thresholds_around(0.05, 5)
    odds = found / (1 - found)
    assert found[2] == pytest.approx(0.05)
    assert odds / (0.05 / 0.95) == pytest.approx([0.25, 0.5, 1, 2, 4])


def test_the_threshold_is_a_score_and_spares_what_was_asked() -> None:
    y_true = np.array([0] * 10 + [1] * 2)
    y_score = np.array([*np.arange(10) / 10, 0.85, 0.95])
    assert threshold_at_specificity(y_true, y_score, 0.9) == 0.8
    assert threshold_at_specificity(y_true, y_score, 0.7) == 0.6  # 0.7 * 10 is above 7 in binary
    assert threshold_at_specificity(y_true, y_score, 0.71) == 0.7


@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7]), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_no_smaller_score_has_that_specificity(negatives: list[float], specificity: float) -> None:
    scores = np.array(negatives)
    threshold = threshold_at_specificity(np.zeros(len(scores)), scores, specificity)
    assert (scores <= threshold).mean() >= specificity - 1e-9
    smaller = scores[scores < threshold]
    assert not len(smaller) or (scores <= smaller.max()).mean() < specificity


def test_no_negative_record_has_no_threshold() -> None:
    with pytest.raises(EcglibError, match="negative"):
        threshold_at_specificity(np.ones(3), np.ones(3), 0.9)


def test_sensitivity_and_specificity_by_hand() -> None:
    found = at_threshold(Y, P, np.arange(10), 0.2, 1, SETTINGS).set_index("measure")
    assert found.value["sensitivity"] == 2 / 4
    assert found.value["specificity"] == 4 / 6
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_where_all_or_none_are_right_the_interval_is_wilsons_and_counts_patients() -> None:
    y_true, y_score = np.repeat([1, 0], 20), np.repeat([0.9, 0.1], 20)
    patients = np.repeat(np.arange(20), 2)  # ten of each class, with two ECGs each
    ends = binomtest(10, 10).proportion_ci(0.95, method="wilson")
    for threshold, name in ((0.5, "sensitivity"), (0.5, "specificity"), (0.0, "sensitivity")):
        row = at_threshold(y_true, y_score, patients, threshold, 1, SETTINGS).set_index("measure").loc[name]
        assert list(row) == pytest.approx([1, ends.low, ends.high])
    nobody = (
        at_threshold(y_true, y_score, patients, 0.95, 1, SETTINGS).set_index("measure").loc["sensitivity"]
    )
    assert list(nobody) == pytest.approx([0, 1 - ends.high, 1 - ends.low])


def test_a_class_with_few_records_gets_no_number() -> None:
    found = at_threshold(Y, P, np.arange(10), 0.2, 5, SETTINGS).set_index("measure")
    assert found.loc["sensitivity"].isna().all()
    assert found.loc["specificity"].notna().all()
