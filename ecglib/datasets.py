"""Sources of ECGs, each read into the same manifest: the embedded cohort or a PTB-XL folder.

PTB-XL: Wagner et al., doi 10.13026/x4td-x982 (version 1.0.1) and later. The paper used 1.0.3, so records that
1.0.3 withdrew are left out whatever version the folder holds.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from ecglib import labels, synthetic
from ecglib.errors import EcglibError
from ecglib.provenance import code_hash, digest, file_sha256
from ecglib.records import LEADS_8, Record, read_wfdb
from ecglib.signs import OUTCOMES
from ecglib.synthetic import Rows

# The records of 1.0.1 that 1.0.3 withdrew.
REMOVED_IN_1_0_3 = frozenset(
    {137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462, 2506, 2511, 3795, 3798, 3800, 3801, 3832}
    | {5817, 7777, 7779, 7782, 9821, 9825, 9888, 11810, 11814, 11815, 11817, 11838, 13791, 13793, 13796}
    | {13797, 13799, 15742, 18150}
)
N_RECORDS_1_0_3 = 21_799
PTBXL_OUTCOMES = ("stemi", "mi_any")
N_FOLDS = 10
_PREVALENCE_1_0_3 = 0.0555  # of the definition paper_prevalence on all of 1.0.3
_WAVEFORM_COLUMN = {100: "filename_lr", 500: "filename_hr"}
_COLUMNS = (
    "patient_id", "age", "sex", "site", "device", "report", "scp_codes",
    "infarction_stadium1", "infarction_stadium2", "strat_fold", "filename_lr", "filename_hr",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Which ECGs the study is made on."""

    source: str = "embedded"  # embedded (made by a generator) or ptbxl (a PTB-XL folder)
    n_patients: int = 2400  # patients of the embedded cohort, who have about 1.4 ECGs each
    seed: int = 0  # of the embedded cohort
    stemi_definition: str = "paper_prevalence"  # which rule labels PTB-XL's STEMI, by name
    sampling_rate: int = 100  # which of PTB-XL's two copies is read, in Hz: 100 or 500

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _one_of("source", self.source, ("embedded", "ptbxl"))
        _one_of("stemi_definition", self.stemi_definition, tuple(labels.STEMI_DEFINITIONS))
        _one_of("sampling_rate", self.sampling_rate, tuple(_WAVEFORM_COLUMN))


