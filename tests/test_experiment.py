"""Cells made alone, their results kept and read back: the same scores without ECGs, or a clear refusal."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pandas as pd
import predicted
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecglib import beit, experiment, published, results, score_figures, score_tables, tables
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import save_encoder
from ecglib.classifiers import Classifier
from ecglib.datasets import DataPaths
from ecglib.errors import EcglibError
from ecglib.finetune import UnstableError, finetune
from ecglib.grid import Cell, GridSettings
from ecglib.opening import require_weights
from ecglib.preprocessing import fingerprint
from ecglib.pretrain import PretrainSettings
from ecglib.profiles import ROOT, load_profile, pages
from ecglib.protocols import choose_step
from ecglib.published import publish
from ecglib.results import ROUNDED_TO, ROUNDED_TO_RANGE, KeptResults, read_by_protocols, rounded
from ecglib.study import LACKS_CLASS, Study
from ecglib.tokenizer import Tokenizer, TokenizerSettings, load_tokenizer, make_networks

PROFILE = """\
description: a made-up experiment of minute networks, for tests
outcomes: [stemi, hcm]
01_cohorts:
  n_patients: 200
03_tokens:
  weights: minute
05_finetuning:
  models: [heartbeit, random]
  fractions: [0.001, 0.5, 1]
  draws: [1, 2, 1]
  steps: 3
  batch_size: 4
  score_points: 3
  extra_models: [random]
  extra_split: seed42
  head_models: [heartbeit, random]
  head_fractions: [0.5, 1]
  head_draws: 2
  n_draws: 20
