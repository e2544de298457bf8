"""A hospital's own ECGs: a folder of MUSE exports and a table of labels, as a cohort.

The folder is read twice: once for what the manifest needs, kept in an index, and once more when the images
are drawn, for the manifest decides which. Several processes read. Ids of patients and names of files become
pseudonyms where they are read; the index holds nothing else of a person than age and sex, and a file is found
again by the pseudonym of its path. Messages of this module name no file, for they may end in a notebook;
`MuseFolder.complaints` does, for the terminal.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from ecglib.cohort import Cohort, make_folds, ordered
from ecglib.errors import EcglibError
from ecglib.label_table import LabelTable, read_label_table
from ecglib.muse import read_muse
from ecglib.pool import in_order
from ecglib.progress import track
from ecglib.provenance import atomic_path, code_hash, digest
from ecglib.pseudonyms import Pseudonyms, open_pseudonyms
from ecglib.records import Record
from ecglib.synthetic import Rows

CHUNK_SIZE = 32  # files that one process reads at a time
PART_SIZE = 1024  # files after which the index is saved
OLDEST = 90.0  # years; ages above 89 tell who somebody is, as PTB-XL and HIPAA have it
NOT_KNOWN = -1  # a label that nobody gave
N_NAMED = 5  # files or rows that a complaint names
UNREADABLE, NO_ROW = "files that cannot be read", "files without a row in the table"
NO_FILE, TWO_SIDES = "rows of the table without a file", "internal files of patients with external ones"


def open_hospital(
    folder: Path,
    table: Path,
    key: Path | None,
    cache: Path | None,
    *,
    external_site: str = "",
    hcm_rule: str = "any_mention",
    seed: int = 0,
) -> Cohort:
    """Open a folder of MUSE exports with the table of their labels.

    `cache`: folder of the index, so that each file is read for it once. `external_site` is held out where
    the table does not say what is external; `seed` is of the folds that it does not give. A label that nobody
    gave is -1. Raises EcglibError where the folder, the table or the key is of no use.
    """
    pseudonyms = open_pseudonyms(key, shared=cache)
    exports = list_exports(folder, pseudonyms)
    labels = read_label_table(table, hcm_rule, pseudonyms)
    index = _read_index(folder, exports, pseudonyms, cache)
    readable = index.loc[index.readable]
    matched = _match(readable, labels, table)
    manifest, left_out = _one_side(_manifest(matched, list(labels.origins), external_site, table))
    outcomes = _outcomes(manifest, labels, table)
    manifest["strat_fold"] = _folds(manifest, outcomes, seed, table)
    by_record = dict(zip(index.record_id, index.path, strict=True))
    reasons = {
        UNREADABLE: tuple(index.path[~index.readable]),
        NO_ROW: tuple(readable.path[~readable.record_id.isin(matched.record_id)]),
        NO_FILE: _rows_without_file(readable, labels),
        TWO_SIDES: tuple(by_record[record_id] for record_id in left_out),
    }
    final = ordered(manifest, outcomes)
    return Cohort(
        name="MUSE exports",
        manifest=final,
        outcomes=outcomes,
        synthetic=False,
        comparable=True,
        fingerprint=digest([manifest.state.tolist(), final.to_csv(index=False)]),
        waveforms=MuseFolder(
            folder, tuple(by_record[i] for i in final.record_id), tuple(final.record_id),
            tuple(final.patient_id), reasons,
        ),
        other_patients=True,
        origins={outcome: labels.origins[outcome] for outcome in outcomes},
        notes=tuple(_notes(final, outcomes, labels, len(exports), reasons)),
    )  # fmt: skip


@dataclass(frozen=True)
class MuseFolder:
    """Waveforms of MUSE exports; `paths` has one entry per row of the manifest, relative to `folder`.

    left_out: what is not in the cohort, by reason: paths, or rows of the table.
    """

    folder: Path
    paths: tuple[str, ...]
    record_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]

    def read_many(self, rows: Rows) -> list[Record]:
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> Record:
        try:
            record = read_muse(self.folder / self.paths[row]).record
        except Exception:  # whatever it says may name the file
            raise EcglibError(
                f"record {self.record_ids[row]}: its export was changed or damaged since it was first read; "
                "`ecglib prepare` names the file"
            ) from None
        return replace(record, record_id=self.record_ids[row], patient_id=self.patient_ids[row])

    def evidence(self, rows: Rows) -> None:
        return None

    def complaints(self) -> Iterator[str]:
        """One line for each reason why something is left out, naming some files: for the terminal alone."""
        for reason, names in self.left_out.items():
            if not names:
                continue
            if reason == UNREADABLE:
                yield f"{reason}: {len(names):,}"
                yield from (f"    {_why_unreadable(self.folder / name)}" for name in names[:N_NAMED])
                continue
            more = ", ..." if len(names) > N_NAMED else ""
            yield f"{reason}: {len(names):,} ({', '.join(names[:N_NAMED])}{more})"


def _why_unreadable(path: Path) -> str:
    try:
        read_muse(path)
    except EcglibError as error:
        return str(error)
    return f"{path}: can be read now; run it again"


# --- the files ---


@dataclass(frozen=True)
class Export:
    """A file of the folder: its path within it, its pseudonym, and one that changes when the file does."""

    path: str
    record_id: str
    state: str


def list_exports(folder: Path, pseudonyms: Pseudonyms) -> list[Export]:
    """All XML files below a folder, by path. Raises EcglibError where there is none."""
    if not folder.is_dir():
        raise EcglibError(f"{folder}: no such folder; give the folder of the MUSE exports")
    found = []
    for path, status in sorted(_xml_files(folder, "")):
        state = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
        found.append(Export(path, pseudonyms.of("file", path), pseudonyms.of("state", state)))
    if not found:
        raise EcglibError(f"{folder}: no .xml file in it; give the folder of the MUSE exports")
    return found


def _xml_files(folder: Path, within: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder / within) as entries:
        for entry in entries:
            path = f"{within}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _xml_files(folder, f"{path}/")
            elif entry.name.lower().endswith(".xml") and entry.is_file():
                yield path, entry.stat()


@dataclass(frozen=True)
class _Reader:
    """Reads what the manifest needs from each export."""

    folder: Path
    pseudonyms: Pseudonyms

    def read(self, exports: Sequence[Export]) -> list[dict[str, object]]:
        return [{"state": export.state, **self._facts(export)} for export in exports]

    def _facts(self, export: Export) -> dict[str, object]:
        unknown: dict[str, object] = {
            "patient_id": "",
            "age": np.nan,
            "sex": "unknown",
            "site": "",
            "device": "",
        }
        try:
            found = read_muse(self.folder / export.path)
        except EcglibError:
            return unknown | {"readable": False}
        return {
            "patient_id": self.pseudonyms.of("patient", found.patient_id) if found.patient_id else "",
            "age": found.age,
            "sex": found.sex,
            "site": found.site,
            "device": found.device,
            "readable": True,
        }


def _read_index(
    folder: Path, exports: Sequence[Export], pseudonyms: Pseudonyms, cache: Path | None
) -> pd.DataFrame:
    """The facts of each export, in order; files that no saved part of the index knows are read."""
    parts = cache / "index" / code_hash("ecglib.hospital") if cache else None
    saved = [pd.read_parquet(path) for path in sorted(parts.glob("*.parquet"))] if parts else []
    known = {state for part in saved for state in part.state}
    unread = [export for export in exports if export.state not in known]
    chunks = [unread[start : start + CHUNK_SIZE] for start in range(0, len(unread), CHUNK_SIZE)]
    with in_order(_Reader(folder, pseudonyms).read, chunks) as read:
        tracked = iter(track(read, "reading exports", len(chunks), "chunk"))
        while facts := [fact for chunk in islice(tracked, PART_SIZE // CHUNK_SIZE) for fact in chunk]:
            saved.append(pd.DataFrame(facts))
            if parts:
                with atomic_path(parts / f"{digest(list(saved[-1].state))}.parquet") as path:
                    saved[-1].to_parquet(path, index=False)
    facts = pd.concat(saved).drop_duplicates("state")
    return pd.DataFrame(exports).merge(facts, on="state", validate="one_to_one")


# --- files and rows ---


def _match(index: pd.DataFrame, labels: LabelTable, table: Path) -> pd.DataFrame:
    """Exports with a row: the ECG's own, else its patient's. What the table says goes before the file."""
    is_own = index.record_id.isin(labels.by_record.index)
    own, rest = index.loc[is_own], index.loc[~is_own]
    said = labels.by_record.loc[own.record_id]
    wrong = (own.patient_id.to_numpy() != said.patient_id.to_numpy()) & (own.patient_id != "").to_numpy()
    if wrong.any():
        raise EcglibError(
            f"{table}: row {said.row.to_numpy()[wrong][0]} has another patient_id than its file; mend it"
        )
    rest = rest.loc[rest.patient_id.isin(labels.by_patient.index)]
    matched = [
        chosen.drop(columns="patient_id").reset_index(drop=True).join(
            rows.reset_index(drop=True).drop(columns="record_id"), lsuffix="_file"
        )
        for chosen, rows in ((own, said), (rest, labels.by_patient.loc[rest.patient_id]))
    ]  # fmt: skip
    both = pd.concat([part for part in matched if len(part)] or matched).sort_values("path")
    if both.empty:
        raise EcglibError(
            f"{table}: none of its rows fits one of {len(index):,} readable exports; compare patient_id with "
            "PatientID in the files (spreadsheets take zeros from the front), file with their paths"
        )
    return both.reset_index(drop=True)


def _rows_without_file(index: pd.DataFrame, labels: LabelTable) -> tuple[str, ...]:
    lost = [
        *labels.by_record.row[~labels.by_record.index.isin(index.record_id)],
        *labels.by_patient.row[~labels.by_patient.index.isin(index.patient_id)],
    ]
    return tuple(f"row {row}" for row in sorted(lost))


def _manifest(
    matched: pd.DataFrame, outcomes: Sequence[str], external_site: str, table: Path
) -> pd.DataFrame:
    manifest = matched.assign(
        site=matched.site.where(matched.site.notna(), matched.site_file).replace("", "unknown"),
        sex=matched.sex.where(matched.sex.notna(), matched.sex_file),
        age=np.floor(matched.age.fillna(matched.age_file)).clip(upper=OLDEST),
        device=matched.device.replace("", "unknown"),
    )
    if external_site and external_site not in set(manifest.site):
        raise EcglibError(
            f"external_site={external_site!r}: no ECG is of this site; take one of {_some(manifest.site)}"
        )
    held_out = (manifest.site == external_site) if external_site else pd.Series(False, manifest.index)
    manifest["external"] = manifest.external.fillna(held_out.astype(float)).astype(bool)
    if manifest.external.all():
        raise EcglibError(f"{table}: every ECG is external, so none is left to learn from; hold out less")
    return manifest.assign(**{name: manifest[name].fillna(NOT_KNOWN) for name in outcomes})


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))[:10])


def _one_side(manifest: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out internal ECGs of patients who have external ones, so that none is on both sides."""
    outside = set(manifest.patient_id[manifest.external])
    twice = ~manifest.external & manifest.patient_id.isin(outside)
    return manifest.loc[~twice].reset_index(drop=True), list(manifest.record_id[twice])