def _one_of(field: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise EcglibError(f"{field} must be one of {', '.join(map(str, allowed))}, not {value!r}")


class Waveforms(Protocol):
    """Where a cohort's waveforms come from; rows are positions in its manifest."""

    def read_many(self, rows: Rows) -> list[Record]:
        """Waveforms in the order of `rows`."""
        ...

    def evidence(self, rows: Rows) -> np.ndarray | None:
        """Where the outcomes' signs are: uint8 (n, 8, samples), bit k = outcome k; None where not known."""
        ...


@dataclass(frozen=True)
class Cohort:
    """A source of ECGs with one row per record.

    manifest: record_id, patient_id, site (str), external (bool), strat_fold (1..10, 0 where external), age
    (years, float, may be missing), sex ("male", "female"), device (str) and one int8 column per outcome.
    comparable: False for made or partial data, whose scores must not be set beside the paper's.
    fingerprint: changes when the data change.
    drawn: the embedded cohort's table from `synthetic.draw_cohort`, row for row: who is truly ill, and how
    strongly each condition shows; None for recordings.
    """

    name: str
    manifest: pd.DataFrame
    outcomes: tuple[str, ...]
    synthetic: bool
    comparable: bool
    fingerprint: str
    waveforms: Waveforms
    drawn: pd.DataFrame | None = None

    def __len__(self) -> int:
        """Count the records."""
        return len(self.manifest)

    def read(self, row: int) -> Record:
        """Read the record at this position of the manifest."""
        return self.waveforms.read_many([row])[0]

    def read_many(self, rows: Rows) -> list[Record]:
        """Read the records at these positions, in this order; faster than one by one where they are made."""
        return self.waveforms.read_many(rows)

    def evidence(self, rows: Rows) -> np.ndarray | None:
        """Where the outcomes' signs were put: uint8 (n, 8, samples), bit k = outcome k.

        At the record's own sampling rate; None where nobody knows (real recordings). It follows the truth: an
        ECG labelled by mistake has none.
        """
        return self.waveforms.evidence(rows)


def open_cohort(settings: CohortSettings, data_dir: Path | None = None) -> Cohort:
    """Open the embedded cohort, or the PTB-XL folder `data_dir`.

    Raises EcglibError where the folder, its tables, a column or a record's file is missing.
    """
    if settings.source == "embedded":
        return _open_embedded(settings)
    if data_dir is None:
        raise EcglibError("source ptbxl needs the folder of PTB-XL: name it with --data DIR")
    return _open_ptbxl(settings, Path(data_dir))


@dataclass(frozen=True)
class _Generated:
    """Waveforms made on demand by ecglib.synthetic."""

    cohort: pd.DataFrame
    seed: int

    def read_many(self, rows: Rows) -> list[Record]:
        waveforms, _ = synthetic.waveforms(self.cohort, rows, self.seed)
        chosen = self.cohort.iloc[list(rows)]
        ids = zip(chosen.record_id, chosen.patient_id, strict=True)
        return [
            Record(waveform, LEADS_8, synthetic.SAMPLING_RATE, record_id, patient_id)
            for waveform, (record_id, patient_id) in zip(waveforms, ids, strict=True)
        ]

    def evidence(self, rows: Rows) -> np.ndarray:
        return synthetic.waveforms(self.cohort, rows, self.seed)[1]


def _open_embedded(settings: CohortSettings) -> Cohort:
    drawn = synthetic.draw_cohort(settings.n_patients, settings.seed)
    columns = ["record_id", "patient_id", "site", "age", "sex", *OUTCOMES]
    manifest = drawn[columns].assign(
        external=drawn.site == synthetic.EXTERNAL_SITE,
        device="generator, site " + drawn.site,
    )
    manifest["strat_fold"] = _folds(manifest, settings.seed)
    code = code_hash("ecglib.synthetic")
    recipe = {"patients": settings.n_patients, "seed": settings.seed, "code": code}
    return Cohort(
        name="Embedded synthetic cohort",
        manifest=_ordered(manifest, OUTCOMES),
        outcomes=OUTCOMES,
        synthetic=True,
        comparable=False,
        fingerprint=digest(recipe | {"generator": version("deepfake-ecg")}),
        waveforms=_Generated(drawn, settings.seed),
        drawn=drawn,
    )


def _folds(manifest: pd.DataFrame, seed: int) -> np.ndarray:
    """Ten folds of internal patients, alike in every combination of outcomes; external rows 0."""
    internal = np.flatnonzero(~manifest.external)
    rows = manifest.iloc[internal]
    combined = rows[list(OUTCOMES)].to_numpy() @ (1, 2, 4)
    folds = np.zeros(len(manifest), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a rare pair of outcomes
        for fold, (_, held) in enumerate(splitter.split(internal, combined, rows.patient_id), start=1):
            folds[internal[held]] = fold
    return folds


@dataclass(frozen=True)
class _Folder:
    """Waveforms of a PTB-XL folder; `paths` has one entry per row of the manifest."""

    folder: Path
    paths: tuple[str, ...]
    record_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]

    def read_many(self, rows: Rows) -> list[Record]:
        return [
            read_wfdb(
                self.folder / self.paths[row],
                record_id=self.record_ids[row],
                patient_id=self.patient_ids[row],
            )
            for row in rows
        ]

    def evidence(self, rows: Rows) -> None:
        return None


def _open_ptbxl(settings: CohortSettings, data_dir: Path) -> Cohort:
    whole = read_ptbxl_table(data_dir)
    table = whole.loc[~whole.index.isin(REMOVED_IN_1_0_3)]
    if table.empty:
        raise EcglibError(
            f"{data_dir / 'ptbxl_database.csv'}: no record of PTB-XL 1.0.3 in it; check the table"
        )
    statements = read_scp_statements(data_dir)
    paths = tuple(table[_WAVEFORM_COLUMN[settings.sampling_rate]])
    manifest = _ptbxl_manifest(table, statements, settings.stemi_definition)
    usual = labels.stemi_label(table, statements, "paper_prevalence").mean()
    return Cohort(
        name=_ptbxl_name(len(table), len(whole) > len(table), float(usual)),
        manifest=manifest,
        outcomes=PTBXL_OUTCOMES,
        synthetic=False,
        comparable=len(table) == N_RECORDS_1_0_3,
        fingerprint=_folder_fingerprint(data_dir, paths),
        waveforms=_Folder(data_dir, paths, tuple(manifest.record_id), tuple(manifest.patient_id)),
    )


def _ptbxl_name(n_records: int, has_removed: bool, prevalence: float) -> str:
    """Say which version it is, as far as the table shows it, and whether it is all of it."""
    complete = n_records == N_RECORDS_1_0_3
    release = "PTB-XL 1.0.1" if has_removed else "PTB-XL 1.0.3" if complete else "PTB-XL"
    if complete:
        return f"{release} ({n_records:,} records{' of 1.0.3' if has_removed else ''})"
    enriched = ", enriched" if abs(prevalence - _PREVALENCE_1_0_3) > 0.01 else ""
    return f"{release} subset{enriched} ({n_records:,} records)"


def _ptbxl_manifest(table: pd.DataFrame, statements: pd.DataFrame, definition: str) -> pd.DataFrame:
    manifest = pd.DataFrame(
        {
            "record_id": table.index.astype(str),
            "patient_id": table.patient_id.to_numpy(),
            "site": [f"{site:.0f}" if np.isfinite(site) else "unknown" for site in table.site],
            "external": False,
            "strat_fold": table.strat_fold.to_numpy(),
            "age": table.age.to_numpy(),
            "sex": np.where(table.sex == 0, "male", "female"),
            "device": [re.sub(r"\s+", " ", device).strip() for device in table.device.fillna("unknown")],
            "stemi": labels.stemi_label(table, statements, definition).to_numpy(),
            "mi_any": labels.mi_any(table, statements).to_numpy(),
        }
    )
    return _ordered(manifest, PTBXL_OUTCOMES)


def _ordered(manifest: pd.DataFrame, outcomes: tuple[str, ...]) -> pd.DataFrame:
    """Bring every source's manifest into the same columns and types."""
    types: dict[str, type] = {"external": bool, "strat_fold": np.int64, "age": np.float64}
    columns = ["record_id", "patient_id", "site", *types, "sex", "device", *outcomes]
    types |= dict.fromkeys(outcomes, np.int8)
    return manifest.loc[:, columns].astype(types).reset_index(drop=True)


def read_ptbxl_table(data_dir: Path, table: Path | None = None) -> pd.DataFrame:
    """Read PTB-XL's table of records, checked: one row per record, all that the folder lists.

    `table` names another file than `data_dir`/ptbxl_database.csv (may be compressed). Index ecg_id (int);
    patient_id as text ("15709"); age in years (90 where later versions hide an age above 89 as 300);
    scp_codes still text. Raises EcglibError where the file, a column or a patient_id is missing.
    """
    if not Path(data_dir).is_dir():
        raise EcglibError(f"{data_dir}: no such folder; give the folder that holds ptbxl_database.csv")
    path = table or Path(data_dir) / "ptbxl_database.csv"
    rows = _read_csv(path)
    missing = [column for column in ("ecg_id", *_COLUMNS) if column not in rows]
    if missing:
        raise EcglibError(f"{path}: column {missing[0]} is missing; get the table from PhysioNet again")
    for column, rule, is_bad in _RULES:
        bad = np.flatnonzero(is_bad(rows.loc[:, column]))
        if len(bad):
            line = rows.iloc[bad[0]]
            shown = f"ecg_id {line.ecg_id} has {column} {line[column]!s}"
            raise EcglibError(f"{path}: {shown}; it must be {rule}; mend or drop the row")
    rows["patient_id"] = rows.patient_id.astype(float).astype(int).astype(str)
    rows["age"] = rows.age.where(rows.age <= 120, 90.0).where(rows.age.notna())
    return rows.astype({"ecg_id": int, "strat_fold": int, "sex": int}).set_index("ecg_id")


def _not_in(low: int, high: float) -> Callable[[pd.Series], np.ndarray]:
    """Mark values that are no whole number from `low` to `high`."""

    def is_bad(column: pd.Series) -> np.ndarray:
        numbers = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
        return ~((numbers >= low) & (numbers <= high) & (numbers % 1 == 0))

    return is_bad


def _no_text(column: pd.Series) -> pd.Series:
    return column.isna() | (column.astype(str).str.strip() == "")


_RULES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("ecg_id", "a whole number", _not_in(0, np.inf)),
    ("ecg_id", "unique", pd.Series.duplicated),
    ("patient_id", "a whole number", _not_in(0, np.inf)),
    ("sex", "0 (male) or 1 (female)", _not_in(0, 1)),
    ("strat_fold", "a whole number from 1 to 10", _not_in(1, N_FOLDS)),
    ("scp_codes", "the text of a dictionary", _no_text),
    ("filename_lr", "a path", _no_text),
    ("filename_hr", "a path", _no_text),
)


