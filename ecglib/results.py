"""Results that are kept with the book: every cell's predictions, small enough for git, and what made them.

A folder holds `cells.json`, `manifest.parquet` (who was scored), `distances.parquet` (of the domain shift)
and one Parquet file for each outcome, split, kind and model: a row for each scored record, a column for each
cell and step. Pages that need only predictions are made from it, without ECGs and without training.

Fine-tuned cells are kept whole. Of heads on frozen features, which are many, the rows are kept that a
protocol reads (validation and its best step, and each part's own best step), rounded: no score moves by more
than 1/2048 of itself, as in float16, nor than 1/8192 of the range of its step's scores. An AUROC of PTB-XL's
2,198 test ECGs moves by less than 0.0001 (measured on made-up scores, wide and narrow).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ecglib.cohort import Cohort
from ecglib.errors import EcglibError
from ecglib.grid import Cell
from ecglib.protocols import CELL_COLUMNS, SCORED_PARTS, choose_step
from ecglib.provenance import atomic_path, digest, file_sha256
from ecglib.records import Record
from ecglib.synthetic import Rows

CELLS, MANIFEST, DISTANCES, README = "cells.json", "manifest.parquet", "distances.parquet", "README.md"
WHO = ("record_id", "patient_id", "part", "y_true")
# The most that a head's score moves: a share of itself, and of the range of its step's scores.
ROUNDED_TO, ROUNDED_TO_RANGE = 2**-11, 2**-13
# What made each cell, and its predictions; None where it was unstable.
MadeCells = Mapping[Cell, tuple[Mapping[str, Any], pd.DataFrame | None]]
RESTORE = "restore the folder from git, or move it away and make it anew with `ecglib grid --export`"
_PTBXL = """\
The ids, labels, ages, sexes, sites and devices in `manifest.parquet` and the labels beside the predictions
are from PTB-XL (Wagner, P., Strodthoff, N., Bousseljot, R., Samek, W. and Schaeffter, T., PTB-XL, a large
publicly available electrocardiography dataset, PhysioNet, doi 10.13026/x4td-x982), licensed CC BY 4.0
(creativecommons.org/licenses/by/4.0). Changes: columns were chosen and renamed, and the labels were made
from PTB-XL's statements by the rules of `ecglib/labels.py`. No waveform is in this folder.
"""
_EMBEDDED = "The ECGs are synthetic: no patient stands behind an id. No waveform is in this folder.\n"


@dataclass(frozen=True)
class _NoWaveforms:
    """What stands in for ECGs where only predictions are kept."""

    folder: Path

    def read_many(self, rows: Rows) -> list[Record]:
        raise EcglibError(f"{self.folder} keeps predictions, no ECGs: name their folder with --data DIR")

    def evidence(self, rows: Rows) -> np.ndarray | None:
        raise EcglibError(f"{self.folder} keeps predictions, no ECGs: name their folder with --data DIR")


@dataclass(frozen=True)
class KeptResults:
    """A folder of kept results, every file of which has the hash that `cells.json` gives."""

    folder: Path
    head: Mapping[str, Any]  # cohort, settings, data_hash, files
    cells: Mapping[Cell, Mapping[str, Any]]  # what made each: settings, model, commit, machine, seconds ...

    @classmethod
    def open(cls, folder: Path) -> "KeptResults":
        """Read what made the cells. EcglibError for a file that is missing, unreadable or changed."""
        path = folder / CELLS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            makers, entries = content["makers"], content.pop("cells")
            cells = {Cell(**entry.pop("cell")): makers[entry.pop("maker")] | entry for entry in entries}
            files = dict(content["files"])
        except FileNotFoundError:
            raise EcglibError(f"{path}: no such file, so no results are kept there; {RESTORE}") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EcglibError(f"{path}: cannot be read ({error}); {RESTORE}") from None
        for name, expected in files.items():
            _find(folder, name, expected)
        return cls(folder, content, cells)

    @property
    def fingerprint(self) -> str:
        """Changes with any file."""
        return digest([self.head["files"], file_sha256(self.folder / CELLS)])

    @property
    def summary(self) -> str:
        """How many cells, and the commits, processors and hours that made them."""
        made = self.cells.values()
        commits = ", ".join(sorted({entry["commit"] for entry in made}))
        processors = ", ".join(sorted({entry["machine"]["processor"] for entry in made}))
        hours = sum(entry["seconds"] for entry in made) / 3600
        made_by = f"made in {hours:.1f} hours at commit {commits} on {processors}"
        return f"{len(made)} cells, kept with the book; {made_by}"

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row a record: the columns of the cohort's manifest, and `usable`."""
        return pd.read_parquet(self._path(MANIFEST))

    @cached_property
    def distances(self) -> pd.DataFrame:
        """The table of `domain_shift`, for which images are needed."""
        return pd.read_parquet(self._path(DISTANCES))

    def cohort(self) -> Cohort:
        """The cohort that was scored, without waveforms."""
        told: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.head["cohort"].items()
        }
        return Cohort(
            manifest=self.manifest.drop(columns="usable"),
            fingerprint=self.fingerprint,
            waveforms=_NoWaveforms(self.folder),
            **told,
        )

    def predictions(self, cell: Cell) -> pd.DataFrame | None:
        """The cell's predictions as `finetune` gives them; None where it was not kept or was unstable."""
        if self.lack(cell):
            return None
        table, run = self._table(_file_of(cell)), f"{_run(cell)} step="
        columns = [column for column in table if column.startswith(run)]
        own = table.loc[:, [*WHO, *columns]].rename(columns={c: int(c.removeprefix(run)) for c in columns})
        long = own.melt(WHO, var_name="step", value_name="y_score").dropna(subset="y_score")
        long["step"] = long["step"].astype(np.int64)
        return long.loc[:, list(CELL_COLUMNS)].reset_index(drop=True)

    def lack(self, cell: Cell) -> str:
        """Why there are no predictions of a cell; empty where there are."""
        return self.cells[cell].get("unstable", "") if cell in self.cells else "it is not kept"

    def _table(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.setdefault("tables", {})
        if name not in tables:
            table = pd.read_parquet(self._path(name))
            tables[name] = table.astype(dict.fromkeys(("record_id", "patient_id", "part"), object))
        return tables[name]

    def _path(self, name: str) -> Path:
        return _find(self.folder, name, self.head["files"][name])

    def require_settings(self, kind: str, settings: Any) -> None:
        """Raise EcglibError where cells of a kind were made with other settings than these."""
        for cell, made in self.cells.items():
            if cell.kind == kind:
                require_equal(self.folder, made["settings"], asdict(settings))


def require_equal(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise EcglibError naming the first setting in which kept results differ from those asked for."""
    for name in sorted(theirs.keys() | ours.keys()):
        if digest(theirs.get(name)) != digest(ours.get(name)):
            change = f"{name} {theirs.get(name)!r} there, {ours.get(name)!r} here"
            raise EcglibError(f"{folder} keeps results of other settings: {change}; set it back, or run anew")


def write_results(
    folder: Path,
    head: Mapping[str, Any],
    manifest: pd.DataFrame,
    distances: pd.DataFrame,
    cells: MadeCells,
    attribution: str,
) -> None:
    """Write a folder of results.

    The same results give the same bytes. A kill leaves the old results or the new: tables wait beside their
    places until `cells.json` is replaced, and are read from there until they are moved. Files that are not of
    kept results stay. EcglibError for a folder that `require_own` refuses, or whose results are damaged.
    """
    require_own(folder)
    before = KeptResults.open(folder).head["files"] if (folder / CELLS).exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder, before)  # what a killed export left
    files = _stage_tables(folder, manifest, distances, cells)
    for name in before.keys() - files.keys():
        os.replace(folder / name, _staged(folder / name))  # the old results find it there, too
    _write_cells(folder, head, files, cells)
    _settle(folder, files)
    with atomic_path(folder / README) as path:
        path.write_text(f"{_readme()}\n{attribution}", encoding="utf-8")


def require_own(folder: Path) -> None:
    """Raise EcglibError for a place that holds files but no kept results: an export might replace them."""
    if not folder.exists() or (folder / CELLS).exists():
        return
    others = [folder]
    if folder.is_dir():  # hidden files are a system's own, or what a killed first export left
        others = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if others:
        raise EcglibError(
            f"{others[0]}: it is not of kept results, and an export there might replace it; "
            "export to a new folder, or move it away"
        )


def attribution(source: str) -> str:
    """Whose the data in kept results are. EcglibError for a hospital's own, which stay there."""
    known = {"ptbxl": _PTBXL, "embedded": _EMBEDDED}
    if source not in known:
        raise EcglibError(f"source {source}: rows of a hospital's patients are not exported; keep them here")
    return known[source]


def as_kept(cell: Cell, predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions of a cell as they are kept."""
    if cell.kind == "finetuned":
        return predictions
    read = read_by_protocols(predictions)
    return read.assign(y_score=read.groupby("step")["y_score"].transform(lambda of: rounded(of.to_numpy())))


def rounding(cell: Cell, kept: pd.DataFrame) -> np.ndarray:
    """How far each score of a cell (n,), as kept, may lie from the predicted one; 0 for a fine-tuned cell."""
    if cell.kind == "finetuned":
        return np.zeros(len(kept))
    by_step = kept.groupby("step")["y_score"]
    ranges = by_step.transform("max").to_numpy(np.float64) - by_step.transform("min").to_numpy(np.float64)
    return np.minimum(ROUNDED_TO * kept["y_score"].abs().to_numpy(np.float64), ROUNDED_TO_RANGE * ranges)


def read_by_protocols(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows that scores are read from: validation at its best step, each part there and at its own best.

    Scores of both protocols, and all that is chosen on validation, are the same from these rows as from all.
    Where validation lacks a class all rows are kept.
    """
    part, step = predictions["part"], predictions["step"]
    try:
        honest = choose_step(predictions, "honest", SCORED_PARTS[0])
        own = {p: choose_step(predictions, "paper", p) for p in SCORED_PARTS if (part == p).any()}
    except EcglibError:  # a class is missing: the scores will say so
        return predictions
    read = step == honest
    for name, best in own.items():
        read |= (part == name) & (step == best)
    return predictions.loc[read]


def rounded(scores: np.ndarray) -> np.ndarray:
    """float32 scores in fewer bits: none moves past another, or farther than ROUNDED_TO and its range say."""
    exact = np.asarray(scores, np.float64)
    span = np.ptp(exact) or np.finfo(np.float32).smallest_subnormal
    own, whole = np.frexp(exact)[1], np.frexp(np.float64(span))[1]  # exponents: the powers of two above them
    quantum = np.ldexp(1.0, np.minimum(own - 11, whole - 13))
    return (np.round(exact / quantum) * quantum).astype(np.float32)


def _file_of(cell: Cell) -> str:
    return f"{cell.outcome}-{cell.split}-{cell.kind}-{cell.model}.parquet"


def _run(cell: Cell) -> str:
    return f"fraction={cell.fraction:g} draw={cell.draw} seed={cell.seed}"


def _wide(tables: Mapping[Cell, pd.DataFrame]) -> pd.DataFrame:
    """One row a scored record, one column a cell and step: ids would otherwise outweigh the scores."""
    columns = []
    for cell, table in sorted(tables.items()):
        scores = table.pivot(index=list(WHO), columns="step", values="y_score")
        columns.append(scores.rename(columns=lambda step, cell=cell: f"{_run(cell)} step={step}"))
    wide = pd.concat(columns, axis=1).astype(np.float32)
    return wide.sort_index(level=["part", "record_id"]).rename_axis(columns=None).reset_index()


def _stage_tables(
    folder: Path, manifest: pd.DataFrame, distances: pd.DataFrame, cells: MadeCells
) -> dict[str, str]:
    """Write all tables beside their places; returns the SHA-256 of each by its name."""
    of_file: dict[str, dict[Cell, pd.DataFrame]] = {}
    for cell, (_, predictions) in cells.items():
        if predictions is not None:
            of_file.setdefault(_file_of(cell), {})[cell] = predictions
    _write(manifest, _staged(folder / MANIFEST))
    _write(distances, _staged(folder / DISTANCES))
    for name, tables in sorted(of_file.items()):
        _write(_wide(tables), _staged(folder / name))
    return {name: file_sha256(_staged(folder / name)) for name in (MANIFEST, DISTANCES, *sorted(of_file))}


def _staged(path: Path) -> Path:
    """Where a table waits for its place."""
    return path.with_name(f".{path.name}.next")


def _settle(folder: Path, files: Mapping[str, str]) -> None:
    """Move each waiting table that is in `files` to its place; delete the others."""
    for waiting in folder.glob(".*.parquet.next"):
        name = waiting.name.removeprefix(".").removesuffix(".next")
        if files.get(name) == file_sha256(waiting):
            os.replace(waiting, folder / name)
        else:
            waiting.unlink()


def _find(folder: Path, name: str, expected: str) -> Path:
    """The file of this SHA-256: in its place, or beside it after a kill. EcglibError where it is neither."""
    for path in (folder / name, _staged(folder / name)):
        if path.is_file() and file_sha256(path) == expected:
            return path
    raise EcglibError(f"{folder / name}: missing, or not as {CELLS} says; {RESTORE}")


def _write(table: pd.DataFrame, path: Path) -> None:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    floats = [field.name for field in arrow.schema if pa.types.is_float32(field.type)]
    others: Any = [name for name in arrow.column_names if name not in floats]  # the stubs know only bool
    with atomic_path(path) as partial:
        pq.write_table(
            arrow, partial, compression="zstd", compression_level=19, use_dictionary=others,
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        )  # fmt: skip


def _write_cells(folder: Path, head: Mapping[str, Any], files: Mapping[str, str], cells: MadeCells) -> None:
    """One line a cell; what many cells share stands once, under `makers`."""
    makers: list[dict[str, Any]] = []
    entries = []
    for cell, (made, predictions) in cells.items():
        own = {name: made[name] for name in ("seconds", "weights_sha256", "unstable") if name in made}
        maker = {name: value for name, value in made.items() if name not in (*own, "file", "file_sha256")}
        if maker not in makers:
            makers.append(maker)
        if predictions is not None:
            own |= {"file": _file_of(cell), "file_sha256": files[_file_of(cell)]}
        entries.append({"cell": asdict(cell), "maker": makers.index(maker), **own})
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    content = json.dumps({**head, "files": files, "makers": makers}, indent=1)
    with atomic_path(folder / CELLS) as path:
        path.write_text(f'{content[:-2]},\n "cells": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def _readme() -> str:
    text = (__doc__ or "").partition("\n\n")[2]
    return f"# Results of this profile\n\n{text}"
