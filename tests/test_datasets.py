"""Cohorts: one manifest from every source, what a folder is called, and clear lines about broken folders."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecglib.datasets import REMOVED_IN_1_0_3, Cohort, CohortSettings, open_cohort, read_ptbxl_table
from ecglib.errors import EcglibError
from ecglib.records import LEADS_8, LEADS_12
from ecglib.synthetic import waveforms

COLUMNS = ["record_id", "patient_id", "site", "external", "strat_fold", "age", "sex", "device"]
PTBXL = CohortSettings(source="ptbxl")


def ptbxl_folder(folder: Path, ids: range = range(1, 13), **changes: object) -> Path:
    """A folder laid out as PTB-XL, with two records a patient, each a straight line of its own slope."""
    rows = [table_row(ecg_id) | changes for ecg_id in ids]
    (folder / "records100" / "00000").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "ptbxl_database.csv", index=False)
    (folder / "scp_statements.csv").write_text(",diagnostic,diagnostic_class\nNORM,1.0,NORM\nIMI,1.0,MI\n")
    for ecg_id in ids:
        write_record(folder / "records100" / "00000" / f"{ecg_id:05d}_lr", slope=ecg_id)
    return folder


def table_row(ecg_id: int) -> dict[str, object]:
    name = f"00000/{ecg_id:05d}"
    return {
        "ecg_id": ecg_id,
        "patient_id": f"{1000 + ecg_id // 2}.0",
        "age": 60.0,
        "sex": ecg_id % 2,
        "site": None if ecg_id == 2 else 3.0,
        "device": "AT-6     6",
        "report": "sinusrhythmus",
        "scp_codes": "{'IMI': 100.0}" if ecg_id % 3 == 0 else "{'NORM': 100.0}",
        "infarction_stadium1": None,
        "infarction_stadium2": None,
        "strat_fold": ecg_id // 2 % 10 + 1,
        "filename_lr": f"records100/{name}_lr",
        "filename_hr": f"records500/{name}_hr",
    }


def write_record(path: Path, slope: int) -> None:
    samples = np.tile(np.arange(1000)[:, None] * slope % 1000, (1, 12)).astype("<i2")
    path.with_name(path.name + ".dat").write_bytes(samples.tobytes())
    checksum = int(samples[:, 0].astype(int).sum()) % 65536
    lines = [f"{path.name} 12 100 1000"]
    lines += [f"{path.name}.dat 16 1000.0(0)/mV 16 0 0 {checksum} 0 {lead}" for lead in LEADS_12]
    path.with_name(path.name + ".hea").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def embedded() -> Cohort:
    return open_cohort(CohortSettings(n_patients=200))


def check_manifest(cohort: Cohort) -> None:
    manifest = cohort.manifest
    assert list(manifest) == [*COLUMNS, *cohort.outcomes]
    assert manifest.record_id.is_unique
    assert isinstance(manifest.index, pd.RangeIndex)
    for column in ("record_id", "patient_id", "site", "sex", "device"):
        assert {type(value) for value in manifest[column]} == {str}
    assert manifest.external.to_numpy().dtype == np.bool_
    assert set(manifest.sex) == {"male", "female"}
    assert all(manifest[outcome].dtype == np.int8 for outcome in cohort.outcomes)
    assert manifest.strat_fold[manifest.external].eq(0).all()
    assert manifest.strat_fold[~manifest.external].between(1, 10).all()
    assert manifest.groupby("patient_id").strat_fold.nunique().max() == 1


def test_embedded_cohort_says_what_it_is(embedded: Cohort) -> None:
    check_manifest(embedded)
    assert embedded.name == "Embedded synthetic cohort"
    assert embedded.outcomes == ("low_lvef", "hcm", "stemi")
    assert embedded.synthetic
    assert not embedded.comparable
    assert (embedded.manifest.site == "E").equals(embedded.manifest.external)


def test_embedded_folds_are_alike_in_outcomes() -> None:
    manifest = open_cohort(CohortSettings()).manifest
    folds = manifest[~manifest.external].groupby("strat_fold")[["low_lvef", "hcm", "stemi"]].mean()
    assert (folds.max() - folds.min() < 0.02).all()


def test_embedded_records_and_evidence_come_from_the_generator(embedded: Cohort) -> None:
    rows = [7, 2]
    records, evidence = embedded.read_many(rows), embedded.evidence(rows)
    assert [record.record_id for record in records] == list(embedded.manifest.record_id[rows])
    assert records[0].leads == LEADS_8
    assert records[0].sampling_rate == 500
    assert np.array_equal(embedded.read(2).waveform, records[1].waveform)
    assert evidence is not None
    assert evidence.shape == (2, 8, 5000)
    generated, _ = waveforms(embedded.waveforms.cohort, rows, seed=0)  # type: ignore[attr-defined]
    assert np.array_equal(records[0].waveform, generated[0])


def test_fingerprint_of_the_embedded_cohort_follows_its_settings(embedded: Cohort) -> None:
    assert embedded.fingerprint == open_cohort(CohortSettings(n_patients=200)).fingerprint
    others = [CohortSettings(n_patients=201), CohortSettings(n_patients=200, seed=1)]
    assert all(open_cohort(settings).fingerprint != embedded.fingerprint for settings in others)


def test_ptbxl_manifest(tmp_path: Path) -> None:
    cohort = open_cohort(PTBXL, ptbxl_folder(tmp_path / "ptbxl"))
    check_manifest(cohort)
    manifest = cohort.manifest
    assert list(manifest.record_id[:3]) == ["1", "2", "3"]
    assert manifest.patient_id[2] == "1001"
    assert list(manifest.sex[:2]) == ["female", "male"]
    assert list(manifest.site[:2]) == ["3", "unknown"]
    assert manifest.device[0] == "AT-6 6"
    assert list(manifest.mi_any) == [0, 0, 1] * 4
    assert "rule paper_prevalence (Certain ischaemia with a site" in cohort.origins["stemi"]
    assert "rule acute_clinical (Injury, ST elevation" in cohort.origins["acute_stemi"]
    assert not manifest.external.any()
    assert cohort.evidence([0]) is None
    record = cohort.read_many([4, 1])[0]
    assert (record.record_id, record.patient_id) == ("5", "1002")
    np.testing.assert_allclose(record.waveform[0, :4], [0, 0.005, 0.010, 0.015], atol=1e-7)


def test_removed_records_are_left_out(tmp_path: Path) -> None:
    cohort = open_cohort(PTBXL, ptbxl_folder(tmp_path / "ptbxl", range(135, 148)))
    assert list(cohort.manifest.record_id) == ["135", "136", "138", "144", "146", "147"]
    assert cohort.name == "PTB-XL 1.0.1 subset, enriched (6 records)"


def test_removed_ids_are_those_of_the_list(shared_data: Path) -> None:
    listed = (shared_data / "ptb-xl" / "ids_removed_in_1.0.3.txt").read_text().split()
    assert frozenset(map(int, listed)) == REMOVED_IN_1_0_3


def test_hidden_ages_above_89_are_read_as_90(tmp_path: Path) -> None:
    table = read_ptbxl_table(ptbxl_folder(tmp_path / "ptbxl", age=300))
    assert table.age.eq(90).all()
    table = read_ptbxl_table(ptbxl_folder(tmp_path / "other", age=None))
    assert table.age.isna().all()


def test_whole_table_of_ptbxl(ptbxl_table: pd.DataFrame) -> None:
    assert len(ptbxl_table) == 21_837
    assert ptbxl_table.patient_id[1] == "15709"
    assert ptbxl_table.patient_id.nunique() == 18_885
    assert len(ptbxl_table[~ptbxl_table.index.isin(REMOVED_IN_1_0_3)]) == 21_799


def test_real_subset_is_called_enriched(ptbxl_subset: Path) -> None:
    cohort = open_cohort(PTBXL, ptbxl_subset)
    check_manifest(cohort)
    assert cohort.name == "PTB-XL 1.0.1 subset, enriched (1,197 records)"
    assert not cohort.comparable
    assert not cohort.synthetic
    assert cohort.read(0).waveform.shape == (12, 1000)


def test_real_records_at_500_hz(shared_data: Path) -> None:
    folder = shared_data / "ptb-xl-500hz"
    fast = open_cohort(CohortSettings(source="ptbxl", sampling_rate=500), folder)
    slow = open_cohort(PTBXL, folder)
    assert fast.read(0).sampling_rate == 500
    assert fast.read(0).record_id == slow.read(0).record_id
    assert fast.fingerprint != slow.fingerprint


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    folder = ptbxl_folder(tmp_path / "ptbxl")
    first = open_cohort(PTBXL, folder).fingerprint
    assert open_cohort(PTBXL, folder).fingerprint == first
    time.sleep(0.02)  # file systems keep times in steps
    write_record(folder / "records100" / "00000" / "00003_lr", slope=7)
    assert open_cohort(PTBXL, folder).fingerprint != first


def damage(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    path.write_text(path.read_text().replace(old, new))


BREAKAGES = {
    "no scp_statements": (lambda f: (f / "scp_statements.csv").unlink(), "scp_statements.csv: no such table"),
    "no table": (lambda f: (f / "ptbxl_database.csv").unlink(), "ptbxl_database.csv: no such table"),
    "no column": (
        lambda f: damage(f, "ptbxl_database.csv", "strat_fold", "fold"),
        "column strat_fold is missing",
    ),
    "no patient": (
        lambda f: damage(f, "ptbxl_database.csv", "3,1001.0", "3,"),
        "ecg_id 3 has patient_id nan",
    ),
    "twice": (lambda f: damage(f, "ptbxl_database.csv", "\n4,", "\n3,"), "ecg_id 3; it must be unique"),
    "empty": (lambda f: (f / "ptbxl_database.csv").write_text(""), "not a table that can be read"),
    "no .dat": (lambda f: (f / "records100/00000/00005_lr.dat").unlink(), "00005_lr.dat: no such file"),
    "no .hea": (lambda f: (f / "records100/00000/00005_lr.hea").unlink(), "00005_lr.hea: no such file"),
    "no class": (
        lambda f: damage(f, "scp_statements.csv", "_class", ""),
        "column diagnostic_class is missing",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_folders_give_one_line(tmp_path: Path, breakage: str) -> None:
    folder = ptbxl_folder(tmp_path / "ptbxl")
    spoil, message = BREAKAGES[breakage]
    spoil(folder)
    with pytest.raises(EcglibError, match=message) as caught:
        open_cohort(PTBXL, folder)
    assert "\n" not in str(caught.value)


def test_missing_500_hz_records_are_found_at_once(tmp_path: Path) -> None:
    folder = ptbxl_folder(tmp_path / "ptbxl")
    with pytest.raises(EcglibError, match=r"records500/00000/00001_hr\.hea: no such file"):
        open_cohort(CohortSettings(source="ptbxl", sampling_rate=500), folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="no such folder"):
        open_cohort(PTBXL, tmp_path / "nowhere")
    with pytest.raises(EcglibError, match="--data DIR"):
        open_cohort(PTBXL)


@pytest.mark.parametrize(
    "wrong", [{"source": "mimic"}, {"stemi_definition": "st"}, {"sampling_rate": 250}, {"hcm_rule": "any"}]
)
def test_settings_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(EcglibError, match=f"{next(iter(wrong))} must be one of"):
        CohortSettings(**wrong)
