"""Definitions overlap as sets do, relabelling a study changes its labels alone, no report leaves its file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib import label_lab
from ecglib.datasets import REMOVED_IN_1_0_3, DataPaths, read_ptbxl_table, read_scp_statements
from ecglib.errors import EcglibError
from ecglib.grid import Cell
from ecglib.labels import STEMI_DEFINITIONS, stemi_label
from ecglib.profiles import load_profile
from ecglib.study import Study

# Definition -> ECGs on the 21,799 records of 1.0.3, counted independently when the labels were made.
COUNTS = {
    "paper_prevalence": 1210, "paper_prevalence_stage": 1202, "acute_clinical": 602, "acute_strict": 171,
    "report_st_elevation": 464, "mi_any": 5472,
}  # fmt: skip
SMALL = ("01_cohorts.n_patients=60", "05_finetuning.head_models=[random]", "05_finetuning.head_fractions=[1]")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The embedded cohort with 60 patients, and heads on an untrained network's features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return Study(load_profile("smoke", SMALL), "12_label_lab")


@pytest.fixture(scope="module")
def ptbxl_study(ptbxl_subset: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return Study(load_profile("ptbxl-tiny"), "12_label_lab", data=DataPaths(folder=ptbxl_subset))


# --- what the definitions hold ---


def test_the_definitions_of_ptbxl_have_the_sizes_that_were_counted(
    ptbxl_table: pd.DataFrame, shared_data: Path
) -> None:
    table = ptbxl_table.loc[~ptbxl_table.index.isin(REMOVED_IN_1_0_3)]
    statements = read_scp_statements(shared_data / "ptb-xl")
    marked = pd.DataFrame({name: stemi_label(table, statements, name) for name in STEMI_DEFINITIONS})
    assert pd.Series(np.diag(label_lab.shared(marked)), marked.columns).to_dict() == COUNTS
    overlap = label_lab.jaccard(marked)
    assert overlap.loc["paper_prevalence", "paper_prevalence_stage"] == pytest.approx(93 / (1210 + 1202 - 93))
    assert label_lab.shared(marked).loc["acute_strict", "acute_clinical"] == COUNTS["acute_strict"]


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_overlaps_are_those_of_sets(rows: list[tuple[bool, ...]]) -> None:
    marked = pd.DataFrame(rows, columns=pd.Index(["a", "b", "c"])).astype(np.int8)
    sets = {name: set(np.flatnonzero(marked[name])) for name in marked}
    both, jaccard = label_lab.shared(marked), label_lab.jaccard(marked)
    for one, first in sets.items():
        for other, second in sets.items():
            assert both.loc[one, other] == len(first & second)
            assert jaccard.loc[one, other] == pytest.approx(len(first & second) / max(1, len(first | second)))


def test_each_row_of_the_definitions_is_the_manifests_row(study: Study, ptbxl_study: Study) -> None:
    for of in (study, ptbxl_study):
        marked = label_lab.definitions(of)
        own = marked[label_lab.own_definition(of)].to_numpy()
        assert np.array_equal(own, of.cohort.manifest.stemi)
        assert label_lab.chosen_definition(of, marked) == label_lab.own_definition(of)
    assert set(label_lab.definitions(ptbxl_study)) == set(STEMI_DEFINITIONS)


def test_the_embedded_definitions_follow_the_truth(study: Study) -> None:
    marked = label_lab.definitions(study).astype(bool)
    assert (marked.truth >= marked.strong_cases).all()
    assert (marked.truth_or_mimic == (marked.truth | marked.mimic_alone)).all()
    assert not (marked.truth & marked.mimic_alone).any()


def test_the_prevalence_table_counts_ecgs_and_patients(ptbxl_study: Study) -> None:
    marked = label_lab.definitions(ptbxl_study)
    table = label_lab.prevalence_table(ptbxl_study, marked)
    own = marked.acute_strict == 1
    n_patients = ptbxl_study.cohort.manifest.patient_id[own.to_numpy()].nunique()
    wanted = [f"{own.sum():,}", f"{n_patients:,}"]
    assert table.loc["acute_strict", ["ECGs", "patients"]].tolist() == wanted
    assert table.loc["the paper prints", ["fine-tuning (%)", "test (%)"]].tolist() == ["5.7", "5.4"]
    assert (table["used"] == "yes").sum() == 1


def test_reports_are_counted_and_none_is_quoted(ptbxl_study: Study, ptbxl_subset: Path) -> None:
    marked = label_lab.definitions(ptbxl_study)
    table = label_lab.report_table(ptbxl_study, marked)
    records = read_ptbxl_table(ptbxl_subset)
    reports = records.loc[~records.index.isin(REMOVED_IN_1_0_3), "report"].str.lower()
    own = (marked.mi_any == 1).to_numpy()
    old = sum(any(word in ("alt", "old") for word in report.replace(",", " ").replace(".", " ").split())
              for report in reports[own])  # fmt: skip
    assert table.loc["mi_any", "old"].startswith(f"{old:,} (")
    text = table.to_string()
    assert not any(report in text for report in reports if len(report) > 12)


def test_stages_are_counted_and_every_ecg_has_one_column(ptbxl_study: Study) -> None:
    marked = label_lab.definitions(ptbxl_study)
    table = label_lab.stage_table(ptbxl_study, marked)
    found = table.apply(lambda column: column.str.replace(",", "").astype(int)).sum(axis=1)
    assert found.to_dict() == marked.sum().to_dict()
    assert table.loc["acute_strict", "stage III"] == "0"


def test_another_source_says_that_it_has_no_reports(study: Study) -> None:
    marked = label_lab.definitions(study)
    assert "no reports" in label_lab.report_table(study, marked).to_string()
    assert "no stages" in label_lab.stage_table(study, marked).to_string()
    assert "ecglib run ptbxl-tiny" in label_lab.source_sentence(study)


def test_devices_are_ranked_by_prevalence(ptbxl_study: Study) -> None:
    marked = label_lab.definitions(ptbxl_study)
    shares = label_lab.device_table(ptbxl_study, marked, "mi_any")["prevalence (%)"].astype(float)
    assert len(shares) > 1
    assert shares.is_monotonic_increasing


@pytest.fixture(scope="module")
def half_said(study: Study) -> Study:
    """A table such as a hospital's: of every other ECG nobody said whether it is a STEMI."""
    manifest = study.cohort.manifest
    labels = manifest.stemi.where(np.arange(len(manifest)) % 2 == 0, -1).astype(np.int8)
    other = study.relabelled("stemi", labels.to_numpy())
    other.cohort = replace(other.cohort, drawn=None)
    return other


