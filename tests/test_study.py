"""The study: ECGs that cannot be drawn reach no stage that learns or scores."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from ecglib import figures
from ecglib.datasets import Cohort, CohortSettings, Waveforms, open_cohort
from ecglib.explanations import cells_to_explain
from ecglib.records import Record
from ecglib.study import Study
from ecglib.synthetic import Rows


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