def read_scp_statements(data_dir: Path) -> pd.DataFrame:
    """Read PTB-XL's table of SCP codes: index the code, column diagnostic_class and others."""
    path = Path(data_dir) / "scp_statements.csv"
    statements = _read_csv(path)
    if "diagnostic_class" not in statements:
        raise EcglibError(f"{path}: column diagnostic_class is missing; get the table from PhysioNet again")
    return statements.set_index(statements.columns[0])


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise EcglibError(f"{path}: no such table; give a folder laid out as PhysioNet's PTB-XL")
    try:
        return pd.read_csv(path, low_memory=False)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise EcglibError(f"{path}: not a table that can be read ({reason}); get it again") from error


def _folder_fingerprint(data_dir: Path, paths: Sequence[str]) -> str:
    """Hash the tables and the names, sizes and times of all record files; raise where a file is missing."""
    found: dict[str, tuple[int, int]] = {}
    for folder in sorted({os.path.dirname(path) for path in paths}):
        found |= _listing(data_dir, folder)
    files = []
    for path in paths:
        for name in (f"{path}.hea", f"{path}.dat"):
            if name not in found:
                raise EcglibError(
                    f"{data_dir / name}: no such file, but the table lists it; complete the folder"
                )
            files.append((name, *found[name]))
    tables = [file_sha256(data_dir / name) for name in ("ptbxl_database.csv", "scp_statements.csv")]
    return digest([tables, files])


def _listing(data_dir: Path, folder: str) -> dict[str, tuple[int, int]]:
    """Size in bytes and time of change in ns of every file in a folder, by path; one system call a file."""
    try:
        with os.scandir(data_dir / folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return {}
    return {f"{folder}/{name}": (stat.st_size, stat.st_mtime_ns) for name, stat in found}
