"""Simulated studies: their truth is known, and intervals that are honest hold it while the paper's do not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecglib.coverage import (
    SIZES,
    STEP,
    CoverageSettings,
    coverage,
    intervals_of_run_means,
    precision_of_rules,
    rounded_truth,
    simulate,
    simulated_intervals,
    spread_of_auroc,
    truth,
)
from ecglib.errors import EcglibError

FEW = CoverageSettings(n_large=2, n_small=120, n_draws=150)


@pytest.fixture(scope="module")
def intervals() -> pd.DataFrame:
    return simulated_intervals(FEW)


@pytest.mark.parametrize("size", list(SIZES))
def test_a_study_has_its_records_and_patients_with_one_label(size: str) -> None:
    y_true, y_scores, patients = simulate(size, 0, FEW)
    n, n_positive, shares = SIZES[size]
    assert (len(y_true), y_true.sum(), y_scores.shape) == (n, n_positive, (2, n))
    frame = pd.DataFrame({"patient": patients, "label": y_true}).groupby("patient").label
    assert frame.nunique().max() == 1
    assert frame.size().max() <= len(shares)
    assert n / len(frame) == pytest.approx(np.dot(shares, [1, 2, 3]), rel=0.1)
    assert len(set(simulate(size, 0, FEW, one_ecg_each=True)[2])) == n


def test_a_study_can_be_had_again_and_another_is_another() -> None:
    first, again, other = (simulate("small", study, FEW)[1] for study in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_scores_have_the_correlations_that_are_asked_for() -> None:
    y_true, y_scores, patients = simulate("large", 0, replace(FEW, correlation=0.5, likeness=0.8))
    well = y_scores[:, y_true == 0]
    assert well.std(axis=1) == pytest.approx([1, 1], abs=0.05)
    assert np.corrcoef(well)[0, 1] == pytest.approx(0.8, abs=0.04)
    twice = np.flatnonzero(np.diff(patients[y_true == 0]) == 0)
    for model in well:
        assert np.corrcoef(model[twice], model[twice + 1])[0, 1] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("area", "prevalence"), [(0.88, 0.054), (0.7, 0.3)])
def test_the_truth_is_what_very_many_records_show(area: float, prevalence: float) -> None:
    rng = np.random.default_rng(0)
    y_true = np.arange(200_000) < 200_000 * prevalence
    distance = {0.88: 1.6617, 0.7: 0.7416}[area]
    y_score = rng.normal(distance * y_true)
    known = truth(area, prevalence)
    assert roc_auc_score(y_true, y_score) == pytest.approx(known["auroc"], abs=0.005)
    assert average_precision_score(y_true, y_score) == pytest.approx(known["auprc"], abs=0.01)
    coarse = average_precision_score(y_true, np.round(y_score / STEP) * STEP)
    assert rounded_truth(area, prevalence) == pytest.approx(coarse, abs=0.01)
    assert coarse < known["auprc"] - 0.01


def test_a_score_without_knowledge_has_the_prevalence_as_its_average_precision() -> None:
    assert truth(0.5, 0.2) == pytest.approx({"auroc": 0.5, "auprc": 0.2})


def test_the_papers_interval_misses_the_truth_and_honest_ones_seldom_do(intervals: pd.DataFrame) -> None:
    found = coverage(intervals).query("size == 'small'").set_index(["statistic", "metric", "interval"])
    assert found.coverage.between(0, 1).all()
    held = found.coverage.unstack()
    assert (held["of_mean"] < 0.25).all()
    assert (held["percentile"] > 0.75).all()
    assert (held["bca"] > 0.75).all()
    width = found.width.unstack()
    assert (width["by_record"].dropna() < width["percentile"].loc["score"].to_numpy()).all()
    assert held["by_record"].dropna().index.unique("statistic").tolist() == ["score"]
    assert held["delong"].dropna().index.tolist() == [("difference", "auroc")]


@pytest.mark.slow
def test_of_hundred_intervals_95_hold_the_true_auroc_and_of_the_papers_few(
    record_property: Callable[[str, object], None],
) -> None:
    """In 400 studies of the size of the paper's STEMI test part; the error of a coverage of 95 % is 1.1 %."""
    found = coverage(simulated_intervals(CoverageSettings(n_small=2)))
    large = found.query("size == 'large' and statistic == 'score' and metric == 'auroc'")
    held = large.set_index("interval").coverage
    for interval, share in held.items():
        record_property(f"{interval} holds", f"{100 * share:.1f} %")
    assert 0.93 <= held["percentile"] <= 0.97
    assert held["of_mean"] < 0.15


def test_coverage_counts_on_which_side_the_truth_lies() -> None:
    known = {"size": "small", "statistic": "score", "metric": "auroc", "interval": "bca", "truth": 0.5}
    limits = pd.DataFrame({"low": [0.4, 0.6, 0.1, 0.5], "high": [0.6, 0.8, 0.3, 0.7]})
    row = coverage(limits.assign(**known)).iloc[0]
    assert (row.coverage, row.below, row.above, row.n_studies) == (0.5, 0.25, 0.25, 4)
    assert row.width == pytest.approx(0.2)
    assert row.error == pytest.approx(np.sqrt(0.25 / 8))


def test_a_mean_over_few_runs_needs_students_t() -> None:
    found = coverage(intervals_of_run_means(CoverageSettings(n_small=400, n_draws=200, seed=5)))
    held = found.pivot(index="size", columns="interval", values="coverage")
    assert held["runs"].between(0.92, 0.99).all()
    assert (held.loc[[2, 3], "redrawn"] < 0.92).all()
    assert (held["patients"] < held["redrawn"]).all()


def test_the_same_settings_give_the_same_intervals(intervals: pd.DataFrame) -> None:
    fewer = simulated_intervals(replace(FEW, n_small=2))
    pd.testing.assert_frame_equal(fewer, intervals[intervals.study < 2].reset_index(drop=True))


def test_lines_flatter_where_scores_are_coarse() -> None:
    table = precision_of_rules(replace(FEW, n_small=20)).set_index(["size", "scores"])
    assert (table.gap.xs("rounded", level="scores") > 0.02).all()
    assert (table.gap.xs("fine", level="scores") < 0).all()
    np.testing.assert_allclose(table.gap, table.trapezoid - table.average_precision)
    far = (table.average_precision - table.truth).xs("large").abs()
    assert (far < 0.03).all(), "each kind of score has a truth of its own"


def test_studies_scatter_about_the_truth() -> None:
    low, high = spread_of_auroc(replace(FEW, n_large=60), one_ecg_each=True)
    assert low < FEW.auroc < high
    assert high - low == pytest.approx(0.044, rel=0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_small": 1}, "n_small must be at least 2, got 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"auroc": 1.0}, "auroc must lie between 0 and 1"),
        ({"likeness": -0.1}, "likeness must lie from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_simulated_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(EcglibError, match=message):
        CoverageSettings(**wrong)
