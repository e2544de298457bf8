"""The study: results are made once, whoever asks first; ECGs that cannot be drawn are never learnt from."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from ecglib import figures, splits
from ecglib.cohort import Cohort, Waveforms
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.explanations import cells_to_explain
from ecglib.grid import Cell
from ecglib.profiles import load_profile
from ecglib.records import Record
from ecglib.study import Study
from ecglib.synthetic import Rows


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Study]:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    profile = load_profile("smoke")
    return Study(profile, "05_finetuning", "stemi"), Study(profile, "08_saliency")


@pytest.mark.parametrize(("split", "torn_apart"), [("seed42", True), ("official", False)])
def test_the_papers_split_draws_labels_by_record_and_ours_by_patient(
    pages: tuple[Study, Study], split: str, torn_apart: bool
) -> None:
    study, _ = pages
    study.__dict__["manifest"] = study.cohort.manifest.assign(usable=True)  # no image need be drawn for it
    rows = study.rows(Cell("stemi", "random", "head", split, 0.5, 0, 0))
    assert rows is not None
    patients = study.manifest.patient_id.to_numpy()
    train = np.flatnonzero(study.parts(split) == "train")
    left_out = np.setdiff1d(train, rows["train"])
    assert bool(set(patients[rows["train"]]) & set(patients[left_out])) == torn_apart


def place(cell: Cell, excluded: Sequence[int] | np.ndarray = ()) -> Path:
    """Where a newly opened study keeps a cell; `excluded` rows cannot be drawn."""
    study = Study(load_profile("smoke"), "05_finetuning", "stemi")
    usable = ~np.isin(np.arange(len(study.cohort)), excluded)
    study.__dict__["manifest"] = study.cohort.manifest.assign(usable=usable)
    study.__dict__["images"] = Mock(data_hash="the same")
    return study._cell_place(cell)


def test_a_cell_is_made_anew_once_it_learns_from_or_is_scored_on_other_ecgs(
    pages: tuple[Study, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = pages
    study.__dict__["manifest"] = study.cohort.manifest.assign(usable=True)
    tested = np.flatnonzero(study.parts("seed42") == "test")
    cell = Cell("stemi", "random", "head", "seed42", 0.5, 0, 0)
    before, unscored = place(cell), place(cell, tested[:1])
    assert place(cell) == before
    monkeypatch.setitem(splits.DRAWN_BY, "seed42", "patient_id")
    assert len({before, unscored, place(cell)}) == 3


def test_a_result_that_another_page_is_making_is_waited_for_and_reused(pages: tuple[Study, Study]) -> None:
    first, second = pages
    at_work, go_on, made = threading.Event(), threading.Event(), []

    def make_slowly(folder: Path) -> None:
        at_work.set()
        assert go_on.wait(10)
        made.append(folder)

    def ask(study: Study) -> Path:
        return study.stages.make("features", {"model": "random"}, ("ecglib.errors",), make_slowly)

    threads = [threading.Thread(target=ask, args=(study,)) for study in (first, second)]
    threads[0].start()
    assert at_work.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert [study.stages.made[0]["reused"] for study in (first, second)] == [False, True]


def test_cells_whose_features_another_page_is_making_come_last(
    pages: tuple[Study, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = pages
    asked: list[str] = []
    busy = other.stages.alone(study.folder / "busy")
    busy.__enter__()

    def predict(cell: object) -> None:
        asked.append(str(cell))
        if cell == "heads":
            if asked.count("heads") == 2:
                busy.__exit__(None, None, None)
            with study.stages.alone(study.folder / "busy"):
                pass

    monkeypatch.setattr(study, "grid", lambda outcome: ["heads", "finetuned"])
    monkeypatch.setattr(study, "predictions", predict)
    study._make_cells("stemi")
    assert asked == ["heads", "finetuned", "heads"]


@dataclass(frozen=True)
class Spoilt:
    """A cohort's waveforms, of which every fifth lacks a sample."""

    whole: Waveforms

    def read_many(self, rows: Rows) -> list[Record]:
        return [self.spoil(row, record) for row, record in zip(rows, self.whole.read_many(rows), strict=True)]

    def spoil(self, row: int, record: Record) -> Record:
        waveform = record.waveform.copy()
        waveform[0, 0] = np.nan if row % 5 == 2 else waveform[0, 0]
        return replace(record, waveform=waveform)

    def evidence(self, rows: Rows) -> np.ndarray | None:
        return self.whole.evidence(rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        study = Study.open("smoke", "05_finetuning", outcome="stemi")
    whole = open_cohort(CohortSettings(n_patients=60))
    study.__dict__["cohort"] = replace(whole, waveforms=Spoilt(whole.waveforms))
    return study


def excluded(cohort: Cohort) -> np.ndarray:
    return np.arange(len(cohort)) % 5 == 2


def test_what_is_wrong_is_counted_beside_the_cohorts_own_columns(study: Study) -> None:
    spoilt = excluded(study.cohort)
    assert study.manifest[study.cohort.manifest.columns].equals(study.cohort.manifest)
    assert np.array_equal(study.manifest.faults == "missing samples", spoilt)
    assert np.array_equal(study.manifest.usable, ~spoilt)
    assert np.array_equal(study.usable_rows, np.flatnonzero(~spoilt))
    assert (study.images.pixels(np.flatnonzero(spoilt)) == 255).all()


@pytest.mark.parametrize("split", ["official", "seed42"])
def test_excluded_ecgs_are_neither_learnt_from_nor_scored(study: Study, split: str) -> None:
    spoilt = excluded(study.cohort)
    assert np.array_equal(study.parts(split) == "excluded", spoilt)
    cell = replace(study.grid("stemi")[0], split=split, fraction=1.0)
    rows = study.rows(cell)
    assert rows is not None
    used = np.concatenate([*rows.values(), study.pretraining_rows, study.held_out_rows])
    assert not spoilt[used].any()
    assert set(np.concatenate(list(rows.values()))) == set(np.flatnonzero(~spoilt)), "and no other is lost"
    assert cells_to_explain(study, "stemi")


def test_the_figure_of_the_parts_leaves_excluded_ecgs_out(study: Study) -> None:
    parts = study.parts("official")
    figure = figures.cohort(study.cohort.manifest, parts, study.cohort.outcomes)
    shown = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert shown == ["Training", "Validation", "Internal\ntest", "External"]
