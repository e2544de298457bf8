"""Differences on the same patients, DeLong's test and Holm's correction, what choosing on test adds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predicted import cell, predictions, study
from scipy import stats
from sklearn.metrics import roc_auc_score

from ecglib.comparisons import delong, holm, optimism, paired_difference
from ecglib.errors import EcglibError
from ecglib.metrics import ScoreSettings, auroc, bootstrap, patient_draws
from ecglib.protocols import score_cell

FEW_DRAWS = ScoreSettings(n_draws=60, seed=3)


def test_a_paired_difference_is_the_difference_of_paired_draws():
    a, b = cell(seed=1, distance=2), cell(seed=2)
    rows = paired_difference(a, b, "paper", FEW_DRAWS).set_index(["part", "metric"])
    alone_a, alone_b = (score_cell(c, "paper", FEW_DRAWS).set_index(["part", "metric"]) for c in (a, b))
    np.testing.assert_allclose(rows["value"], alone_a["value"] - alone_b["value"])
    np.testing.assert_allclose(rows["value_a"], alone_a["value"])
    # The interval of the mean is linear, so its middle shows that the draws are those of the cells.
    middle = (rows["low"] + rows["high"]) / 2
    expected = (alone_a["low"] + alone_a["high"] - alone_b["low"] - alone_b["high"]) / 2
    np.testing.assert_allclose(middle, expected)
    assert (rows["low"] > 0).all()


def test_pairing_removes_what_two_models_share():
    a = cell(steps=(1,), external=False)
    nearly = a.assign(y_score=a["y_score"] + np.random.default_rng(0).normal(0, 0.01, len(a)))
    paired = paired_difference(a, nearly, "honest", FEW_DRAWS).iloc[0]
    alone = score_cell(a, "honest", FEW_DRAWS).iloc[0]
    assert paired["high"] - paired["low"] < (alone["high"] - alone["low"]) / 4
    same = paired_difference(a, a.sample(frac=1, random_state=0), "honest", FEW_DRAWS)
    assert (same[["value", "low", "high"]] == 0).all(axis=None)


def test_percents_are_of_the_others_score_in_the_same_draw():
    a, b = (cell(steps=(1,), external=False, seed=seed, distance=seed) for seed in (2, 1))
    row = paired_difference(a, b, "honest", FEW_DRAWS).iloc[0]
    tests = [table.loc[table["part"] == "test"].sort_values("record_id") for table in (a, b)]
    ours, theirs = (
        bootstrap(
            *(table[name].to_numpy() for name in ("y_true", "y_score", "patient_id")), n_draws=60, seed=3
        )
        for table in tests
    )
    ratios = 100 * (ours["auroc"] / theirs["auroc"] - 1)
    np.testing.assert_allclose(
        row[["percent_low", "percent_high"]].astype(float), ratios.quantile([0.025, 0.975])
    )
    assert row["percent"] == pytest.approx(100 * row["value"] / row["value_b"])
    as_if_known = 100 * (row["high"] - row["low"]) / row["value_b"]
    assert row["percent_high"] - row["percent_low"] > 1.1 * as_if_known


def test_a_score_of_zero_has_no_percent():
    table = cell(steps=(1,), external=False)
    wrong = table.assign(y_score=-table["y_true"])
    rows = paired_difference(table, wrong, "honest", FEW_DRAWS).set_index("metric")
    assert rows.loc["auroc", "value_b"] == 0
    assert np.isnan(rows.loc["auroc", ["percent", "percent_low", "percent_high"]].astype(float)).all()


def test_a_difference_of_parts_without_a_class_is_not_estimable():
    table = cell(external=False)
    table.loc[table["part"] == "test", "y_true"] = 0
    rows = paired_difference(table, table, "honest", FEW_DRAWS)
    assert rows["estimable"].tolist() == [False, False]
    assert rows[["value", "low", "high"]].isna().to_numpy().all()


def test_cells_of_different_records_have_no_paired_difference():
    a = cell()
    with pytest.raises(EcglibError, match="differ in the records or labels of test"):
        paired_difference(a, a.loc[a["record_id"] != "test0003"], "paper", FEW_DRAWS)


def wins(score, positive) -> np.ndarray:
    """1 where a positive (rows) beats a negative (columns), half where they tie."""
    return np.heaviside(score[positive][:, None] - score[~positive], 0.5)


def by_definition(y_true, score_a, score_b, groups) -> float:
    """Variance of the difference of two AUROCs, sums over patients written out (Obuchowski, 1997)."""
    positive, n_positive, n_negative = y_true == 1, (y_true == 1).sum(), (y_true == 0).sum()
    gap = wins(score_a, positive) - wins(score_b, positive)
    of_positive, of_negative, mean = gap.mean(axis=1), gap.mean(axis=0), gap.mean()
    patients = np.unique(groups)
    x = np.array([(of_positive[groups[positive] == p] - mean).sum() for p in patients])
    y = np.array([(of_negative[groups[~positive] == p] - mean).sum() for p in patients])
    i10, i01, i = len(set(groups[positive])), len(set(groups[~positive])), len(patients)
    s10 = i10 / ((i10 - 1) * n_positive) * (x**2).sum()
    s01 = i01 / ((i01 - 1) * n_negative) * (y**2).sum()
    s11 = i / (i - 1) * (x * y).sum()
    return s10 / n_positive + s01 / n_negative + 2 * s11 / (n_positive * n_negative)


def two_models(n: int, n_positive: int, n_patients: int, seed: int):
    """Labels, two related sets of scores with ties, patients."""
    y_true, first, groups = study(n, n_positive, n_patients, seed=seed)
    second = (first + np.random.default_rng(seed).normal(0, 1, n)).round(1)
    return y_true, first, second, groups


@pytest.mark.parametrize("n_patients", [25, 80, 1000])
def test_the_variance_is_that_of_the_definition(n_patients):
    data = two_models(120, 40, n_patients, seed=n_patients)
    test = delong(*data)
    assert test.error**2 == pytest.approx(by_definition(*data), rel=1e-9)
    assert test.difference == pytest.approx(auroc(data[0], data[1]) - auroc(data[0], data[2]), abs=1e-12)
    assert test.p == pytest.approx(2 * stats.norm.sf(abs(test.difference) / test.error))


def test_with_one_record_a_patient_it_is_delongs_test():
    y_true, first, second, _ = two_models(90, 30, 90, seed=5)
    positive = y_true == 1
    of_models = [wins(score, positive) for score in (first, second)]
    s10, s01 = (np.cov([w.mean(axis=axis) for w in of_models]) for axis in (1, 0))
    covariance = s10 / positive.sum() + s01 / (~positive).sum()
    contrast = np.array([1, -1])
    assert delong(y_true, first, second, np.arange(90)).error == pytest.approx(
        np.sqrt(contrast @ covariance @ contrast), rel=1e-9
    )


def test_copies_of_a_patients_records_are_no_new_evidence():
    data = two_models(60, 20, 40, seed=1)
    again = delong(*(np.repeat(x, 5) for x in data))
    assert again == pytest.approx(delong(*data), rel=1e-9)
    y_true, first, second = (np.repeat(x, 5) for x in data[:3])
    as_if_independent = delong(y_true, first, second, np.arange(300))
    assert as_if_independent.error < again.error / 1.5


@settings(max_examples=40)
@given(predictions())
def test_a_model_does_not_differ_from_itself_and_exchange_changes_the_sign_only(data):
    y_true, y_score, groups = data
    other = np.random.default_rng(0).permutation(y_score)
    one_way, other_way = delong(y_true, y_score, other, groups), delong(y_true, other, y_score, groups)
    assert one_way.difference == pytest.approx(-other_way.difference, abs=1e-12)
    assert [one_way.p, one_way.error] == pytest.approx([other_way.p, other_way.error], nan_ok=True, abs=1e-9)
    assert np.isnan(one_way.p) or 0 <= one_way.p <= 1
    same = delong(y_true, y_score, np.unique(y_score, return_inverse=True)[1], groups)
    assert same.difference == 0
    assert same.p == 1 or np.isnan(same.error)


def test_too_few_patients_of_a_class_have_no_test():
    y_true, scores = np.array([1, 1, 0, 0, 0]), np.array([3.0, 1, 0, 2, 1])
    lone = delong(y_true, scores, -scores, np.array([0, 0, 1, 2, 3]))
    assert np.isnan([lone.error, lone.p]).all()
    without_spread = delong(y_true, y_true, -y_true, np.arange(5))
    assert without_spread.difference == 1
    assert np.isnan(without_spread.p)


def test_of_equal_models_one_in_twenty_differs_and_more_if_records_are_taken_for_patients():
    rng, alarms = np.random.default_rng(0), np.zeros(2)
    patients = np.repeat(np.arange(100), 3)
    y_true = (patients < 30).astype(int)
    for _ in range(400):
        first, second = (
            y_true + rng.normal(size=100)[patients] + 0.3 * rng.normal(size=300) for _ in range(2)
        )
        alarms += [delong(y_true, first, second, unit).p < 0.05 for unit in (patients, np.arange(300))]
    assert 0.02 <= alarms[0] / 400 <= 0.09
    assert alarms[1] / 400 > 0.15


def test_holm_worked_by_hand():
    # Sorted .01 .02 .03 .04 times 4, 3, 2, 1: .04 .06 .06 .04; never below the one before: .06 at last.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.01, np.nan])), [0.6, 0.02, np.nan])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1, 1])
    assert holm(np.array([])).size == 0


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(values, random):
    p = np.array(values)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, len(p) * p) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_array_equal(holm(p[order]), adjusted[order])


def test_a_difference_comes_with_p_for_auroc_alone():
    a, b = cell(seed=1, distance=2), cell(seed=2)
    rows = paired_difference(a, b, "honest", FEW_DRAWS).set_index(["part", "metric"])
    assert (rows.loc[[("test", "auroc"), ("external", "auroc")], "p"].to_numpy() < 0.01).all()
    assert np.isnan(rows.loc[[("test", "auprc"), ("external", "auprc")], "p"].to_numpy()).all()
    assert paired_difference(a, a, "honest", FEW_DRAWS)["p"].tolist()[::2] == [1, 1]


def test_optimism_is_the_papers_reading_minus_the_honest_one():
    cells = [cell(steps=(1, 2, 3, 4), seed=seed) for seed in range(3)]
    found = optimism(cells, FEW_DRAWS).set_index(["part", "metric"])
    readings = {
        protocol: pd.concat([score_cell(c, protocol, FEW_DRAWS) for c in cells])
        .groupby(["part", "metric"])
        .value.mean()
        for protocol in ("paper", "honest")
    }
    for protocol, expected in readings.items():
        np.testing.assert_allclose(found[protocol], expected.loc[found.index])
    np.testing.assert_allclose(found["value"], found["paper"] - found["honest"])
    gained = found.xs("auroc", level="metric")
    assert (gained["low"] >= 0).all(), "the best of all steps is never below one of them"
    assert (gained["high"] > gained["value"]).all()
    assert (found["n_cells"] == 3).all()
    assert found["n_moved"].between(1, 3).all()


SEEDS = {"validation": [4, 1], "test": 4}


def test_both_protocols_choose_again_in_every_draw():
    table = cell(60, steps=(1, 2, 3), external=False)
    (low, high) = optimism([table], ScoreSettings(n_draws=12, seed=4)).set_index("metric").loc[
        "auroc", ["low", "high"]
    ]  # fmt: skip
    gains = []
    for draw in range(12):
        scores = {part: step_scores(table, part, seed, draw) for part, seed in SEEDS.items()}
        gains.append(scores["test"].max() - scores["test"][scores["validation"].argmax()])
    assert (low, high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-12)


def step_scores(table: pd.DataFrame, part: str, seed: int | list[int], draw: int) -> np.ndarray:
    """AUROC of each step in one draw, from the resampled rows."""
    rows = table.loc[table["part"] == part].sort_values(by=["step", "record_id"])
    one_step = rows.drop_duplicates("record_id")
    labels, patients = one_step["y_true"].to_numpy(), one_step["patient_id"].to_numpy()
    _, weights, _ = patient_draws(labels, patients, 12, np.random.default_rng(seed))
    times = weights[draw].astype(int)[np.unique(patients, return_inverse=True)[1]]
    return np.array(
        [
            roc_auc_score(np.repeat(step["y_true"], times), np.repeat(step["y_score"], times))
            for _, step in rows.groupby("step")
        ]
    )


def test_one_step_leaves_no_choice_and_what_lacks_a_class_is_left_out():
    single = optimism([cell(steps=(1,))], FEW_DRAWS)
    assert (single[["value", "low", "high", "n_moved"]] == 0).to_numpy().all()
    lacking = cell()
    lacking.loc[lacking["part"] == "external", "y_true"] = 0
    assert set(optimism([lacking], FEW_DRAWS)["part"]) == {"test"}
    assert set(optimism([lacking, cell()], FEW_DRAWS).set_index("part")["n_cells"].items()) == {
        ("test", 2), ("external", 1),
    }  # fmt: skip


def test_another_step_with_the_same_score_counts_as_another_step():
    table = cell(steps=(1, 2), external=False)
    knows = table.y_true + 0.5 * table.y_score  # parts the classes
    table["y_score"] = knows.where((table.part == "test") | (table.step == 2), table.y_score)
    found = optimism([table, cell(steps=(1,), external=False)], FEW_DRAWS).set_index("metric")
    assert found["value"].tolist() == [0, 0]
    assert found["n_moved"].tolist() == [1, 1]


def test_the_interval_of_optimism_holds_the_mean_optimism() -> None:
    """With the steps held fixed it would not: both choices are part of what varies."""
    found = pd.concat([optimism([noisy_steps(seed)], FEW_DRAWS).iloc[:1] for seed in range(40)])
    mean = found["value"].mean()
    assert 0.01 < mean < 0.1
    assert ((found["low"] <= mean) & (mean <= found["high"])).mean() >= 0.95


def noisy_steps(seed: int) -> pd.DataFrame:
    """Six steps that are equally good but for chance, on 20 positives of 150."""
    rng, n, steps = np.random.default_rng(seed), 150, 6
    tables = []
    for part in ("validation", "test"):
        y_true, names = np.arange(n) < 20, np.array([f"{part}{i:03d}" for i in range(n)])
        scores = y_true + rng.normal(size=n) + 0.7 * rng.normal(size=(steps, n))
        known = {"record_id": np.tile(names, steps), "patient_id": np.tile(names, steps), "part": part}
        known |= {"step": np.repeat(np.arange(steps), n), "y_true": np.tile(y_true, steps).astype(int)}
        tables.append(pd.DataFrame(known | {"y_score": scores.ravel()}))
    return pd.concat(tables, ignore_index=True)
