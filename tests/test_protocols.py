"""Two protocols read one cell: the step that each chooses, what a table of scores says, what is refused."""

import numpy as np
import pandas as pd
import pytest
from predicted import cell
from sklearn.metrics import roc_auc_score

from ecglib.errors import EcglibError
from ecglib.metrics import ScoreSettings
from ecglib.protocols import choose_step, score_cell

FEW_DRAWS = ScoreSettings(n_draws=60, seed=3)


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


@pytest.mark.parametrize(("label", "name"), [(1, "positive"), (0, "negative")])
def test_a_class_of_one_patient_has_no_interval_and_so_is_not_estimable(label: int, name: str):
    table = cell()
    table.loc[(table["part"] == "test") & (table["y_true"] == label), "patient_id"] = "the only one"
    scores = score_cell(table, "honest", FEW_DRAWS).set_index(["part", "metric"])
    reason = f"test has {name} records of one patient alone"
    assert scores.loc[("test", "auroc"), ["estimable", "reason"]].tolist() == [False, reason]
    assert scores.loc[("external", "auroc"), "estimable"]


def test_a_validation_part_without_a_class_leaves_the_honest_protocol_nothing_to_choose_by():
    table = cell()
    table.loc[table["part"] == "validation", "y_true"] = 1
    assert score_cell(table, "honest", FEW_DRAWS)["estimable"].tolist() == [False] * 4
    assert score_cell(table, "paper", FEW_DRAWS)["estimable"].tolist() == [True] * 4
    with pytest.raises(EcglibError, match="validation has no negative record"):
        choose_step(table, "honest", "test")


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


def test_a_wrong_protocol_or_metric_gives_one_clear_line():
    with pytest.raises(EcglibError, match="protocol must be one of paper, honest"):
        score_cell(cell(), "fair", FEW_DRAWS)
    with pytest.raises(EcglibError, match="metric must be one of"):
        choose_step(cell(), "paper", "test", metric="f1")


def test_bca_stands_beside_the_honest_interval_only():
    honest, paper = (score_cell(cell(), protocol, FEW_DRAWS) for protocol in ("honest", "paper"))
    other = honest[["other_low", "other_high"]].to_numpy()
    np.testing.assert_allclose(other, honest[["low", "high"]], atol=0.05)
    assert (other != honest[["low", "high"]].to_numpy()).any()
    assert paper[["other_low", "other_high"]].isna().to_numpy().all()
    assert (honest["high"] - honest["low"] > 3 * (paper["high"] - paper["low"])).all()
