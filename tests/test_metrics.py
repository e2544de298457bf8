"""AUROC, average precision, the bootstrap by patient and the two protocols: against scikit-learn, by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ecglib.comparisons import paired_difference
from ecglib.errors import EcglibError
from ecglib.intervals import of_mean, percentile
from ecglib.metrics import ScoreSettings, auprc, auroc, bootstrap, draw_patients
from ecglib.protocols import choose_step, score_cell

FEW_DRAWS = ScoreSettings(n_draws=60, seed=3)


def study(n: int, n_positive: int, n_patients: int, *, distance: float = 1.0, digits: int = 1, seed: int = 0):
    """Labels, scores rounded so that many tie, and patient ids; some patients have several records."""
    rng = np.random.default_rng(seed)
    y_true = (rng.permutation(n) < n_positive).astype(np.int8)
    y_score = rng.normal(distance * y_true).round(digits).astype(np.float32)
    return y_true, y_score, rng.integers(0, n_patients, n).astype(str)


def cell(
    n: int = 200, *, steps=(10, 20), external=True, seed: int = 0, distance: float = 1.0
) -> pd.DataFrame:
    """Predictions of `n` records per part; from step to step only the scores change."""
    tables = []
    parts = ("validation", "test", "external") if external else ("validation", "test")
    for i, part in enumerate(parts):
        y_true, _, groups = study(n, n // 4, n // 2, seed=100 + i)
        known = {"record_id": [f"{part}{k:04d}" for k in range(n)], "patient_id": groups, "part": part}
        for step in steps:
            rng = np.random.default_rng([seed, i, step])
            score = 1 / (1 + np.exp(-rng.normal(distance * y_true)))
            tables.append(pd.DataFrame({**known, "step": step, "y_true": y_true, "y_score": score}))
    return pd.concat(tables, ignore_index=True)


@st.composite
def predictions(draw):
    """Labels with both classes, scores from a few values (ties) or many, patient ids."""
    n = draw(st.integers(2, 40))
    y_true = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
    y_score = draw(st.lists(values, min_size=n, max_size=n))
    patients = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    return np.array(y_true), np.array(y_score), np.array(patients)


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(predictions(), st.integers(2, 3))
def test_duplicating_every_record_of_every_patient_changes_no_draw(data, times):
    y_true, y_score, groups = data
    once = bootstrap(y_true, y_score, groups, n_draws=20, seed=1)
    again = bootstrap(*(np.repeat(x, times) for x in data), n_draws=20, seed=1)
    np.testing.assert_allclose(again[["auroc", "auprc"]], once[["auroc", "auprc"]], rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_a_strictly_monotone_transform_changes_no_draw_and_reversal_mirrors_auroc(data):
    y_true, y_score, groups = data
    ranks = np.unique(y_score, return_inverse=True)[1]
    same = bootstrap(y_true, ranks**3 - 7.0, groups, n_draws=20)
    pd.testing.assert_frame_equal(same, bootstrap(y_true, y_score, groups, n_draws=20))
    assert auroc(y_true, -y_score) == pytest.approx(1 - auroc(y_true, y_score), abs=1e-12)
    assert auroc(1 - y_true, -y_score) == pytest.approx(auroc(y_true, y_score), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    shuffled = bootstrap(*(x[order] for x in data), n_draws=20, seed=2)
    pd.testing.assert_frame_equal(shuffled, bootstrap(*data, n_draws=20, seed=2))


@settings(max_examples=40, deadline=None)
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


def test_bootstrap_of_the_papers_test_part_agrees_with_hanley_mcneil_and_the_mean_interval_does_not():
    """AUROC .88 with 235 positives of 4,352: the 95 % interval is about .85-.91; the paper prints .88-.89."""
    y_true, y_score, _ = study(4352, 235, 4352, distance=1.66, digits=6)
    value = auroc(y_true, y_score)
    draws = bootstrap(y_true, y_score, np.arange(4352), seed=1)["auroc"].to_numpy()
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    m, n = 235, 4352 - 235
    variance = value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)
    low, high = percentile(draws)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance / (m * n)), rel=0.2)
    assert low < value < high
    narrow_low, narrow_high = of_mean(draws)
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(np.sqrt(500), rel=0.1)


def test_over_label_permutations_one_half_lies_inside_the_interval():
    rng = np.random.default_rng(0)
    y_true, y_score, groups = study(150, 50, 150, digits=6)
    inside = 0
    for i in range(200):
        draws = bootstrap(rng.permutation(y_true), y_score, groups, n_draws=200, seed=i)["auroc"].to_numpy()
        low, high = percentile(draws)
        inside += low <= 0.5 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_interval_worked_by_hand():
    values = np.arange(101.0)
    assert percentile(values, 0.9) == pytest.approx((5, 95))
    half = 1.6448536 * values.std(ddof=1) / np.sqrt(101)
    assert of_mean(values, 0.9) == pytest.approx((50 - half, 50 + half))


def two_steps() -> pd.DataFrame:
    """Validation prefers step 1 and test prefers step 2, both by AUROC."""
    scores = {("validation", 1): [0, 0, 1, 1], ("validation", 2): [0, 1, 0, 1], ("test", 1): [0, 1, 0, 1]}
    scores |= {("test", 2): [0, 0, 1, 1]}
    tables = [
        pd.DataFrame({"part": part, "step": step, "y_score": score, "y_true": [0, 0, 1, 1]})
        for (part, step), score in scores.items()
    ]
    names = [f"r{i}" for i in range(4)]
    return pd.concat([t.assign(record_id=names, patient_id=names) for t in tables], ignore_index=True)


def test_the_paper_chooses_its_step_on_test_and_the_honest_protocol_on_validation():
    table = two_steps()
    assert choose_step(table, "paper", "test") == 2
    assert choose_step(table, "honest", "test") == 1
    assert score_cell(table, "paper", FEW_DRAWS)["value"].tolist() == [1, 1]
    honest = score_cell(table, "honest", FEW_DRAWS)
    assert honest["value"].tolist() == [0.5, 0.5]
    assert honest["step"].tolist() == [1, 1]


def test_of_equally_good_steps_the_first_is_taken():
    table = two_steps().assign(y_score=0.5)
    assert choose_step(table.iloc[::-1], "paper", "test", metric="auprc") == 1


def test_selecting_on_the_test_part_never_scores_below_selecting_on_validation():
    table = cell(steps=(1, 2, 3, 4))
    paper, honest = (score_cell(table, p, FEW_DRAWS).query("metric == 'auroc'") for p in ("paper", "honest"))
    assert (paper["value"].to_numpy() >= honest["value"].to_numpy()).all()


def test_a_scored_cell_counts_its_records_and_patients():
    table = cell()
    scores = score_cell(table, "honest", FEW_DRAWS)
    assert scores[["part", "metric"]].to_records(index=False).tolist() == [
        ("test", "auroc"), ("test", "auprc"), ("external", "auroc"), ("external", "auprc"),
    ]  # fmt: skip
    row = scores.iloc[0]
    at = table.query("part == 'test' and step == @row.step")
    assert row["value"] == pytest.approx(roc_auc_score(at["y_true"], at["y_score"]), abs=1e-12)
    assert (row["n"], row["n_positive"], row["prevalence"]) == (200, 50, 0.25)
    assert row["n_patients"] == at["patient_id"].nunique()
    assert row["low"] < row["value"] < row["high"]
    assert row["estimable"]
    assert score_cell(cell(external=False), "honest", FEW_DRAWS)["part"].unique().tolist() == ["test"]


def test_a_part_without_a_class_is_not_estimable_and_says_why():
    table = cell()
    table.loc[table["part"] == "external", "y_true"] = 0
    scores = score_cell(table, "honest", FEW_DRAWS).set_index(["part", "metric"])
    lacking = scores.loc[("external", "auprc")]
    known = ["estimable", "reason", "n", "n_positive"]
    assert lacking[known].tolist() == [False, "external has no positive record", 200, 0]
    assert lacking[["value", "low", "high", "step"]].isna().all()
    assert scores.loc[("test", "auroc"), "estimable"]


def test_a_validation_part_without_a_class_leaves_the_honest_protocol_nothing_to_choose_by():
    table = cell()
    table.loc[table["part"] == "validation", "y_true"] = 1
    assert score_cell(table, "honest", FEW_DRAWS)["estimable"].tolist() == [False] * 4
    assert score_cell(table, "paper", FEW_DRAWS)["estimable"].tolist() == [True] * 4
    with pytest.raises(EcglibError, match="validation has no negative record"):
        choose_step(table, "honest", "test")


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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns="step"), "lack the columns step"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "stands twice"),
        (lambda t: t.assign(y_score=np.nan), "not finite"),
        (lambda t: t.assign(y_true=t["y_true"] * 2), r"0 or 1, got \[0, 2\]"),
        (lambda t: t.query("part == 'validation'"), "no prediction for test or external"),
    ],
)
def test_a_spoilt_cell_gives_one_clear_line(spoil, message):
    with pytest.raises(EcglibError, match=message) as error:
        score_cell(spoil(cell()), "paper", FEW_DRAWS)
    assert "\n" not in str(error.value)


def test_wrong_arguments_give_one_clear_line():
    with pytest.raises(EcglibError, match="protocol must be one of paper, honest"):
        score_cell(cell(), "fair", FEW_DRAWS)
    with pytest.raises(EcglibError, match="metric must be one of"):
        choose_step(cell(), "paper", "test", metric="f1")
    with pytest.raises(EcglibError, match="both 0 and 1"):
        auroc(np.ones(3), np.ones(3))
    with pytest.raises(EcglibError, match="one shape"):
        auprc(np.array([0, 1]), np.ones(3))
    with pytest.raises(EcglibError, match="n_draws"):
        ScoreSettings(n_draws=1)
    with pytest.raises(EcglibError, match="confidence"):
        ScoreSettings(confidence=95)