"""
WORDS = TokenizerSettings(n_hid=8, vocab_size=64)
PRETRAINED = PretrainSettings(steps=7, warmup_steps=2, mask="uniform")


def a_run(folder: Path) -> Path:
    """Tokenizer, encoder and histories as a pretraining leaves them, of random weights."""
    drawn = fingerprint()
    described = {"settings": asdict(WORDS), "vocab_size": 64, "preprocessing": drawn}
    Tokenizer(*make_networks(WORDS), described).save(folder / "tokenizer")
    metadata = {
        "preprocessing": drawn,
        "tokenizer_sha256": load_tokenizer(folder / "tokenizer").metadata["weights_sha256"],
        "settings": asdict(PRETRAINED),
        "commit": "abc123",
        "audit": {"PTB-XL": {"seen_of_seed42_test": 0.81}},
    }
    save_encoder(folder / "encoder.safetensors", MaskedImageModel("minute", 64, seed=4), metadata)
    course = pd.DataFrame({"step": [1, 2], "loss": [4.0, 3.0]})
    for place in (folder, folder / "tokenizer"):
        course.to_parquet(place / "history.parquet")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A profile, minute weights under a name, and a folder of results."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(beit.SIZES, "minute", (12, 2, 2))
        patch.setattr(published, "WEIGHTS", folder / "weights")
        patch.setenv("ECGLIB_RUNS", str(folder / "runs"))
        run = a_run(folder / "run")
        publish(run / "encoder.safetensors", run / "tokenizer", folder / "weights" / "minute")
        (folder / "mine.yaml").write_text(PROFILE)
        yield folder


def a_study(world: Path, notebook: str = "05_finetuning", kept: Path | None = None) -> Study:
    return Study(load_profile(str(world / "mine.yaml")), notebook, data=DataPaths(results=kept))


@pytest.fixture(scope="module")
def made(world: Path) -> Path:
    """The folder in which the results of the whole grid are kept."""
    experiment.run_grid(str(world / "mine.yaml"), DataPaths(), [], export=world / "kept")
    return world / "kept"


def the_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "kept"))


# --- published weights in the place of a training ---


def test_published_weights_take_the_place_of_both_trainings(world: Path) -> None:
    study = a_study(world, "04_pretraining")
    assert study.encoder_folder == world / "weights" / "minute"
    assert study.tokenizer.vocab_size == 64
    assert study.pretraining_history.loss.tolist() == study.tokenizer_history.loss.tolist() == [4.0, 3.0]
    assert study.pretraining == PRETRAINED
    assert study.size == "minute"
    of_box = {p["name"]: (p["value"], p["set_by"]) for p in study._parameters()}
    assert of_box["steps"] == (7, "weights")
    assert of_box["mask"] == ("uniform", "weights")
    assert [entry["kind"] for entry in study.stages.made] == ["weights"]
    sentence = tables.weights_sentence(study.weights, 0.81)
    assert "`minute`, made on 20" in sentence
    assert "at commit `abc123` by `ecglib pretrain minute --data PTBXL_DIR`" in sentence
    assert "seed42` tests they saw, without labels, 81 %" in sentence
    assert "have seen none" in tables.weights_sentence(study.weights, 0.0)
    assert "were trained by pages 03 and 04" in tables.weights_sentence(None, 0.8)


def test_published_weights_saw_ptbxl_and_no_embedded_patient(world: Path, ptbxl_subset: Path) -> None:
    embedded = a_study(world)
    assert len(embedded.seen_rows) == 0
    assert embedded.seen_of_test("seed42") == 0
    assert embedded.split_names["seed42"] == "seed42"
    profile = load_profile(str(world / "mine.yaml"), ["01_cohorts.source=ptbxl"])
    real = Study(replace(profile, outcomes=("stemi",)), "11_audit", data=DataPaths(ptbxl_subset))
    assert real.seen_of_test("official") == 0
    tested = real.parts("seed42") == "test"
    trained = real.parts("official") == "train"
    assert real.seen_of_test("seed42") == pytest.approx((tested & trained).sum() / tested.sum())
    share = f"{100 * (tested & trained).sum() / tested.sum():.0f} %"
    assert f"HeartBEiT saw {share} of its test ECGs, unlabelled" in real.split_names["seed42"]
    assert real.split_names["official"] == "official"


def test_other_weights_under_the_same_name_make_other_cells(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = a_study(world).model_key("heartbeit")
    others = tmp_path / "weights"
    shutil.copytree(world / "weights", others)
    encoder = world / "run" / "encoder.safetensors"
    publish(encoder, world / "run" / "tokenizer", others / "minute", dtype=torch.float32)
    monkeypatch.setattr(published, "WEIGHTS", others)
    assert a_study(world).model_key("heartbeit") != key
    assert a_study(world).model_key("random") == "random minute"


def test_weights_that_are_not_there_or_saw_other_images_are_refused_in_one_line(world: Path) -> None:
    for override, message in (
        ("03_tokens.weights=huge", "weights 'huge' are not in .*: it holds minute"),
        (
            "02_preprocessing.high_hz=30",
            r"learnt from images drawn otherwise: high_hz 40\.0 there, 30\.0 here",
        ),
    ):
        profile = load_profile(str(world / "mine.yaml"), [override])
        with pytest.raises(EcglibError, match=message):
            _ = Study(profile, "04_pretraining").encoder_folder
    with pytest.raises(EcglibError, match="weights 'huge'"):
        require_weights(load_profile(str(world / "mine.yaml"), ["03_tokens.weights=huge"]))


# --- results that are kept ---


def test_scores_and_differences_from_kept_results_are_those_of_the_run(
    world: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kept = a_study(world), a_study(world, kept=made)

    def rounded_heads(cell: Cell) -> pd.DataFrame | None:
        """Among so few ECGs a pair whose scores become equal weighs much, so both sides are rounded."""
        predictions = Study.predictions(run, cell)
        return None if predictions is None else results.as_kept(cell, predictions)

    monkeypatch.setattr(run, "predictions", rounded_heads)
    for outcome in ("stemi", "hcm"):
        cells = run.grid(outcome)
        assert kept.grid(outcome) == cells
        scores, again = run.scores(outcome), kept.scores(outcome)
        pd.testing.assert_frame_equal(scores, again)
        ours, theirs = (study.differences(outcome) for study in (run, kept))
        pd.testing.assert_frame_equal(ours, theirs)
        for table in (run, kept):
            told = score_tables.training_table(cells, table.rows, table.labels(outcome), table.split_names)
            assert "not estimable" in told["training ECGs"].tolist()
        assert (scores.loc[scores.fraction == 0.001, "reason"] == LACKS_CLASS).all()
    pd.testing.assert_frame_equal(run.distances, kept.distances)
    assert kept.data_hash == run.images.data_hash
    assert tables.outcome_sentence(kept.cohort, "stemi") == tables.outcome_sentence(run.cohort, "stemi")
    for split in ("official", "seed42"):
        pd.testing.assert_series_equal(kept.parts(split), run.parts(split))


def test_kept_results_say_what_made_each_cell(world: Path, made: Path) -> None:
    kept, study = KeptResults.open(made), a_study(world)
    weights = study.weights
    assert weights
    assert len(kept.cells) == 25
    for cell, entry in kept.cells.items():
        assert entry["settings"]["score_points" if cell.kind == "finetuned" else "head_iterations"]
        assert entry["model"] == (weights.key if cell.model == "heartbeit" else "random minute")
        assert entry["images"] == study.images.data_hash
        assert entry["commit"]
        assert entry["seconds"] > 0
        assert entry["machine"]["processor"]
        assert len(entry["weights_sha256"]) == len(entry["file_sha256"]) == 64
        assert entry["file"] in kept.head["files"]
    assert "synthetic" in (made / "README.md").read_text()
    record = a_study(world, kept=made).record()
    assert record["predictions"].startswith("25 cells, kept with the book; made in ")
    assert "ECGLIB_RESULTS=book/results/mine papermill" in record["command"]
    assert a_study(world).record()["predictions"] == ""
    assert {"age", "sex", "site", "device", "usable", "stemi"} <= set(kept.manifest)


def test_exporting_twice_gives_the_same_bytes_and_keeps_what_no_longer_exists(
    world: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = the_bytes(kept)
    assert len(experiment.export_results(a_study(world), kept)) == 25
    assert the_bytes(kept) == before
    monkeypatch.setattr(Study, "existing", lambda self, cell: None)
    assert len(experiment.export_results(a_study(world), kept)) == 25
    assert the_bytes(kept) == before


def test_cells_beyond_the_grid_stay_and_the_order_of_exports_changes_no_byte(
    world: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, name = the_bytes(kept), str(world / "mine.yaml")
    smaller = ["05_finetuning.head_draws=1"]  # without the second draw of 2 models' heads of 2 outcomes
    experiment.run_grid(name, DataPaths(), smaller, export=kept)
    assert the_bytes(kept) == whole
    cells = load_profile(name, smaller).settings(GridSettings).all_cells(("stemi", "hcm"))
    beyond = f"results of 21 of {len(cells)} cells kept, and of 4 that are not in this grid, "
    assert beyond in capsys.readouterr().err
    experiment.run_grid(name, DataPaths(), smaller, export=tmp_path / "small first")
    assert f"results of 21 of {len(cells)} cells kept, 0." in capsys.readouterr().err
    experiment.run_grid(name, DataPaths(), [], export=tmp_path / "small first")
    assert the_bytes(tmp_path / "small first") == whole
    study = Study(load_profile(name, smaller), "05_finetuning", data=DataPaths(results=kept))
    scores = study.scores("stemi")
    assert set(scores.draw[scores.kind == "head"]) == {0}


def test_cells_that_were_kept_on_another_machine_are_not_made_again(
    world: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    content = (kept / "cells.json").read_text()
    data_hash = a_study(world).images.data_hash
    (kept / "cells.json").write_text(content.replace(data_hash, "rounded otherwise"))
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    for fit in ("_fit_head", "_finetune"):
        monkeypatch.setattr(Study, fit, Mock(side_effect=AssertionError("made again")))
    experiment.run_grid(str(world / "mine.yaml"), DataPaths(), [], export=kept)
    assert "results of 25 of" in capsys.readouterr().err
    assert KeptResults.open(kept).head["data_hash"] == data_hash
    assert {made["images"] for made in KeptResults.open(kept).cells.values()} == {"rounded otherwise"}


def test_cells_of_other_weights_or_labels_do_not_stay(
    world: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(world)
    monkeypatch.setattr(Study, "existing", lambda self, cell: None)
    n_random = sum(cell.model == "random" for cell in KeptResults.open(kept).cells)
    key = study.model_key
    monkeypatch.setattr(study, "model_key", lambda name: key(name) + " newer" * (name == "heartbeit"))
    assert 0 < n_random < 25
    assert len(experiment.export_results(study, kept)) == n_random
    study.cohort.manifest["stemi"] = 1 - study.cohort.manifest["stemi"]
    with pytest.raises(EcglibError, match="no cell exists yet"):
        experiment.export_results(study, kept)


def test_cells_stay_when_the_cohort_gets_another_outcome(
    world: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = a_study(world)
    monkeypatch.setattr(Study, "existing", lambda self, cell: None)
    study.cohort.manifest.insert(6, "gout", 0)
    before = KeptResults.open(kept).cells
    assert len(experiment.export_results(study, kept)) == 25
    after = KeptResults.open(kept)
    assert after.cells == before
    assert "gout" in after.manifest


def test_a_changed_file_is_named_in_one_line(world: Path, kept: Path) -> None:
    name = "stemi-official-finetuned-random.parquet"
    content = (kept / name).read_bytes()
    (kept / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(EcglibError, match=f"{name}: missing, or not as cells.json says; restore") as refusal:
        a_study(world, kept=kept)
    assert "\n" not in str(refusal.value)
    with pytest.raises(EcglibError, match=name):
        experiment.export_results(a_study(world), kept)
    (kept / "cells.json").write_text("{")
    with pytest.raises(EcglibError, match=r"cells\.json: cannot be read"):
        KeptResults.open(kept)
    with pytest.raises(EcglibError, match="no results are kept there"):
        KeptResults.open(kept / "nowhere")


def some_results(folder: Path, models: dict[str, int]) -> dict[Cell, pd.DataFrame]:
    """Write results of a head of each model, whose scores are drawn with its seed; returns what was kept."""
    maker = {"settings": {}, "model": "any", "images": "x", "commit": "abc", "machine": {}, "seconds": 1.0}
    drawn = {
        Cell("stemi", model, "head", "official", 1.0, 0, 0): predicted.cell(20, steps=(1,), seed=seed)
        for model, seed in models.items()
    }
    cells = {cell: results.as_kept(cell, table) for cell, table in drawn.items()}
    shift = pd.DataFrame({"x": [float(sum(models.values()))]})
    made_by = {cell: (maker, table) for cell, table in cells.items()}
    results.write_results(folder, {}, pd.DataFrame({"usable": [True]}), shift, made_by, "")
    return cells


def test_a_kill_at_any_moment_of_an_export_leaves_the_old_results_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, states = tmp_path / "kept", list[Path]()
    before, after = {"heartbeit": 1, "random": 2, "vit_b16": 3}, {"heartbeit": 4, "random": 2, "beit_b": 5}
    first = some_results(folder, before)
    (folder / "mine.parquet").write_bytes(b"of somebody else")

    def watched(call: Any) -> Any:
        def call_after_a_look(*arguments: Any, **others: Any) -> Any:
            states.append(shutil.copytree(folder, tmp_path / f"{len(states)}"))  # what a kill leaves here
            return call(*arguments, **others)

        return call_after_a_look

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(os, name, watched(getattr(os, name)))
        second = some_results(folder, after)
    whole = the_bytes(folder)
    assert not (folder / "stemi-official-head-vit_b16.parquet").exists()
    assert whole["mine.parquet"] == b"of somebody else"
    is_new = []
    for state in states:
        left = KeptResults.open(state)
        is_new.append(left.cells.keys() == second.keys())
        expected = second if is_new[-1] else first
        assert left.distances["x"].tolist() == [11.0 if is_new[-1] else 6.0]
        assert left.cells.keys() == expected.keys()
        for cell, table in expected.items():
            pd.testing.assert_frame_equal(cast(pd.DataFrame, left.predictions(cell)), in_order(table))
        for models, again in ((before, first), (after, second)):  # an export over what was left
            assert some_results(state, models).keys() == again.keys()
            assert KeptResults.open(state).cells.keys() == again.keys()
        assert {name: of for name, of in the_bytes(state).items() if not name.endswith(".partial")} == whole
    assert is_new == sorted(is_new)
    assert set(is_new) == {False, True}


def in_order(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows as a table of kept results has them."""
    return predictions.sort_values(["step", "part", "record_id"], ignore_index=True)


