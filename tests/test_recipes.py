"""Public weights: the whole way from records to a card, with a minute network on made ECGs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from ecglib import beit, frozen, recipes, trials, weights_tables
from ecglib.beit import MaskedImageModel
from ecglib.cards import publish_run
from ecglib.checkpoints import read_checkpoint
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.frozen import Probes, probe_weights
from ecglib.pretrain import PretrainSettings
from ecglib.provenance import file_sha256
from ecglib.published import load
from ecglib.recipes import Recipe, make_weights
from ecglib.shards import ImageStore
from ecglib.tokenizer import TokenizerSettings, load_tokenizer

NAME, STEPS = "heartbeit_minute", 12


def small_recipe() -> Recipe:
    tokenizer = TokenizerSettings(n_hid=8, vocab_size=64, steps=40)
    pretraining = PretrainSettings(
        size="minute", steps=STEPS, batch_size=8, warmup_steps=2, checkpoint_every=4
    )
    return Recipe(tokenizer, pretraining, probe_every=8)


@pytest.fixture(scope="module", autouse=True)
def _small_world() -> object:
    """Two made cohorts, one of them under PTB-XL's name; a minute network; tokens need not be good."""

    def cohort(settings: CohortSettings, data: Path | None = None) -> Cohort:
        made = open_cohort(CohortSettings(n_patients=70, seed=3 + (settings.source == "ptbxl")))
        return replace(made, name=settings.source, comparable=data != Path("part"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(beit.SIZES, "minute", (12, 2, 2))
        patch.setitem(recipes.RECIPES, NAME, small_recipe())
        patch.setattr(recipes, "open_cohort", cohort)
        for name, value in {"PROBED": "hcm", "PROBED_FRACTION": 0.5, "N_PROBES": 3}.items():
            patch.setattr(recipes, name, value)
        patch.setattr(recipes, "require_alive", lambda report: None)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    make_weights(NAME, Path("whole"), folder)
    return folder


@pytest.fixture(scope="module")
def public(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public") / NAME
    publish_run(NAME, runs, folder)
    return folder


def test_nobody_of_folds_9_and_10_or_of_the_external_site_is_learnt_from(runs: Path) -> None:
    corpus = recipes.draw_corpus(Path("whole"), runs / "images")
    manifest = pd.concat([source.images.manifest for source in corpus.sources], ignore_index=True)
    seen = manifest.iloc[corpus.rows("train")]
    assert seen.strat_fold.isin(range(1, 9)).all()
    assert not seen.external.any()
    assert len(seen) == ((manifest.strat_fold >= 1) & (manifest.strat_fold <= 8)).sum() > 100
    audit = read_checkpoint(runs / NAME / "encoder.safetensors").metadata["audit"]
    assert audit == corpus.audit()
    assert sum(source["records"] for source in audit.values()) == len(seen)
    assert all(source["patients_of_folds_9_and_10"] == 0 for source in audit.values())


def test_audit_counts_a_patient_who_stands_on_both_sides() -> None:
    manifest = pd.DataFrame(
        {"patient_id": list("aabcdefg"), "strat_fold": [1, 9, 1, 2, 10, 3, 4, 5], "external": False}
    )
    parts = np.array(["train", "validation", "train", "train", "test", "train", "train", "train"])
    found = recipes._audit(manifest, parts)
    assert found["records"] == 6
    assert found["patients"] == 6
    assert found["records_of_folds_9_and_10"] == 0
    assert found["patients_of_folds_9_and_10"] == 1


def test_probes_are_scored_on_fold_9_by_heads_that_learnt_from_the_training_part(runs: Path) -> None:
    found = pd.read_csv(runs / NAME / "probes.csv")
    assert found[["step", "draw"]].to_numpy().tolist() == [[8, 0], [8, 1], [8, 2]]
    assert found.auroc.between(0, 1).all()
    assert found.auroc.nunique() > 1


def test_a_finished_run_is_not_made_again(runs: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.suffix in (".npy", ".pt", ".csv")
    }
    assert make_weights(NAME, Path("whole"), runs) == runs / NAME
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_published_weights_load_by_name_and_their_card_tells_the_truth(public: Path) -> None:
    model = load(NAME, public.parent)
    waveforms = np.random.default_rng(0).normal(0, 0.3, (2, 8, 5000))
    assert model.features(model.images(waveforms, 500)).shape == (2, 12)
    card = (public / "README.md").read_text(encoding="utf-8")
    for name in ("encoder.safetensors", "tokenizer.safetensors", "history.parquet"):
        assert f"`{name}`: `{file_sha256(public / name)}`" in card
    assert f"{STEPS} steps, {STEPS * 8} images seen" in card
    assert "Not finished" not in card
    assert "CC BY 4.0" in card
    assert f"ecglib pretrain {NAME}" in card
    history = pd.read_parquet(public / "history.parquet")
    assert f"{history.loss.iloc[-1]:.3f} nats" in card
    assert (public / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_at_work_is_published_as_not_finished(runs: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "runs"
    shutil.copytree(runs / "tokenizer", unfinished / "tokenizer")
    (unfinished / NAME).mkdir()
    with pytest.raises(EcglibError, match="holds no network yet: run `ecglib pretrain"):
        publish_run(NAME, unfinished, tmp_path / "public" / NAME)

    (unfinished / "images").symlink_to(runs / "images")
    with pytest.MonkeyPatch.context() as patch:  # stopped before the checkpoint of the second look
        patch.setattr(recipes.Watch, "_note", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_weights(NAME, Path("whole"), unfinished)
    publish_run(NAME, unfinished, tmp_path / "public" / NAME)
    card = (tmp_path / "public" / NAME / "README.md").read_text(encoding="utf-8")
    assert "Not finished: step 4 of the planned run" in card
    assert load(NAME, tmp_path / "public").metadata["steps_done"] == 8


def probes_of(images: ImageStore, data: Path, folder: Path) -> Probes:
    return Probes(images, {"mi_any": images.manifest.hcm.to_numpy()}, folder)


def test_probes_are_kept_beside_the_weights_and_made_again_for_other_weights_alone(
    runs: Path, public: Path, tmp_path: Path
) -> None:
    shutil.copytree(public, tmp_path / NAME)
    make = Mock(side_effect=lambda model: pd.DataFrame({"auroc": [0.7]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probes, "of_ptbxl", probes_of)
        for table in ("compare", "by_layer"):
            patch.setattr(Probes, table, make)
        probe_weights(NAME, Path("whole"), runs, tmp_path)
        found = probe_weights(NAME, Path("whole"), runs, tmp_path)
        assert found.auroc.tolist() == [0.7]
        assert make.call_count == 2, "one call a table"
        made = json.loads((tmp_path / NAME / "probes.json").read_text(encoding="utf-8"))
        assert made.keys() == {"probes.parquet", "layers.parquet"}
        own = load(NAME, tmp_path).metadata["weights_sha256"]
        assert all(by["weights_sha256"] == own for by in made.values())
        made["layers.parquet"]["weights_sha256"] = "another"
        (tmp_path / NAME / "probes.json").write_text(json.dumps(made), encoding="utf-8")
        probe_weights(NAME, Path("whole"), runs, tmp_path)
        assert make.call_count == 3


def test_trials_are_judged_beside_random_weights_and_kept(runs: Path, tmp_path: Path) -> None:
    recipe = small_recipe()
    slower = replace(recipe, pretraining=replace(recipe.pretraining, learning_rate=1e-4, steps=10))
    few = {"trial_first": trials.Trial("", recipe), "trial_rate": trials.Trial("learning rate", slower)}
    for name in ("tokenizer", "images"):
        (tmp_path / name).symlink_to(runs / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "TRIALS", few)
        patch.setattr(Probes, "of_ptbxl", probes_of)
        patch.setattr(frozen, "FRACTIONS", {0.5: 3})
        found = trials.run_trials(Path("whole"), tmp_path, tmp_path / "trials.json")
    made = trials.read_trials(tmp_path / "trials.json")
    assert [row["trial"] for row in made["rows"]] == ["random", "trial_first", "trial_rate"]
    assert found.images.tolist() == [0, STEPS * 8, 10 * 8]
    assert found.difference[0] == 0
    assert found.difference.tolist() == pytest.approx((found.auroc - found.auroc[0]).tolist())
    assert (found.draws == 3).all()
    history = pd.read_parquet(tmp_path / "trial_rate" / "history.parquet")
    assert made["rows"][2]["loss"] == pytest.approx(history.loss.mean())
    table: Any = weights_tables.trial_table(made)
    assert table.index.tolist() == ["no pretraining", "first run", "learning rate"]
    assert table["loss (nats)"].tolist()[0] == ""
    sentence = weights_tables.trial_sentence(made)
    assert f"learning rate {found.auroc[2] - found.auroc[1]:+.3f}" in sentence
    best = found.difference[1:].max()
    assert f"The best of them, {best:+.3f}" in sentence
    assert ("**reaches**" in sentence) == (best >= 0.05)


def test_runs_that_only_name_the_commonest_token_are_named() -> None:
    row = {"differs": "", "auroc": 0.7, "difference": 0.0, "difference_low": -0.1, "difference_high": 0.1}
    row |= {"draws": 2, "n": 10, "n_labels": 5, "n_positive": 3, "commonest": 0.2, "accuracy": 0.21}
    long = row | {"differs": "length", "accuracy": 0.5}
    rows = [row | {"trial": "random"}, row | {"trial": "trial_first"}, long | {"trial": "trial_long"}]
    made = {"rows": rows, "commit": "abc", "machine": {"processor": "a processor"}}
    assert "1 of 2 (first run) ended where the loss first stays flat" in weights_tables.trial_sentence(made)
    rows[1]["accuracy"] = 0.5
    assert "flat" not in weights_tables.trial_sentence(made)


def test_trials_that_were_never_made_are_one_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="run ecglib trials --data PTBXL_DIR"):
        trials.read_trials(tmp_path / "trials.json")


def test_each_trial_differs_from_the_first_in_one_thing() -> None:
    first = trials.TRIALS["trial_first"].recipe
    for name, trial in trials.TRIALS.items():
        ours, theirs = asdict(trial.recipe.pretraining), asdict(first.pretraining)
        changed = {key for key in ours if ours[key] != theirs[key]} | (
            {"tokens"} if trial.recipe.tokenizer != first.tokenizer else set()
        )
        assert changed == {
            "trial_first": set(),
            "trial_tokens": {"tokens"},
            "trial_masks": {"mask"},
            "trial_rate": {"learning_rate"},
            "heartbeit_nano": {"steps", "warmup_steps"},
        }[name]  # fmt: skip
    assert len(trials.TRIALS) <= 6


def test_part_of_ptbxl_and_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="part holds ptbxl: the public weights learn from all of PTB-XL"):
        make_weights(NAME, Path("part"), tmp_path)
    with pytest.raises(EcglibError, match="weights 'huge': there is a recipe for heartbeit_nano"):
        make_weights("huge", Path("whole"), tmp_path)


def test_a_run_whose_checkpoint_is_lost_goes_on_from_its_published_weights(
    runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").symlink_to(runs / "tokenizer")
    (tmp_path / "images").symlink_to(runs / "images")
    with pytest.MonkeyPatch.context() as patch:  # killed at step 8, published at step 4
        patch.setattr(recipes.Watch, "__call__", published_until(4, tmp_path))
        with pytest.raises(KeyboardInterrupt):
            make_weights(NAME, Path("whole"), tmp_path)
    start, again = tmp_path / "public" / NAME, tmp_path / "again"
    again.mkdir()
    (again / "images").symlink_to(runs / "images")
    folder = make_weights(NAME, Path("whole"), again, start)

    before, course = (pd.read_parquet(path / "history.parquet") for path in (start, folder))
    assert course.step.tolist() == list(range(1, STEPS + 1))
    pd.testing.assert_frame_equal(course.iloc[:4], before)
    unbroken = pd.read_parquet(runs / NAME / "history.parquet")
    assert course.loss[4] == pytest.approx(unbroken.loss[4], abs=1e-3), (
        "same network (in bf16) and same batch"
    )
    assert course.learning_rate[4] < unbroken.learning_rate[4], "warmed up again"
    assert course.learning_rate[6] == unbroken.learning_rate[6]
    assert load_tokenizer(start).metadata["weights_sha256"] in {
        load_tokenizer(path).metadata["weights_sha256"] for path in (again / "tokenizer").iterdir()
    }

    publish_run(NAME, again, tmp_path / "republished" / NAME)
    card = (tmp_path / "republished" / NAME / "README.md").read_text(encoding="utf-8")
    assert "At step 4 its checkpoint was lost" in card
    assert read_checkpoint(start / "encoder.safetensors").metadata["weights_sha256"] in card
    finished = (folder / "encoder.safetensors").read_bytes()
    assert make_weights(NAME, Path("whole"), again, start) == folder
    assert (folder / "encoder.safetensors").read_bytes() == finished
    with pytest.raises(EcglibError, match="start was"):
        make_weights(NAME, Path("whole"), again)


def published_until(last: int, folder: Path) -> Callable[..., None]:
    """A look that saves the network as the recipe's does, publishes it at one step, and stops at the next."""
    look = recipes.Watch.__call__

    def publish(watch: recipes.Watch, step: int, network: MaskedImageModel) -> None:
        if step > last:
            publish_run(NAME, folder, folder / "public" / NAME)
            raise KeyboardInterrupt
        look(watch, step, network)

    return publish
