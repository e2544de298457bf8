"""AUROC, average precision, their bootstrap and jackknife by patient: against scikit-learn, by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicted import predictions, study
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from ecglib.errors import EcglibError
from ecglib.metrics import (
    METRICS,
    ScoreSettings,
    auprc,
    auroc,
    bootstrap,
    bootstrap_steps,
    draw_patients,
    leave_one_patient_out,
    placements,
    trapezoid_auprc,
)


@settings(max_examples=100)
@given(predictions())
def test_scores_equal_scikit_learn(data):
    y_true, y_score, _ = data
    assert auroc(y_true, y_score) == pytest.approx(roc_auc_score(y_true, y_score), abs=1e-12)
    assert auprc(y_true, y_score) == pytest.approx(average_precision_score(y_true, y_score), abs=1e-12)


def test_scores_of_four_records_worked_by_hand():
    y_true, y_score = np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.4, 0.1])
    # Pairs: .9 ties .9 (a half), .9 beats .1, .4 loses to .9, .4 beats .1: 2.5 of 4.
    assert auroc(y_true, y_score) == 0.625
    # Threshold .9: recall 1/2 at precision 1/2; threshold .4: recall 1 at precision 2/3.
    assert auprc(y_true, y_score) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)


def test_each_draw_equals_scikit_learn_on_the_resampled_records():
    y_true, y_score, groups = study(300, 20, 150)
    ours = bootstrap(y_true, y_score, groups, n_draws=130, seed=5)
    patients, codes = np.unique(groups, return_inverse=True)
    labels = np.array([np.bincount(codes, y_true == label, len(patients)) for label in (0, 1)])
    weights, _ = draw_patients(labels, 130, np.random.default_rng(5))
    assert (weights.sum(axis=1) == len(patients)).all()
    for i, weight in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(len(y_true)), weight[codes])
        assert ours["auroc"][i] == pytest.approx(roc_auc_score(y_true[rows], y_score[rows]), abs=1e-12)
        assert ours["auprc"][i] == pytest.approx(
            average_precision_score(y_true[rows], y_score[rows]), abs=1e-12
        )


@settings(max_examples=40)
@given(predictions(), st.integers(2, 3))
def test_duplicating_every_record_of_every_patient_changes_no_draw(data, times):
    y_true, y_score, groups = data
    once = bootstrap(y_true, y_score, groups, n_draws=20, seed=1)
    again = bootstrap(*(np.repeat(x, times) for x in data), n_draws=20, seed=1)
    np.testing.assert_allclose(again[["auroc", "auprc"]], once[["auroc", "auprc"]], rtol=0, atol=1e-12)


@settings(max_examples=40)
@given(predictions())
def test_a_strictly_monotone_transform_changes_no_draw_and_reversal_mirrors_auroc(data):
    y_true, y_score, groups = data
    ranks = np.unique(y_score, return_inverse=True)[1]
    same = bootstrap(y_true, ranks**3 - 7.0, groups, n_draws=20)
    pd.testing.assert_frame_equal(same, bootstrap(y_true, y_score, groups, n_draws=20))
    assert auroc(y_true, -y_score) == pytest.approx(1 - auroc(y_true, y_score), abs=1e-12)
    assert auroc(1 - y_true, -y_score) == pytest.approx(auroc(y_true, y_score), abs=1e-12)


@settings(max_examples=40)
@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    shuffled = bootstrap(*(x[order] for x in data), n_draws=20, seed=2)
    pd.testing.assert_frame_equal(shuffled, bootstrap(*data, n_draws=20, seed=2))


@settings(max_examples=40)
@given(predictions())
def test_scores_lie_in_their_range_and_perfect_scores_give_one(data):
    y_true, y_score, groups = data
    drawn = bootstrap(y_true, y_score, groups, n_draws=20)[["auroc", "auprc"]].to_numpy()
    assert ((drawn >= 0) & (drawn <= 1 + 1e-12)).all()
    assert auprc(y_true, y_score) > 0
    np.testing.assert_allclose(bootstrap(y_true, y_true, groups, n_draws=20)[["auroc", "auprc"]], 1)
    constant = bootstrap(y_true, np.zeros(len(y_true)), groups, n_draws=20)
    np.testing.assert_allclose(constant["auroc"], 0.5)


def test_patients_with_many_records_widen_the_interval():
    """Ten copies of one record are one patient's evidence: resampling them as ten would mislead."""
    y_true, y_score, _ = study(60, 20, 60, digits=6)
    labels, scores = np.repeat(y_true, 10), np.repeat(y_score, 10)
    by_patient = bootstrap(labels, scores, np.repeat(np.arange(60), 10), seed=1)["auroc"].std()
    by_record = bootstrap(labels, scores, np.arange(600), seed=1)["auroc"].std()
    assert by_patient > 2.5 * by_record