def test_no_export_replaces_what_is_not_of_kept_results(world: Path, tmp_path: Path) -> None:
    file, folder, hidden = tmp_path / "a file", tmp_path / "mine", tmp_path / "hidden"
    file.write_text("mine")
    for place in (folder, hidden):
        place.mkdir()
    (folder / "README.md").write_text("mine")
    (hidden / ".gitkeep").write_text("")
    for place, named in ((file, file), (folder, folder / "README.md")):
        with pytest.raises(EcglibError, match=f"{named}: it is not of kept results"):
            experiment.run_grid(str(world / "mine.yaml"), DataPaths(), [], export=place)
        with pytest.raises(EcglibError, match="export to a new folder, or move it away"):
            some_results(place, {"random": 1})
    assert file.read_text() == (folder / "README.md").read_text() == "mine"
    some_results(hidden, {"random": 1})
    assert KeptResults.open(hidden).cells


def test_a_damaged_folder_that_was_moved_away_is_exported_anew(
    world: Path, kept: Path, tmp_path: Path
) -> None:
    whole = the_bytes(kept)
    (kept / "manifest.parquet").unlink()
    with pytest.raises(EcglibError, match="restore the folder from git, or move it away and make it anew"):
        experiment.export_results(a_study(world), kept)
    kept.rename(tmp_path / "away")
    experiment.export_results(a_study(world), kept)
    assert the_bytes(kept) == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("05_finetuning.steps=4", "steps 3 there, 4 here"),
        ("05_finetuning.head_iterations=9", "head_iterations 1000 there, 9 here"),
        ("01_cohorts.n_patients=210", "n_patients 200 there, 210 here"),
    ],
)
def test_kept_results_of_other_settings_are_not_passed_off(
    world: Path, made: Path, override: str, message: str
) -> None:
    profile = load_profile(str(world / "mine.yaml"), [override])
    with pytest.raises(EcglibError, match=f"keeps results of other settings: {message}"):
        Study(profile, "05_finetuning", data=DataPaths(results=made))


