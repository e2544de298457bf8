"""Sources of ECGs, each read into the same manifest: the embedded cohort, PTB-XL or a hospital's own.

PTB-XL: Wagner et al., doi 10.13026/x4td-x982 (version 1.0.1) and later. The paper used 1.0.3, so records that
1.0.3 withdrew are left out whatever version the folder holds.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib import labels, synthetic
from ecglib.cohort import N_FOLDS, Cohort, make_folds, ordered
from ecglib.errors import EcglibError
from ecglib.hospital import open_hospital
from ecglib.provenance import code_hash, digest, file_sha256
from ecglib.records import LEADS_8, Record, read_wfdb
from ecglib.reports import HCM_RULES
from ecglib.signs import OUTCOMES
from ecglib.synthetic import Rows

# The records of 1.0.1 that 1.0.3 withdrew.
REMOVED_IN_1_0_3 = frozenset(
    {137, 139, 140, 141, 142, 143, 145, 456, 458, 459, 461, 462, 2506, 2511, 3795, 3798, 3800, 3801, 3832}
    | {5817, 7777, 7779, 7782, 9821, 9825, 9888, 11810, 11814, 11815, 11817, 11838, 13791, 13793, 13796}
    | {13797, 13799, 15742, 18150}
)
N_RECORDS_1_0_3 = 21_799
_PREVALENCE_1_0_3 = 0.0555  # of the definition paper_prevalence on all of 1.0.3
_WAVEFORM_COLUMN = {100: "filename_lr", 500: "filename_hr"}
_COLUMNS = (
    "patient_id", "age", "sex", "site", "device", "report", "scp_codes",
    "infarction_stadium1", "infarction_stadium2", "strat_fold", "filename_lr", "filename_hr",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Which ECGs the study is made on."""

    source: str = "embedded"  # embedded (made by a generator), ptbxl (its folder) or muse (your own exports)
    n_patients: int = 2400  # patients of the embedded cohort, who have about 1.4 ECGs each
    seed: int = 0  # of the embedded cohort, and of folds that are made
    stemi_definition: str = "paper_prevalence"  # which rule labels PTB-XL's STEMI, by name
    sampling_rate: int = 100  # which of PTB-XL's two copies is read, in Hz: 100 or 500
    external_site: str = ""  # site of your own ECGs that is held out, if the table has no column external
    hcm_rule: str = "any_mention"  # how HCM is read from your echo reports: any_mention or negation_aware

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        _one_of("source", self.source, ("embedded", "ptbxl", "muse"))
        _one_of("stemi_definition", self.stemi_definition, tuple(labels.STEMI_DEFINITIONS))
        _one_of("sampling_rate", self.sampling_rate, tuple(_WAVEFORM_COLUMN))
        _one_of("hcm_rule", self.hcm_rule, tuple(HCM_RULES))


def _one_of(field: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise EcglibError(f"{field} must be one of {', '.join(map(str, allowed))}, not {value!r}")


@dataclass(frozen=True)
class DataPaths:
    """Where real ECGs lie; environment variables carry it from a command to its notebooks."""

    folder: Path | None = None  # of PTB-XL, or of MUSE exports
    table: Path | None = None  # labels of the MUSE exports, CSV
    key: Path | None = None  # of the pseudonyms; None: the user's own
    results: Path | None = None  # kept predictions, in the place of ECGs (ecglib.results)

    @classmethod
    def from_environment(cls) -> "DataPaths":
        """What the variables say."""
        return cls(
            **{name: Path(os.environ[word]) for name, word in _VARIABLES.items() if os.environ.get(word)}
        )

    def environment(self) -> dict[str, str]:
        """The variables that say it, with absolute paths."""
        found = {word: getattr(self, name) for name, word in _VARIABLES.items()}
        return {word: str(path.resolve()) for word, path in found.items() if path}


_VARIABLES = {
    "folder": "ECGLIB_DATA",
    "table": "ECGLIB_TABLE",
    "key": "ECGLIB_KEY",
    "results": "ECGLIB_RESULTS",
}


def open_cohort(
    settings: CohortSettings,
    data_dir: Path | None = None,
    *,
    table: Path | None = None,
    key: Path | None = None,
    cache: Path | None = None,
) -> Cohort:
    """Open the embedded cohort, the PTB-XL folder `data_dir`, or MUSE exports in it with a table of labels.

    `table`, `key` and `cache` are of MUSE exports, see `hospital.open_hospital`. Raises EcglibError where the
    folder, its tables, a column or a record's file is missing.
    """
    if settings.source == "embedded":
        return _open_embedded(settings)
    if data_dir is None:
        what = {"ptbxl": "of PTB-XL", "muse": "of the MUSE exports"}[settings.source]
        raise EcglibError(f"source {settings.source} needs the folder {what}: name it with --data DIR")
    if settings.source == "ptbxl":
        return _open_ptbxl(settings, Path(data_dir))
    if table is None:
        raise EcglibError("source muse needs a table of labels: name it with --table CSV")
    return open_hospital(
        Path(data_dir),
        Path(table),
        key,
        cache,
        external_site=settings.external_site,
        hcm_rule=settings.hcm_rule,
        seed=settings.seed,
    )


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
    manifest["strat_fold"] = make_folds(manifest, OUTCOMES, settings.seed)
    code = code_hash("ecglib.synthetic")
    recipe = {"patients": settings.n_patients, "seed": settings.seed, "code": code}
    return Cohort(
        name="Embedded synthetic cohort",
        manifest=ordered(manifest, OUTCOMES),
        outcomes=OUTCOMES,
        synthetic=True,
        comparable=False,
        fingerprint=digest(recipe | {"generator": version("deepfake-ecg")}),
        waveforms=_Generated(drawn, settings.seed),
        origins=dict.fromkeys(OUTCOMES, "put into the beats by code"),
        drawn=drawn,
    )


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
        outcomes=tuple(_ptbxl_rules(settings.stemi_definition)),
        synthetic=False,
        comparable=len(table) == N_RECORDS_1_0_3,
        fingerprint=_folder_fingerprint(data_dir, paths),
        waveforms=_Folder(data_dir, paths, tuple(manifest.record_id), tuple(manifest.patient_id)),
        origins={
            outcome: f"from PTB-XL's own table, rule {rule} ({labels.rule_words(rule)})"
            for outcome, rule in _ptbxl_rules(settings.stemi_definition).items()
        },
    )


def _ptbxl_rules(definition: str) -> dict[str, str]:
    """The outcomes of PTB-XL, each with its rule of `labels`; `definition` is that of stemi."""
    return {"stemi": definition, "mi_any": "mi_any", "acute_stemi": "acute_clinical"}


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
        }
    )
    rules = _ptbxl_rules(definition)
    for outcome, rule in rules.items():
        manifest[outcome] = labels.stemi_label(table, statements, rule).to_numpy()
    return ordered(manifest, tuple(rules))


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


def read_ptbxl_rows(data_dir: Path, manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows of PTB-XL's table that a manifest has, in its order."""
    return read_ptbxl_table(data_dir).loc[manifest["record_id"].astype(int)]


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
