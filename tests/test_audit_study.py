"""The audit on a study's own records: who was seen, who is drawn, and which standards stand beside it."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import SPLITS

from ecglib import audit_study
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import save_encoder
from ecglib.classical import FEATURES
from ecglib.metrics import auroc, trapezoid_auprc
from ecglib.profiles import ROOT, load_profile
from ecglib.study import Study

SMALL = ("01_cohorts.n_patients=90", "05_finetuning.head_fractions=[0.01,1]", "11_audit.tree_rounds=[5,20]")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        study = Study(load_profile("smoke", SMALL), "11_audit")
    women = (study.cohort.manifest.sex == "female").to_numpy(np.int8)
    study.cohort.manifest["stemi"] = women  # an outcome with patients enough
    return study


def test_what_pretraining_saw_is_counted_by_part(study: Study) -> None:
    table = audit_study.leakage_table(study)
    assert set(table.loc["official"].drop(index="Training")["seen in pretraining"]) == {"0"}
    seen = (study.parts("official") == "train") & (study.parts("seed42") == "test")
    assert table.loc[("seed42", "Internal test"), "seen in pretraining"] == f"{seen.sum():,}"
    assert table.loc[("official", "Training"), "ECGs"] == f"{len(study.pretraining_rows):,}"


def test_the_share_of_test_ecgs_that_was_seen_is_that_of_the_table(study: Study) -> None:
    tested = study.parts("seed42") == "test"
    share = (study.parts("official")[tested] == "train").mean()
    assert share > 0.5
    sentence = audit_study.seen_sentence(study)
    assert sentence.endswith(f"{100 * share:.0f} % of those of `seed42` and 0 % of those of `official`.")
    with pytest.MonkeyPatch.context() as patch:  # published weights learnt from other patients
        patch.setattr(type(study), "seen_rows", np.empty(0, np.int64))
        assert "0 % of those of `seed42`" in audit_study.seen_sentence(study)


def test_a_draw_by_record_leaves_ecgs_of_its_patients_outside_and_one_by_patient_none(study: Study) -> None:
    table = audit_study.draw_table(study, "stemi", (0.5,))
    assert table.loc[("50 %", "by patient"), "ECGs outside"] == "0"
    assert int(table.loc[("50 %", "by record"), "ECGs outside"]) > 0
    assert audit_study.draw_table(study, "stemi", (0.5,)).equals(table)


def test_what_is_left_outside_is_counted_by_hand() -> None:
    patients = pd.Series(["a", "a", "a", "b", "c", "c"])
    part = pd.Series(["train", "train", "test", "train", "train", "train"])
    found = audit_study._left_outside(patients, part, np.array([0, 3, 4]))
    # Of a and c one training ECG each is left; a's ECG in the test part does not count.
    assert list(found.values()) == ["3", "3", "2", "2"]


def test_weights_tell_what_they_saw_and_none_are_none(tmp_path: Path) -> None:
    assert "none" in audit_study.weights_table(tmp_path).to_string()
    seen = {"records": 17_441, "patients": 15_000, "records_of_folds_9_and_10": 0}
    seen |= {"patients_of_folds_9_and_10": 0, "seen_of_seed42_test": 0.8}
    path = tmp_path / "heartbeit_nano" / "encoder.safetensors"
    path.parent.mkdir()
    save_encoder(path, MaskedImageModel("heartbeit_nano", 8), {"audit": {"PTB-XL": seen}})
    row = audit_study.weights_table(tmp_path).loc[("heartbeit_nano", "PTB-XL")]
    assert row.tolist() == ["17,441", "15,000", "0 ECGs, 0 patients", "80 %"]


def test_a_study_measures_its_ecgs_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(study.measurements.columns) == FEATURES
    assert len(study.measurements) == len(study.cohort)
    monkeypatch.setenv("ECGLIB_RUNS", str(study.folder.parent))
    again = Study(study.profile, "11_audit")
    assert again.measurements.equals(study.measurements)
    assert next(entry for entry in again.stages.made if entry["kind"] == "measurements")["reused"]


def test_trees_are_scored_at_every_fraction_of_the_grid_by_both_protocols(study: Study) -> None:
    trees = audit_study.tree_scores(study)
    assert set(trees.model) == {"measurements"}
    assert set(trees.protocol) == {"honest", "paper"}
    assert set(trees.fraction) == {0.01, 1.0}
    assert not trees.loc[trees.fraction == 0.01, "estimable"].any(), "no patient of a class at 1 %"
    honest = trees.loc[(trees.protocol == "honest") & (trees.metric == "auroc") & (trees.part == "test")]
    assert honest.value.item() > 0.9, "sex is one of the features"
    table = audit_study.baseline_scores(trees.iloc[:0], trees, study.split_names)
    assert list(table.columns) == ["classical measurements"]


def scores(**values: float) -> pd.DataFrame:
    """AUROC of HeartBEiT, fine-tuned, by part."""
    head = {"outcome": "stemi", "model": "heartbeit", "kind": "finetuned", "split": "official"}
    head |= {"fraction": 1.0, "draw": 0, "seed": 0, "protocol": "honest", "metric": "auroc", "n": 1234}
    head |= {"n_positive": 99, "prevalence": 0.08}
    numbers = [{"part": part, "value": v, "low": v - 0.1, "high": v + 0.1} for part, v in values.items()]
    return pd.DataFrame([head | row for row in numbers])


def test_the_sentence_counts_who_is_ahead() -> None:
    networks, trees = scores(test=0.9, external=0.7), scores(test=0.8, external=0.8)
    both = [(table, table.assign(split="seed42").iloc[:1]) for table in (networks, trees)]
    networks, trees = (pd.concat(tables) for tables in both)
    sentence = audit_study.baseline_sentence(networks, trees, SPLITS)
    assert f"**1 of 2** comparisons on official; **1 of 1** comparisons on {SPLITS['seed42']}" in sentence


def test_only_the_draw_that_the_trees_learnt_from_is_compared() -> None:
    first, lucky = scores(test=0.7), scores(test=0.99).assign(draw=1)
    networks, trees = pd.concat([first, lucky]), scores(test=0.8).assign(model="measurements")
    assert "**0 of 1**" in audit_study.baseline_sentence(networks, trees, SPLITS)
    table = audit_study.baseline_scores(networks, trees, SPLITS)
    assert table["HeartBEiT"].tolist() == ["0.70 (0.60-0.80)"]


def test_larger_models_stand_beside_ours_and_are_said_to_be_of_another_task() -> None:
    table = audit_study.larger_models_table(scores(test=0.9))
    assert table.loc["HeartBEiT here", "AUROC"] == "0.900 (0.800-1.000)"
    published = table.drop(index="HeartBEiT here")
    assert (published["task"] == "five superclasses of PTB-XL, macro AUROC").all()
    task = "STEMI of this study, split official: 1,234 ECGs, 99 positive (8.0 %)"
    assert table.loc["HeartBEiT here", "task"] == task


def test_beside_larger_models_stands_no_score_of_ecgs_that_pretraining_saw() -> None:
    both = [scores(test=0.9).assign(fraction=0.1), scores(test=0.99).assign(split="seed42")]
    table = audit_study.larger_models_table(pd.concat(both))
    assert table.loc["HeartBEiT here", "AUROC"] == "0.900 (0.800-1.000)"
    assert "10 % of the labels" in table.loc["HeartBEiT here", "training"]


def test_the_published_scores_are_those_of_the_notes() -> None:
    data = Path(os.environ.get("ECGLIB_TEST_DATA", ROOT.parent / "shared" / "data"))
    notes = data.parent / "reference" / "paper.md"
    if not notes.exists():
        pytest.skip(f"no notes on the paper at {notes}: they are not part of the repository")
    section = notes.read_text(encoding="utf-8").split("## Where the field stands")[1].split("(arXiv")[0]
    wanted = {float(number) for number in re.findall(r"\.\d{3}\b", section)}
    table = audit_study.larger_models_table(scores(test=0.9)).drop(index="HeartBEiT here")
    assert {float(text) for text in table["AUROC"]} == wanted
    assert all(str(name) in section for name in table.index)


def test_a_grid_of_heads_alone_has_no_fine_tuned_cell_to_show() -> None:
    profile = load_profile("smoke", ["05_finetuning.models=[]"])
    of: Any = SimpleNamespace(profile=profile, kept=None)
    of.planned = lambda outcome: Study.planned(of, outcome)
    of.grid = lambda outcome: Study.grid(of, outcome)
    assert audit_study.own_precision(of).to_numpy().tolist() == [["not estimable"]]


def test_a_test_part_without_a_class_has_no_precision_to_show() -> None:
    ids = [f"r{i}" for i in range(8)]
    cell = pd.DataFrame({"record_id": ids, "patient_id": ids, "part": ["validation", "test"] * 4, "step": 1})
    cell = cell.assign(y_true=[0, 0, 0, 0, 1, 0, 1, 0], y_score=0.5)
    assert audit_study.own_precision(study_of(cell)).to_numpy().tolist() == [["not estimable"]]


def test_beside_larger_models_stands_no_score_that_is_not_a_number() -> None:
    lacking = scores(test=0.9).assign(value=np.nan, low=np.nan, high=np.nan)
    assert "HeartBEiT here" not in audit_study.larger_models_table(lacking).index


def study_of(cell: pd.DataFrame) -> Any:
    """A stand-in for a study whose every fine-tuned cell predicted this."""
    profile = load_profile("smoke", ["05_finetuning.models=[heartbeit]"])
    of: Any = SimpleNamespace(profile=profile, predictions=lambda _: cell, kept=None, split_names=SPLITS)
    of.planned = lambda outcome: Study.planned(of, outcome)
    of.grid = lambda outcome: Study.grid(of, outcome)
    return of


def test_own_predictions_are_read_at_the_step_chosen_on_validation() -> None:
    rng = np.random.default_rng(0)
    y_true = np.tile([0, 1], 50)
    tables = []
    for step, part in ((1, "validation"), (1, "test"), (2, "validation"), (2, "test")):
        ids = [f"{part}{i}" for i in range(100)]
        signal = y_true if (step, part) != (1, "validation") else 0 * y_true
        known = {"record_id": ids, "patient_id": ids, "part": part, "step": step, "y_true": y_true}
        tables.append(pd.DataFrame(known | {"y_score": np.round(rng.normal(step * signal), 1)}))
    row = audit_study.own_precision(study_of(pd.concat(tables))).loc[("STEMI", "official", "HeartBEiT")]
    assert row[["ECGs", "positive"]].tolist() == ["100", "50"]
    assert auroc(y_true, tables[2].y_score.to_numpy()) > auroc(y_true, tables[0].y_score.to_numpy())
    assert row["trapezoid"] == f"{trapezoid_auprc(y_true, tables[3].y_score.to_numpy()):.3f}"