def test_draws_without_both_classes_are_drawn_again_and_counted():
    y_true, y_score = np.array([1] + [0] * 9), np.linspace(0, 1, 10)
    draws = bootstrap(y_true, y_score, np.arange(10), n_draws=2000)
    assert np.isfinite(draws.to_numpy()).all()
    # One positive patient of ten is missed with probability .9^10 = .349: .349 / .651 repeats a draw.
    assert draws["redrawn"].mean() == pytest.approx(0.536, abs=0.08)
    assert bootstrap(*study(300, 100, 150), n_draws=100)["redrawn"].sum() == 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    data = study(100, 30, 50)
    pd.testing.assert_frame_equal(bootstrap(*data, n_draws=30, seed=4), bootstrap(*data, n_draws=30, seed=4))
    assert not bootstrap(*data, n_draws=30, seed=4).equals(bootstrap(*data, n_draws=30, seed=5))


def test_wrong_arguments_give_one_clear_line():
    with pytest.raises(EcglibError, match="both 0 and 1"):
        auroc(np.ones(3), np.ones(3))
    with pytest.raises(EcglibError, match="one shape"):
        auprc(np.array([0, 1]), np.ones(3))
    with pytest.raises(EcglibError, match="n_draws"):
        ScoreSettings(n_draws=1)
    with pytest.raises(EcglibError, match="confidence"):
        ScoreSettings(confidence=95)
    with pytest.raises(EcglibError, match="seed must be at least 0, got -1"):
        ScoreSettings(seed=-1)


@settings(max_examples=40)
@given(predictions())
def test_leaving_a_patient_out_equals_scoring_the_others(data):
    y_true, y_score, groups = data
    ours = leave_one_patient_out(y_true, y_score, groups)
    patients = np.unique(groups.astype(str))
    assert len(ours) == len(patients)
    for (_, row), patient in zip(ours.iterrows(), patients, strict=True):
        others = groups.astype(str) != patient
        if set(y_true[others]) == {0, 1}:
            kept = y_true[others], y_score[others]
            assert row["auroc"] == pytest.approx(roc_auc_score(*kept), abs=1e-12)
            assert row["auprc"] == pytest.approx(average_precision_score(*kept), abs=1e-12)
        else:
            assert row.isna().all()


def test_several_sets_of_predictions_share_their_draws():
    y_true, y_score, groups = study(200, 40, 90)
    scores = np.stack([y_score, -y_score])
    found = bootstrap_steps(y_true, scores, groups, 30, np.random.default_rng(7))
    assert found.shape == (2, 2, 31)
    for step in range(2):
        alone = bootstrap(y_true, scores[step], groups, n_draws=30, seed=7)
        for metric in range(2):
            np.testing.assert_array_equal(found[metric, step, 1:], alone[METRICS[metric]])
        assert found[0, step, 0] == auroc(y_true, scores[step])


@settings(max_examples=60)
@given(predictions())
def test_placements_count_who_beats_whom(data):
    y_true, y_score, _ = data
    wins = np.heaviside(y_score[y_true == 1][:, None] - y_score[y_true == 0], 0.5)
    beats, beaten_by = placements(y_true, y_score)
    np.testing.assert_array_equal(beats, wins.sum(axis=1))
    np.testing.assert_array_equal(beaten_by, wins.sum(axis=0))


def test_the_trapezoid_rule_flatters_where_records_tie_and_not_where_they_do_not():
    """Lines over a gap (Davis and Goadrich, 2006): one threshold for all has the prevalence as precision."""
    y_true, y_score, _ = study(2000, 100, 2000, distance=1.66, digits=6)
    precision, recall, _ = precision_recall_curve(y_true, y_score)
    assert trapezoid_auprc(y_true, y_score) == pytest.approx(auc(recall, precision), abs=1e-12)
    assert trapezoid_auprc(y_true, y_score) < auprc(y_true, y_score)
    coarse = y_score.round()
    assert trapezoid_auprc(y_true, coarse) > auprc(y_true, coarse) + 0.02
    constant = np.zeros(2000)
    assert auprc(y_true, constant) == pytest.approx(0.05)
    assert trapezoid_auprc(y_true, constant) == pytest.approx((1 + 0.05) / 2)