def test_what_nobody_said_stays_so_and_is_in_no_share(half_said: Study) -> None:
    marked, manifest = label_lab.definitions(half_said), half_said.cohort.manifest
    known = (manifest.stemi >= 0).to_numpy()
    assert np.array_equal(marked.stemi, manifest.stemi)
    share = label_lab.prevalence_table(half_said, marked).loc["stemi", "all (%)"]
    assert share == f"{100 * manifest.stemi[known].mean():.2f}"
    assert label_lab.shared(marked).loc["stemi", "stemi"] == (manifest.stemi == 1).sum()
    a, b = (set(np.flatnonzero(known & (manifest[name] == 1))) for name in ("stemi", "hcm"))
    assert label_lab.jaccard(marked).loc["stemi", "hcm"] == pytest.approx(len(a & b) / len(a | b))
    devices = label_lab.device_table(half_said, marked, "stemi")
    assert devices["ECGs"].str.replace(",", "").astype(int).sum() == known.sum()
    assert devices["of stemi"].str.replace(",", "").astype(int).sum() == (manifest.stemi == 1).sum()


def test_no_head_learns_from_what_nobody_said(half_said: Study) -> None:
    marked = label_lab.definitions(half_said)
    other = half_said.relabelled("stemi", marked["stemi"].to_numpy())
    rows = other.rows(Cell("stemi", "random", "head", "official", 1.0, 0, 0))
    assert rows is not None
    learnt = np.concatenate(list(rows.values()))
    assert (half_said.cohort.manifest.stemi.to_numpy()[learnt] >= 0).all()


def test_a_definition_that_does_not_exist_is_refused_by_name(study: Study, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGLIB_RUNS", str(tmp_path))
        other = Study(load_profile("smoke", [*SMALL, "12_label_lab.definition=acute"]), "12_label_lab")
    with pytest.raises(EcglibError, match=r"definition='acute': .* has label, truth"):
        label_lab.chosen_definition(other, label_lab.definitions(other))


# --- what they change ---


def test_a_relabelled_study_has_other_labels_and_nothing_else(study: Study) -> None:
    labels = (study.cohort.manifest.sex == "female").to_numpy()
    before = study.labels("stemi").copy()
    other = study.relabelled("stemi", labels)
    assert np.array_equal(other.labels("stemi"), labels)
    assert np.array_equal(study.labels("stemi"), before)
    assert other.images.data_hash == study.images.data_hash
    assert other.manifest.drop(columns="stemi").equals(study.manifest.drop(columns="stemi"))
    assert other.parts("official").equals(study.parts("official"))


def test_heads_are_scored_under_each_definition(study: Study) -> None:
    women = (study.cohort.manifest.sex == "female").to_numpy()
    marked = pd.DataFrame({"women": women, "men": ~women, "nobody": 0 * women}).astype(np.int8)
    scored = label_lab.scores(study, marked)
    assert set(scored.model) == {"random", "measurements"}, "the profile has no other head"
    assert "(`05_finetuning.head_models`): HeartBEiT" in label_lab.heads_sentence(study)
    tested = scored.loc[(scored.metric == "auroc") & (scored.part == "test")]
    heads = tested.loc[tested.model == "random"].set_index("definition")
    assert heads.loc["women", "value"] == pytest.approx(heads.loc["men", "value"], abs=1e-6)
    assert heads.loc["women", "prevalence"] == pytest.approx(1 - heads.loc["men", "prevalence"])
    assert (tested.loc[tested.model == "measurements", "value"] > 0.9).all(), "sex is one of the features"
    assert not scored.loc[scored.definition == "nobody", "estimable"].any()
    table = label_lab.score_table(scored)
    assert ("nobody", "not estimable") in table.index
    shown = table.loc[("women", "Internal test"), "random weights, AUROC"]
    assert shown.startswith(f"{heads.loc['women', 'value']:.2f} (")
