"""A hospital's own ECGs: files and rows meet, no name is kept, bad input is one line."""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from muse_files import PLANTED, write_muse

from ecglib import hospital, pool
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.hospital import MuseFolder, open_hospital
from ecglib.pseudonyms import Pseudonyms, default_key_path, open_pseudonyms

N_PATIENTS = 12


def patient(number: int) -> str:
    return f"MRN{number:07d}"


def waveform(number: int, n_samples: int = 5000) -> np.ndarray:
    """Eight sines (8, samples) as int16 that differ from patient to patient."""
    phase = np.arange(n_samples) / 500 * (1 + number / 10) * 2 * np.pi
    return np.rint(200 * np.sin(phase + np.arange(8)[:, None])).astype(np.int16)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve patients at two sites, two ECGs each, in subfolders named after them."""
    folder = tmp_path_factory.mktemp("exports")
    for number in range(N_PATIENTS):
        (folder / patient(number)).mkdir()
        for ecg in (1, 2):
            write_muse(
                folder / patient(number) / f"{patient(number)}_{ecg}.XML",
                waveform(number),
                patient_id=patient(number),
                age=str(40 + 5 * number),
                gender="FEMALE" if number % 2 else "MALE",
                site="7" if number < 10 else "9",
                median=False,
            )
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "secret.key")


def write_key(path: Path, content: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def rows(**changes: object) -> pd.DataFrame:
    """One row a patient; every third has HCM, STEMI is not known for the first."""
    table = {
        "patient_id": [patient(number) for number in range(N_PATIENTS)],
        "lvef": [25 if number % 4 == 0 else 60 for number in range(N_PATIENTS)],
        "hcm": [int(number % 3 == 0) for number in range(N_PATIENTS)],
        "stemi": ["", *([0, 1] * N_PATIENTS)[: N_PATIENTS - 1]],
    }
    return pd.DataFrame(table).assign(**changes)


def opened(exports: Path, table: pd.DataFrame, key: Path, **options: object) -> Cohort:
    path = key.with_name("labels.csv")
    table.to_csv(path, index=False)
    return open_hospital(exports, path, key, key.with_name("cache"), **options)  # type: ignore[arg-type]


def left_out(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    assert isinstance(cohort.waveforms, MuseFolder)
    return cohort.waveforms.left_out


def test_every_file_gets_its_patients_labels(exports: Path, key: Path) -> None:
    cohort = opened(exports, rows(), key)
    assert cohort.outcomes == ("low_lvef", "hcm", "stemi")
    assert cohort.other_patients
    manifest = cohort.manifest
    ids = {Pseudonyms(key.read_bytes()).of("patient", patient(n)): n for n in range(N_PATIENTS)}
    numbers = manifest.patient_id.map(ids)
    assert numbers.value_counts().eq(2).all()
    assert manifest.low_lvef.tolist() == (numbers % 4 == 0).astype(int).tolist()
    assert manifest.hcm.tolist() == (numbers % 3 == 0).astype(int).tolist()
    assert set(manifest.stemi[numbers == 0]) == {-1}
    assert manifest.age.tolist() == [min(40 + 5 * n, 90) for n in numbers]
    assert manifest.sex.tolist() == ["female" if n % 2 else "male" for n in numbers]
    assert manifest.groupby("patient_id").strat_fold.nunique().max() == 1
    assert set(manifest.strat_fold) == set(range(1, 11))
    record = cohort.read(5)
    assert (record.record_id, record.patient_id) == tuple(manifest.loc[5, ["record_id", "patient_id"]])
    expected = waveform(numbers[5]) * 0.00488
    np.testing.assert_allclose(record.waveform, expected, atol=1e-6)


def test_manifest_index_and_waveforms_hold_no_name(exports: Path, key: Path) -> None:
    cohort = opened(exports, rows(), key)
    record = cohort.read(0)
    texts = [cohort.manifest.to_csv(), repr(cohort.notes), cohort.name, record.record_id, record.patient_id]
    kept = [path.read_bytes() for path in key.with_name("cache").rglob("*") if path.is_file()]
    assert kept
    parts = [pd.read_parquet(path).to_csv() for path in key.with_name("cache").rglob("*.parquet")]
    for planted in [*PLANTED, "MRN"]:
        assert not any(planted in text for text in texts + parts)
        assert not any(planted.encode() in content for content in kept)


def test_the_same_key_gives_the_same_ids_and_another_key_others(exports: Path, tmp_path: Path) -> None:
    cohorts = []
    for name, content in (("a", b"a" * 32), ("b", b"a" * 32), ("c", b"c" * 32)):
        (tmp_path / name).mkdir()
        cohorts.append(opened(exports, rows(), write_key(tmp_path / name / "key", content)))
    a, b, c = cohorts
    pd.testing.assert_frame_equal(a.manifest, b.manifest)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert not set(a.manifest.patient_id) & set(c.manifest.patient_id)
    assert a.manifest.record_id.str.fullmatch("[0-9a-f]{16}").all()


def test_rows_without_file_and_files_without_row_are_counted(
    exports: Path, key: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exports, tmp_path / "copy")
    damaged = folder / patient(3) / f"{patient(3)}_1.XML"
    damaged.write_bytes(damaged.read_bytes()[:-3000])
    table = rows().iloc[1:]
    table.loc[1, "patient_id"] = "nobody"
    table.loc[0] = [patient(11), 60, 0, ""]
    table = table[table.index != 11]
    cohort = opened(folder, table, key)
    assert len(cohort) == 2 * 10 - 1
    assert left_out(cohort)[hospital.UNREADABLE] == (f"{patient(3)}/{patient(3)}_1.XML",)
    assert len(left_out(cohort)[hospital.NO_ROW]) == 4
    assert left_out(cohort)[hospital.NO_FILE] == ("row 2",)
    said = " ".join(cohort.notes)
    assert "24 files" in said
    assert "files that cannot be read: 1; files without a row in the table: 4; rows of" in said
    assert "MRN" not in said
    assert isinstance(cohort.waveforms, MuseFolder)
    assert damaged.name in "\n".join(cohort.waveforms.complaints())


def test_a_row_with_a_file_is_of_that_ecg_alone(exports: Path, key: Path) -> None:
    of_files = pd.DataFrame(
        {
            "patient_id": [patient(n) for n in range(N_PATIENTS)],
            "file": [f"{patient(n)}/{patient(n)}_2.XML" for n in range(N_PATIENTS)],
            "stemi": 1,
        }
    )
    cohort = opened(exports, pd.concat([rows(stemi=0), of_files]), key)
    assert len(cohort) == 2 * N_PATIENTS
    assert cohort.manifest.stemi.tolist() == [0, 1] * N_PATIENTS
    assert set(cohort.manifest.hcm[1::2]) == {-1}


def test_echo_reports_give_both_labels(exports: Path, key: Path) -> None:
    negated = "Ejection fraction 60 %. No evidence of hypertrophic cardiomyopathy."
    reports = ["LVEF 30 %.", negated, "Normal LV function, LVEF 62 %. Hypertrophic cardiomyopathy."] * 4
    table = pd.DataFrame({"patient_id": rows().patient_id, "echo_report": reports})
    paper, aware = (opened(exports, table, key, hcm_rule=rule) for rule in ("any_mention", "negation_aware"))
    assert paper.outcomes == ("low_lvef", "hcm")
    assert paper.manifest.low_lvef.tolist() == [1, 1, 0, 0, 0, 0] * 4
    assert paper.manifest.hcm.tolist() == [0, 0, 1, 1, 1, 1] * 4
    assert aware.manifest.hcm.tolist() == [0, 0, 0, 0, 1, 1] * 4
    assert "any_mention" in paper.origins["hcm"]


def test_no_outcome_is_invented(exports: Path, key: Path) -> None:
    cohort = opened(exports, rows().loc[:, ["patient_id", "hcm"]], key)
    assert cohort.outcomes == ("hcm",)
    silent = opened(exports, rows().assign(lvef="", hcm=0), key)
    assert silent.outcomes == ("stemi",)
    assert "hcm is left out: all its labels are the same." in silent.notes


def test_external_site_is_held_out_whole(exports: Path, key: Path) -> None:
    by_setting = opened(exports, rows(), key, external_site="9").manifest
    by_table = opened(exports, rows(external=[int(n >= 10) for n in range(N_PATIENTS)]), key).manifest
    pd.testing.assert_frame_equal(by_setting, by_table)
    assert by_setting.external.sum() == 4
    assert set(by_setting.strat_fold[by_setting.external]) == {0}


def test_a_patient_of_both_sides_stays_on_the_external_one(exports: Path, key: Path) -> None:
    own = pd.DataFrame(
        {
            "patient_id": [patient(0)],
            "file": [f"{patient(0)}/{patient(0)}_2.XML"],
            "external": [1],
            "hcm": [1],
        }
    )
    cohort = opened(exports, pd.concat([rows(), own]), key)
    assert len(cohort) == 2 * N_PATIENTS - 1
    assert left_out(cohort)[hospital.TWO_SIDES] == (f"{patient(0)}/{patient(0)}_1.XML",)


def test_the_tables_folds_age_and_sex_count(exports: Path, key: Path) -> None:
    folds = [n % 10 + 1 for n in range(N_PATIENTS)]
    table = rows(strat_fold=folds, age=[99, *[30.7] * (N_PATIENTS - 1)], sex=["F"] * N_PATIENTS)
    manifest = opened(exports, table, key).manifest
    assert manifest.strat_fold.tolist() == [fold for fold in folds for _ in (1, 2)]
    assert manifest.age.tolist() == [90, 90, *[30] * 22]
    assert set(manifest.sex) == {"female"}


def test_a_semicolon_table_with_byte_order_mark_is_read(exports: Path, key: Path) -> None:
    path = key.with_name("excel.csv")
    rows().to_csv(path, sep=";", index=False, encoding="utf-8-sig")
    excel = open_hospital(exports, path, key, None)
    assert excel.manifest.equals(opened(exports, rows(), key).manifest)


def test_each_file_is_read_for_the_index_once(
    exports: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hospital, "CHUNK_SIZE", 4)
    monkeypatch.setattr(hospital, "PART_SIZE", 8)
    read, real = [], hospital.read_muse

    def counted(path: Path) -> object:
        read.append(path)
        if len(read) == 18:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(hospital, "read_muse", counted)
    with pytest.raises(KeyboardInterrupt):
        opened(exports, rows(), key)
    assert len(list(key.with_name("cache").rglob("*.parquet"))) == 2
    read.clear()
    first = opened(exports, rows(), key)
    assert len(read) == 24 - 16
    again = opened(exports, rows(), key)
    assert len(read) == 24 - 16
    assert again.fingerprint == first.fingerprint


def test_processes_read_the_same_index(exports: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = opened(exports, rows(), key)
    shutil.rmtree(key.with_name("cache"))
    monkeypatch.setattr(hospital, "CHUNK_SIZE", 5)
    monkeypatch.setattr(pool, "POOL_FROM", 2)
    assert opened(exports, rows(), key).fingerprint == alone.fingerprint


def test_a_file_that_vanishes_is_named_by_its_pseudonym(exports: Path, key: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exports, tmp_path / "copy")
    cohort = opened(folder, rows(), key)
    (folder / patient(0) / f"{patient(0)}_1.XML").unlink()
    with pytest.raises(EcglibError, match=cohort.manifest.record_id[0]) as caught:
        cohort.read_many([1, 0])
    assert "MRN" not in str(caught.value)
    assert caught.value.__suppress_context__


def changed(column: str, value: object) -> pd.DataFrame:
    table = rows().astype(object)
    table.loc[3, column] = value
    return table


TWICE = pd.concat([rows(), rows(hcm=1).iloc[[1]]])
BAD_TABLES = {
    "no patient_id": (rows().rename(columns={"patient_id": "mrn"}), "has no column patient_id"),
    "no label": (rows()[["patient_id"]], "has none of low_lvef, lvef, echo_report, hcm, stemi"),
    "empty id": (changed("patient_id", ""), "row 5 has no patient_id"),
    "contradiction": (TWICE, "rows 3 and 14 are of one patient but differ in hcm"),
    "label": (changed("stemi", "yes"), "row 5: stemi must be 0 or 1"),
    "lvef": (changed("lvef", "hard to see"), "row 5: lvef must be an ejection fraction"),
    "lvef number": (changed("lvef", 250), "row 5: lvef"),
    "fold": (rows(strat_fold=11), "row 2: strat_fold must be a whole number from 1 to 10"),
    "some folds": (rows(strat_fold=["", *[1] * 11]), "strat_fold is given for 22 of 24"),
    "age": (rows(age=-1), "row 2: age must be a number of years"),
    "sex": (rows(sex="x"), "row 2: sex must be male or female"),
    "all external": (rows(external=1), "every ECG is external"),
    "no match": (rows(patient_id=[str(n) for n in range(N_PATIENTS)]), "none of its rows fits"),
    "one file": (rows(file=f"{patient(5)}/{patient(5)}_1.XML"), "rows 2 and 3 are of one ECG but differ in"),
    "one class": (rows(lvef=60, hcm=0, stemi=1), "no outcome is 1 for some ECGs and 0 for others"),
    "empty": (rows().head(0), "holds no row"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_gives_one_line_that_quotes_no_id(exports: Path, key: Path, name: str) -> None:
    table, message = BAD_TABLES[name]
    with pytest.raises(EcglibError, match=message) as caught:
        opened(exports, table, key)
    assert "\n" not in str(caught.value)
    assert "MRN" not in str(caught.value)


def test_a_row_that_names_another_patients_file_is_refused(exports: Path, key: Path) -> None:
    own = pd.DataFrame({"patient_id": [patient(0)], "file": [f"{patient(5)}/{patient(5)}_2.XML"], "hcm": [1]})
    with pytest.raises(EcglibError, match="row 14 has another patient_id than its file"):
        opened(exports, pd.concat([rows(), own]), key)


def test_missing_table_folder_and_files(exports: Path, key: Path, tmp_path: Path) -> None:
    rows().to_csv(table := tmp_path / "labels.csv", index=False)
    with pytest.raises(EcglibError, match="no such table"):
        open_hospital(exports, tmp_path / "none.csv", key, None)
    with pytest.raises(EcglibError, match="no such folder"):
        open_hospital(tmp_path / "none", table, key, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EcglibError, match=r"no \.xml file"):
        open_hospital(tmp_path / "empty", table, key, None)
    with pytest.raises(EcglibError, match="no ECG is of this site; take one of 7, 9"):
        open_hospital(exports, table, key, None, external_site="11")
    for settings, said in ((None, "--data DIR"), (exports, "--table CSV")):
        with pytest.raises(EcglibError, match=said):
            open_cohort(CohortSettings(source="muse"), settings)


def test_too_few_patients_for_folds(exports: Path, key: Path) -> None:
    with pytest.raises(EcglibError, match="only 9 patients are not external"):
        opened(exports, rows().head(9), key)


# --- the key ---


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    first, again = open_pseudonyms(None), open_pseudonyms(None)
    assert stat.S_IMODE(default_key_path().stat().st_mode) == 0o600
    assert len(default_key_path().read_bytes()) == 32
    assert first == again
    assert os.listdir(default_key_path().parent) == [default_key_path().name]


def test_a_key_is_never_shown(key: Path) -> None:
    assert repr(bytes(range(32)))[2:12] not in repr(open_pseudonyms(key))


def test_bad_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="others can read it"):
        open_pseudonyms(write_key(tmp_path / "open", mode=0o644))
    with pytest.raises(EcglibError, match="5 bytes"):
        open_pseudonyms(write_key(tmp_path / "short", b"short"))
    with pytest.raises(EcglibError, match="cannot be read"):
        open_pseudonyms(tmp_path / "none")
    with pytest.raises(EcglibError, match="lies among the results"):
        open_pseudonyms(write_key(tmp_path / "key"), shared=tmp_path)


def test_pseudonyms_are_hmac_sha256() -> None:
    """By the definition in RFC 2104."""
    import hashlib

    inner = hashlib.sha256(bytes(b ^ 0x36 for b in b"k".ljust(64, b"\0")) + b"patient\x00007").digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in b"k".ljust(64, b"\0")) + inner).hexdigest()
    assert Pseudonyms(b"k").of("patient", "007") == outer[:16]