def _outcomes(manifest: pd.DataFrame, labels: LabelTable, table: Path) -> tuple[str, ...]:
    """The outcomes that can be learnt: some ECGs have them and some have not."""
    found = tuple(name for name in labels.origins if {0, 1} <= set(manifest[name]))
    if not found:
        raise EcglibError(
            f"{table}: no outcome is 1 for some ECGs and 0 for others, so nothing can be learnt; add labels"
        )
    return found


def _folds(manifest: pd.DataFrame, outcomes: Sequence[str], seed: int, table: Path) -> np.ndarray:
    """The table's folds, or new ones; 0 for external ECGs."""
    internal = manifest[~manifest.external]
    given = internal.strat_fold.notna()
    if not given.any():
        return make_folds(manifest, outcomes, seed)
    if not given.all():
        raise EcglibError(
            f"{table}: strat_fold is given for {given.sum():,} of {len(given):,} ECGs; give all or none"
        )
    if (internal.groupby("patient_id").strat_fold.nunique() > 1).any():
        raise EcglibError(f"{table}: a patient is in two strat_folds; give each patient one")
    return manifest.strat_fold.where(~manifest.external, 0).astype(int).to_numpy()


def _notes(
    manifest: pd.DataFrame,
    outcomes: Sequence[str],
    labels: LabelTable,
    n_files: int,
    reasons: dict[str, tuple[str, ...]],
) -> Iterator[str]:
    """How the cohort came about, in numbers."""
    n_rows = len(labels.by_record) + len(labels.by_patient)
    yield f"{n_files:,} files and {n_rows:,} patients or ECGs in the table gave {len(manifest):,} ECGs."
    left_out = [f"{reason}: {len(names):,}" for reason, names in reasons.items() if names]
    yield f"Left out: {'; '.join(left_out) or 'nothing'}."
    for outcome in [name for name in labels.origins if name not in outcomes]:
        yield f"{outcome} is left out: all its labels are the same."
    for outcome in outcomes:
        unknown = int((manifest[outcome] == NOT_KNOWN).sum())
        if unknown:
            yield f"{outcome} is not known for {unknown:,} of {len(manifest):,} ECGs."