def test_kept_results_of_other_weights_are_not_passed_off(
    world: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecglib.opening.weights_key", lambda folder: "minute newer")
    with pytest.raises(
        EcglibError, match=r"keeps results of other weights: minute .* there, minute newer here"
    ):
        a_study(world, kept=made)


def test_what_needs_ecgs_says_so(world: Path, made: Path) -> None:
    study = a_study(world, kept=made)
    with pytest.raises(EcglibError, match="keeps predictions, no images"):
        _ = study.images
    with pytest.raises(EcglibError, match="keeps predictions, no ECGs"):
        study.cohort.read(0)
    with pytest.raises(EcglibError, match="are not exported"):
        results.attribution("muse")


def test_part_of_a_grid_is_read_as_far_as_it_goes(world: Path, kept: Path) -> None:
    some = KeptResults.open(kept)
    cells = {c: (e, some.predictions(c)) for c, e in some.cells.items() if c.kind == "head" and not c.draw}
    results.write_results(kept, {"settings": some.head["settings"], "cohort": some.head["cohort"],
                                 "data_hash": "x"}, some.manifest, some.distances, cells, "")  # fmt: skip
    assert not (kept / "stemi-official-finetuned-random.parquet").exists()
    study = a_study(world, kept=kept)
    estimable = [cell for cell in study.grid("stemi") if study.rows(cell) is not None]
    assert estimable == [cell for cell in cells if cell.outcome == "stemi"]
    assert study.scores("stemi").estimable.sum() > 0


@given(st.lists(st.floats(0, 1, width=32), min_size=1))
def test_rounding_moves_no_score_far_and_none_past_another(scores: list[float]) -> None:
    before = np.array(scores, np.float32)
    after = rounded(before)
    moved = np.abs(after.astype(float) - before)
    assert (moved <= ROUNDED_TO * before.astype(float)).all()
    assert (moved <= ROUNDED_TO_RANGE * np.ptp(before.astype(float)) + 1e-38).all()
    assert (np.diff(after[np.argsort(before)]) >= 0).all()


def test_rows_that_protocols_read_are_kept_and_no_other() -> None:
    rng = np.random.default_rng(0)
    n, steps = 60, range(5)
    table = pd.DataFrame(
        {"record_id": np.arange(n).astype(str), "patient_id": np.arange(n).astype(str),
         "part": np.repeat(["validation", "test", "external"], n // 3), "y_true": np.arange(n) % 2}
    )  # fmt: skip
    all_steps = pd.concat([table.assign(step=s, y_score=rng.random(n).astype(np.float32)) for s in steps])
    read = read_by_protocols(all_steps)
    best = {part: choose_step(all_steps, "paper", part) for part in ("test", "external")}
    honest = choose_step(all_steps, "honest", "test")
    for part, group in read.groupby("part"):
        assert set(group.step) == {honest, best.get(str(part), honest)}
    for part in best:
        assert choose_step(read, "paper", part) == best[part]
        assert choose_step(read, "honest", part) == honest
    one_class = all_steps.assign(y_true=0)
    assert read_by_protocols(one_class) is one_class


# --- cells made alone ---


def test_unstable_cells_are_results_and_stop_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wild(classifier: Classifier, *others: Any) -> pd.DataFrame:
        if classifier.name == "random":
            raise UnstableError("loss or prediction not finite at step 2 of 3")
        return finetune(classifier, *others)

    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("ecglib.study.finetune", wild)
    overrides = ["05_finetuning.fractions=1", "05_finetuning.draws=1", "05_finetuning.extra_models=[]"]
    profile = load_profile(str(world / "mine.yaml"), overrides)
    study = Study(profile, "05_finetuning", "stemi")
    scores = study.scores("stemi")
    reason = "unstable: loss or prediction not finite at step 2 of 3"
    unstable = (scores.kind == "finetuned") & (scores.model == "random")
    assert scores.reason[unstable].tolist() == [reason] * 2
    assert not scores.estimable[unstable].any()
    assert scores[~unstable].value.notna().all()
    assert reason in score_tables.not_estimable_sentence(scores)
    splits = study.split_names
    assert "not estimable" in score_tables.score_table(scores, splits, "auroc")["random weights"].tolist()
    assert study.trained_classifier(study.grid("stemi")[-1]) is None
    differences = study.differences("stemi")
    assert set(differences.kind[differences.estimable]) == {"head"}
    lacking = differences[~differences.estimable]
    assert set(lacking.reason) == {f"random weights: {reason}"}
    score_figures.over_fractions(scores, splits)
    told = experiment.progress_table(study, study.grid("stemi"))
    assert told.unstable.tolist() == [0, 0, 1]
    experiment.export_results(study, tmp_path / "kept")
    again = Study(profile, "05_finetuning", "stemi", DataPaths(results=tmp_path / "kept"))
    pd.testing.assert_frame_equal(again.scores("stemi")[unstable], scores[unstable])


@pytest.mark.parametrize("hours", [0, 1e-9])
def test_the_grid_stops_after_its_hours_and_says_what_lacks(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, hours: float
) -> None:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    name = str(world / "mine.yaml")
    experiment.run_grid(name, DataPaths(), [], "stemi", "heads", hours=hours)
    printed = capsys.readouterr()
    assert "hours are over" in printed.err
    *words, last = [line.split() for line in printed.out.splitlines()]
    lacking = words[0].index("lack") + 1  # "50 %" is two words
    assert " ".join(last).startswith("6 cells lack; 6 of them are of a kind of which none is done")
    assert [(row[:3], row[lacking]) for row in words[1:]] == [
        (["head", "stemi", "official"], "4"),
        (["head", "stemi", "official"], "2"),
    ]
    with pytest.raises(EcglibError, match="only=cells: take heads or finetuned"):
        experiment.run_grid(name, DataPaths(), [], None, "cells")
    with pytest.raises(EcglibError, match="no cell exists yet"):
        experiment.export_results(a_study(world), tmp_path / "kept")


def test_where_no_cell_is_wanted_none_lacks(world: Path) -> None:
    table = experiment.progress_table(a_study(world), [])
    assert table.empty
    assert experiment.lacking_sentence(table) == "0 cells lack"


@pytest.mark.parametrize(
    ("n_finetuned", "told"),
    [
        (0, "16 cells lack; about 1.0 hours at the median of those done of the same kind"),
        (7, "23 cells lack; about 1.0 hours at the median of those done of the same kind; 7 of them are of"),
    ],
)
def test_the_hours_of_lacking_cells_are_those_of_done_cells_of_their_kind(
    n_finetuned: int, told: str
) -> None:
    rows = [
        ("head", "official", "1 %", 2, 9, 3.0),
        ("head", "seed42", "1 %", 0, 1, np.nan),  # 10 cells of 3 minutes
        ("head", "official", "50 %", 4, 0, 6.0),
        ("head", "official", "10 %", 0, 6, np.nan),  # 6 cells of the heads' 5 minutes
        ("finetuned", "official", "1 %", 0, n_finetuned, np.nan),
    ]
    names = ("kind", "split", "labels", "done", "lack", "minutes each")
    table = pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])
    assert experiment.lacking_sentence(table).startswith(told)
    assert experiment.lacking_sentence(table.assign(lack=0)) == "0 cells lack"


def test_each_fine_tuned_cell_is_named_once_when_it_is_made(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    few = ["05_finetuning.models=['random']", "05_finetuning.fractions=[1]", "05_finetuning.draws=[1]"]
    few += ["05_finetuning.extra_models=[]", "05_finetuning.head_fractions=[1]"]
    for expected in (["random finetuned, 100 % of stemi, official, draw 0: made, 0.0 minutes"], []):
        experiment.run_grid(str(world / "mine.yaml"), DataPaths(), few, "stemi")
        assert [line for line in capsys.readouterr().err.splitlines() if "minutes" in line] == expected


def test_a_grid_that_was_killed_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    name, asked = str(world / "mine.yaml"), []
    fit = Study._fit_head

    def killed_at_the_third(self: Study, cell: Cell, *others: object) -> pd.DataFrame:
        asked.append(cell)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return fit(self, cell, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Study, "_fit_head", killed_at_the_third)
    with pytest.raises(EcglibError, match="the same command goes on from here"):
        experiment.run_grid(name, DataPaths(), [], "stemi", "heads")
    experiment.run_grid(name, DataPaths(), [], "stemi", "heads")
    assert asked[2] == asked[3]
    assert len(set(asked)) == len(asked) - 1 == 6


# --- kept cells tried again ---


def test_kept_cells_come_out_again_from_nothing(
    world: Path, made: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = os.environ["ECGLIB_RUNS"]
    assert experiment.reproduce_cells(str(world / "mine.yaml"), DataPaths(), made, 3, 1)
    assert os.environ["ECGLIB_RUNS"] == runs
    told = capsys.readouterr().out
    assert told.count("True") == 3
    assert "scores to 1e-05" in told


@pytest.mark.parametrize(("processor", "reason"), [("another", True), (None, False)])
def test_a_fine_tuned_cell_that_differs_elsewhere_is_explained(
    world: Path,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    processor: str | None,
    reason: bool,
) -> None:
    here = experiment.machine()
    asked = Mock(return_value=here | ({"processor": processor} if processor else {}))
    monkeypatch.setattr(experiment, "machine", asked)
    for limit in ("SAME_SCORE", "SAME_AUROC"):
        monkeypatch.setattr(experiment, limit, -1.0)  # nothing is the same
    assert not experiment.reproduce_cells(str(world / "mine.yaml"), DataPaths(), made, 1, 1)
    told = capsys.readouterr()
    assert (experiment.NOT_ELSEWHERE in told.out + told.err) == reason
    asked.assert_called_once()


def test_a_killed_attempt_told_what_it_had_made_and_goes_on_in_its_folder(
    world: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    again = (str(world / "mine.yaml"), DataPaths(), made, 3, 1, tmp_path)
    fit, fits = Study._finetune, []

    def killed_at_the_second(self: Study, *arguments) -> pd.DataFrame:
        fits.append(arguments)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(self, *arguments)

    monkeypatch.setattr(Study, "_finetune", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        experiment.reproduce_cells(*again)
    first = str(fits[0][0])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{first}: machine")]
    assert len(told) == 1
    assert told[0].endswith("by scores to 1e-05, same True")
    assert experiment.reproduce_cells(*again)
    assert [arguments[0] for arguments in fits].count(fits[0][0]) == 1, "the first was made before"


def test_the_draw_takes_heads_and_the_smallest_fraction(made: Path) -> None:
    kept = KeptResults.open(made)
    drawn = experiment.draw_cells(kept, 20, 0)
    assert len(set(drawn)) == 20
    assert {(cell.kind, cell.fraction) for cell in drawn} == {
        ("head", 0.5),
        ("head", 1.0),
        ("finetuned", 0.5),
    }
    assert experiment.draw_cells(kept, 3, 0) == experiment.draw_cells(kept, 3, 0)
    assert experiment.draw_cells(kept, 3, 0) != experiment.draw_cells(kept, 3, 1)
    with pytest.raises(EcglibError, match="n=99: only 20 cells"):
        experiment.draw_cells(kept, 99, 0)
    for n, seed, told in ((0, 0, "n=0: .* at least 1"), (-1, 0, "n=-1"), (3, -1, "seed=-1: .* at least 0")):
        with pytest.raises(EcglibError, match=told):
            experiment.draw_cells(kept, n, seed)


@pytest.mark.parametrize("n", [1, 3])
def test_one_drawn_cell_at_least_is_fine_tuned(made: Path, n: int) -> None:
    kept = KeptResults.open(made)
    draws = [experiment.draw_cells(kept, n, seed) for seed in range(30)]
    finetuned = [[cell for cell in drawn if cell.kind == "finetuned"] for drawn in draws]
    assert all(len(set(drawn)) == n for drawn in draws)
    assert all(finetuned)
    assert len({cells[0] for cells in finetuned}) > 3, "it is drawn at random, too"
    assert (n > 1) == any(len(drawn) > len(of) for drawn, of in zip(draws, finetuned, strict=True))


def test_where_no_cell_is_fine_tuned_heads_are_drawn(made: Path) -> None:
    kept = KeptResults.open(made)
    heads = replace(kept, cells={cell: entry for cell, entry in kept.cells.items() if cell.kind == "head"})
    assert {cell.kind for cell in experiment.draw_cells(heads, 3, 0)} == {"head"}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({}, True),
        ({"python": "3.11.2"}, True),
        ({"processor": "AMD EPYC"}, False),
        ({"processor": "AMD EPYC (AVX512)"}, False),
        ({"processor": "AMD"}, False),
        ({"processor": "Intel(R) Xeon(R) Processor"}, False),
        ({"torch": "2.14.0"}, False),
        ({"cores": 64}, False),
        ({"device": "NVIDIA A100"}, False),
    ],
)
def test_a_machine_is_another_if_anything_differs_but_pythons_version(
    other: dict[str, Any], same: bool
) -> None:
    here = {
        "processor": "AMD EPYC (AVX2)",
        "cores": 2,
        "device": "no GPU",
        "python": "3.11.7",
        "torch": "2.14.1",
    }
    assert experiment.same_machine({**here, **other}, here) == same


def test_a_cell_that_comes_out_otherwise_is_told(made: Path) -> None:
    kept = KeptResults.open(made)
    cell = next(cell for cell in kept.cells if cell.kind == "finetuned")
    predictions = kept.predictions(cell)
    assert predictions is not None
    assert experiment.compare(cell, kept, predictions)["same"]
    moved = predictions.assign(y_score=predictions.y_score + np.float32(3e-5))
    told = experiment.compare(cell, kept, moved)
    assert not told["same"]
    assert told["largest difference"] == pytest.approx(3e-5, rel=0.01)
    elsewhere = replace(kept, cells={cell: {**kept.cells[cell], "machine": {"processor": "another"}}})
    assert experiment.compare(cell, elsewhere, moved)["same"], "AUROC is the same"
    reversed_ = predictions.assign(y_score=1 - predictions.y_score)
    assert not experiment.compare(cell, elsewhere, reversed_)["same"]
    assert not experiment.compare(cell, kept, None)["same"]
    assert not experiment.compare(cell, kept, predictions.iloc[:-1])["same"]


def test_where_test_lacks_a_class_scores_alone_are_compared(made: Path) -> None:
    class OneClass(KeptResults):
        def predictions(self, cell: Cell) -> pd.DataFrame | None:
            table = super().predictions(cell)
            return table if table is None else table.assign(y_true=0)

    kept = KeptResults.open(made)
    cell = next(cell for cell in kept.cells if cell.kind == "finetuned")
    elsewhere = {cell: {**kept.cells[cell], "machine": {"processor": "another"}}}
    for cells, machine in ((kept.cells, "this one"), (elsewhere, "another")):
        one_class = OneClass(kept.folder, kept.head, cells)
        predictions = one_class.predictions(cell)
        assert predictions is not None
        told = experiment.compare(cell, one_class, predictions)
        assert told["same"]
        assert (told["by"], told["machine"]) == ("scores to 1e-05", machine)
        assert np.isnan([told["AUROC kept"], told["AUROC now"]]).all()
        moved = predictions.assign(y_score=predictions.y_score + np.float32(3e-5))
        assert not experiment.compare(cell, one_class, moved)["same"]


def test_a_cell_without_auroc_costs_no_other_its_row(
    world: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    lacks = Mock(side_effect=[EcglibError("a class lacks"), EcglibError("a class lacks"), 0.75, 0.75])
    monkeypatch.setattr(experiment, "auroc_on_test", lacks)
    assert experiment.reproduce_cells(str(world / "mine.yaml"), DataPaths(), made, 2, 1)
    words, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert words[-2:] == ["by", "same"]
    assert [first.count("-"), second.count("-")] == [2, 0]
    assert [first[-1], second[-1], second.count("0.75")] == ["True", "True", 2]


def test_a_head_may_differ_by_the_rounding_of_its_own_step(made: Path, tmp_path: Path) -> None:
    kept = KeptResults.open(made)
    head = next(cell for cell in kept.cells if cell.kind == "head")
    exact = predicted.cell(steps=(1, 2))
    narrow, scores = (exact["step"] == 2).to_numpy(), exact["y_score"].to_numpy(np.float32)
    scores = np.where(narrow, 0.5 + scores / 1000, scores)
    exact = exact.assign(y_score=scores)
    entry = (kept.cells[head], results.as_kept(head, exact))
    results.write_results(tmp_path, {}, kept.manifest, kept.distances, {head: entry}, "")
    again = KeptResults.open(tmp_path)
    assert set(results.as_kept(head, exact).step) == {1, 2}
    told = experiment.compare(head, again, exact)
    assert told["same"]
    assert told["largest difference"] > 2e-5, "the wide step's rounding"
    moved = exact.assign(y_score=scores + np.float32(2e-5) * narrow)
    assert not experiment.compare(head, again, moved)["same"]


# --- a book of kept predictions ---


def the_pages(folder: Path) -> dict[str, list[str]]:
    """Tables, sentences and figures of every executed notebook, but the box of what made it."""
    found = {}
    for path in sorted((folder / "executed").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"][:-1]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        found[path.stem] = [json.dumps(o["data"], sort_keys=True) for o in outputs if "data" in o]
    return found


@pytest.mark.slow
def test_every_table_and_figure_comes_back_from_predictions_alone(
    world: Path, made: Path, tmp_path: Path
) -> None:
    command = [Path(sys.executable).with_name("ecglib"), "run", world / "mine.yaml", "--from-predictions"]
    words = ["--results", made, "--html", tmp_path / "html"]
    environment = os.environ | {"ECGLIB_RUNS": str(tmp_path / "runs")}
    seen = []
    for _ in range(2):
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seen.append(the_pages(tmp_path / "runs" / "mine-from-predictions"))
        text = (tmp_path / "html" / "book" / "index.html").read_text()
        assert "made of predictions that are kept with the book" in text
        assert not (tmp_path / "html" / "book" / "executed" / "01_cohorts.html").exists()
        shutil.rmtree(tmp_path / "runs")
        shutil.rmtree(tmp_path / "html")
    assert seen[0] == seen[1]
    assert set(seen[0]) == set(pages(load_profile(str(world / "mine.yaml")), of_predictions=True))
    assert all(sum("image/png" in output for output in page) for page in seen[0].values())
    assert str(ROOT) not in json.dumps(seen)
