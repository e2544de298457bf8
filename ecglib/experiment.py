"""The experiment without its pages: cells made one after the other, their results kept, and tried again."""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.classifiers import MODELS, require_hub
from ecglib.datasets import CohortSettings, DataPaths
from ecglib.errors import EcglibError
from ecglib.grid import Cell, GridSettings
from ecglib.opening import drawn_by, open_kept, require_made_for, require_weights
from ecglib.profiles import load_profile
from ecglib.progress import track
from ecglib.provenance import digest, file_sha256, machine
from ecglib.repeats import auroc_on_test
from ecglib.results import (
    CELLS,
    KeptResults,
    as_kept,
    attribution,
    require_own,
    rounding,
    write_results,
)
from ecglib.run import say
from ecglib.study import Study

KINDS = {None: ("head", "finetuned"), "heads": ("head",), "finetuned": ("finetuned",)}
SAME_SCORE, SAME_AUROC = 1e-5, 0.005  # on the machine that made a cell, and elsewhere
HERE, ELSEWHERE = "this one", "another"  # which machine made a kept cell
NOT_ELSEWHERE = (
    "Fine-tuned cells were made on another machine. Processors round each in its way and training carries "
    "that on, so they seldom come out the same elsewhere; how far they move is on the page 09_statistics."
)


def run_grid(
    name: str,
    data: DataPaths,
    overrides: Sequence[str],
    outcome: str | None = None,
    only: str | None = None,
    hours: float | None = None,
    export: Path | None = None,
) -> None:
    """Make the cells of a profile in the order of `GridSettings.all_cells`, for at most so many hours.

    The time is looked at before each cell. Prints what is done and what lacks; `export` keeps all that
    exists, of whatever outcome and kind, in a folder, whose own cells are not made again. Raises EcglibError
    for what the profile or data lack.
    """
    if only not in KINDS:
        raise EcglibError(f"only={only}: take heads or finetuned, or leave it out for both")
    profile = load_profile(name, overrides)
    deadline = math.inf if hours is None else time.time() + 3600 * hours
    require_weights(profile)
    study = Study(profile, "05_finetuning", outcome, data)
    if export:  # refused before the work, not after it
        attribution(profile.settings(CohortSettings).source)
        require_own(export)
    kept = _earlier(study, export) if export else None
    every = _all_cells(study)
    wanted = [c for c in every if outcome in (None, c.outcome) and c.kind in KINDS[only]]
    try:
        for cell in track(wanted, f"cells of {profile.name}", unit="cell"):
            if time.time() >= deadline:
                say(f"{hours:g} hours are over; the same command goes on from here")
                break
            if not kept or cell not in kept.cells:
                _make(study, cell)
    except KeyboardInterrupt:
        raise EcglibError("stopped by the keyboard; the same command goes on from here") from None
    table = progress_table(study, wanted, kept)
    print(table.round(2).to_string(index=False))
    print(lacking_sentence(table))
    if export:
        cells = export_results(study, export)  # opens it anew: another may have exported there meanwhile
        size = sum(path.stat().st_size for path in export.iterdir()) / 1e6
        others = len(set(cells) - set(every))
        beyond = f", and of {others} that are not in this grid" if others else ""
        say(f"{export}: results of {len(cells) - others} of {len(every)} cells kept{beyond}, {size:.1f} MB")


def _make(study: Study, cell: Cell) -> None:
    """Make a cell unless it exists; a line for one that is fine-tuned, which takes minutes."""
    new = study.existing(cell) is None
    study.predictions(cell)
    if new and cell.kind == "finetuned" and (folder := study.existing(cell)):
        say(f"{cell}: {study.lack(cell) or 'made'}, {_made(folder)['seconds'] / 60:.1f} minutes")


def _made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "made.json").read_text(encoding="utf-8"))


def _all_cells(study: Study) -> list[Cell]:
    return study.profile.settings(GridSettings).all_cells(study.profile.outcomes)


def progress_table(study: Study, cells: Sequence[Cell], kept: KeptResults | None = None) -> pd.DataFrame:
    """What is done (here or in kept results) and what lacks, by outcome, kind, split and fraction."""
    rows = []
    for cell in cells:
        entry, lack = _done(study, cell, kept)
        estimable = study.rows(cell) is not None
        labels = f"{100 * cell.fraction:g} %"
        head = {"kind": cell.kind, "outcome": cell.outcome, "split": cell.split, "labels": labels}
        seconds = entry["seconds"] if entry else np.nan
        rows.append(
            head
            | {"cells": 1, "done": bool(entry), "lack": estimable and not entry}
            | {
                "unstable": estimable and lack != "",
                "not estimable": not estimable,
                "minutes each": seconds / 60,
            }
        )
    keys = ["kind", "outcome", "split", "labels"]
    counts = ["cells", "done", "lack", "unstable", "not estimable"]
    groups = pd.DataFrame(rows, columns=pd.Index([*keys, *counts, "minutes each"])).groupby(keys, sort=False)
    table = groups[counts].sum()
    return table.join(groups["minutes each"].median()).reset_index()


def lacking_sentence(table: pd.DataFrame) -> str:
    """How long the cells that lack in a `progress_table` would take.

    Each as long as the median (a machine may have slept over one) of those done of its kind and label
    fraction; where none is, as those of its kind.
    """
    spent = table["minutes each"].fillna(0) * table["done"]

    def each(names: list[str]) -> pd.Series:
        keys = [table[name] for name in names]
        return spent.groupby(keys).transform("sum") / table["done"].groupby(keys).transform("sum")

    hours = each(["kind", "labels"]).fillna(each(["kind"])) * table["lack"] / 60
    unknown = table.loc[hours.isna(), "lack"].sum()
    told = [f"{table['lack'].sum()} cells lack"]
    if hours.any():
        told.append(f"about {hours.sum():.1f} hours at the median of those done of the same kind")
    if unknown:
        told.append(f"{unknown} of them are of a kind of which none is done, so their hours are unknown")
    return "; ".join(told)


def _done(study: Study, cell: Cell, kept: KeptResults | None) -> tuple[Mapping[str, Any] | None, str]:
    """What made a cell, here or in kept results (None: nothing yet), and why it has no predictions."""
    if folder := study.existing(cell):
        return _made(folder), study.lack(cell)
    if kept and cell in kept.cells:
        return kept.cells[cell], kept.lack(cell)
    return None, ""


def export_results(study: Study, folder: Path) -> list[Cell]:
    """Keep the results of every cell of the grid that exists in `folder`; returns all that are kept there.

    Cells that the folder holds and that do not exist here, or are not in the grid, stay, where they are of
    the same data and settings. EcglibError for a folder that holds damaged results or other files.
    """
    earlier = _earlier(study, folder)
    ours = {cell: made for cell in _all_cells(study) if (made := study.existing(cell))}
    cells: dict[Cell, tuple[Mapping[str, Any], pd.DataFrame | None]] = {}
    for cell in _in_order({*ours, *(earlier.cells if earlier else ())}, study.cohort.outcomes):
        if made := ours.get(cell):
            predictions = study.predictions(cell)
            kept = None if predictions is None else as_kept(cell, predictions)
            cells[cell] = (_made_by(study, cell, made), kept)
        elif earlier:
            cells[cell] = (earlier.cells[cell], earlier.predictions(cell))
    if not cells:
        raise EcglibError(f"{folder}: no cell exists yet, so there is nothing to keep; make some first")
    whose = attribution(study.profile.settings(CohortSettings).source)
    write_results(folder, _head(study), _manifest(study), study.distances, cells, whose)
    return list(cells)


def _in_order(cells: Iterable[Cell], outcomes: Sequence[str]) -> list[Cell]:
    """Cells in one order whatever the grid is, so that the order of exports changes no byte.

    `outcomes` are the cohort's. As in `GridSettings.all_cells`: heads first, then draw after draw.
    """

    def place(cell: Cell) -> tuple:
        first = (cell.kind != "head", outcomes.index(cell.outcome), cell.draw, cell.seed)
        return *first, cell.split, cell.fraction, MODELS.index(cell.model)

    return sorted(cells, key=place)


def _head(study: Study) -> dict[str, Any]:
    names = ("name", "outcomes", "synthetic", "comparable", "other_patients", "origins", "notes")
    return {
        "profile": study.profile.name,
        "cohort": {name: getattr(study.cohort, name) for name in names},
        "data_hash": study.images.data_hash,
        "settings": drawn_by(study.profile),
    }


def _manifest(study: Study) -> pd.DataFrame:
    return study.cohort.manifest.assign(usable=study.manifest["usable"])


def _content(manifest: pd.DataFrame) -> str:
    """A hash of names and values without their types, some of which Parquet does not keep."""
    return digest(manifest.to_json(orient="records", double_precision=15))


def _earlier(study: Study, folder: Path) -> KeptResults | None:
    """What the folder holds already, if it may stand beside what is made now: same settings, ECGs, labels.

    Without the cells of other weights than the profile's. The images' hash may differ, since processors round
    the last digits each in its way: each cell has its own.
    """
    if not (folder / CELLS).exists():
        return None
    earlier = KeptResults.open(folder)
    try:
        require_made_for(earlier, study.profile)
    except EcglibError as other:
        say(f"{folder}: what is there goes: {other}")
        return None
    # An outcome that the cohort had not then takes nothing from the cells of the others.
    ours = _manifest(study).reindex(columns=earlier.manifest.columns)
    if _content(earlier.manifest) != _content(ours):
        say(f"{folder}: what is there goes: it is of other ECGs or labels")
        return None
    cells = {c: made for c, made in earlier.cells.items() if made["model"] == study.model_key(c.model)}
    if others := len(earlier.cells) - len(cells):
        say(f"{folder}: {others} cells go: they are of other weights")
    return replace(earlier, cells=cells)


def _made_by(study: Study, cell: Cell, folder: Path) -> dict[str, Any]:
    made = _made(folder)
    own = {name: made[name] for name in ("settings", "model", "images", "commit", "machine", "seconds")}
    weights = folder / "weights.safetensors"
    if weights.exists():
        own["weights_sha256"] = file_sha256(weights)
    if lack := study.lack(cell):
        own["unstable"] = lack
    return own


# --- trying kept cells again ---


def reproduce_cells(
    name: str, data: DataPaths, results: Path, n: int, seed: int, folder: Path | None = None
) -> bool:
    """Make n kept cells, drawn at random, again from nothing; print how they compare; True where all agree.

    Drawn as `draw_cells` says, compared as `compare` does: each is told as soon as it is made, all in a table
    at the end. What is made stays in `folder`, from where a killed run goes on; None: it is deleted at the
    end.
    """
    profile = load_profile(name)
    require_weights(profile)
    kept = open_kept(profile, results)
    cells = draw_cells(kept, n, seed)
    for cell in cells:  # which may be of more models than the profile's grid
        require_hub(cell.model)
    rows = []
    with _other_runs(folder):
        study = Study(profile, "05_finetuning", data=data)
        for cell in cells:
            rows.append(compare(cell, kept, study.predictions(cell)))
            say(_row_line(rows[-1]))
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, na_rep="-"))
    tuned = np.array([cell.kind == "finetuned" for cell in cells])
    if (tuned & ~table["same"] & (table["machine"] == ELSEWHERE)).any():
        say(NOT_ELSEWHERE)
    return bool(table["same"].all())


def _row_line(row: Mapping[str, Any]) -> str:
    """A row of the table in a line of its own."""
    told = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    return f"{told.pop('cell')}: {', '.join(f'{name} {value}' for name, value in told.items())}"


@contextmanager
def _other_runs(folder: Path | None) -> Iterator[None]:
    """Results go to that folder, or to a new one that is deleted afterwards, and not to the usual place."""
    before = os.environ.get("ECGLIB_RUNS")
    with tempfile.TemporaryDirectory(prefix="ecglib-reproduce-") as passing:
        os.environ["ECGLIB_RUNS"] = str(folder or passing)
        try:
            yield
        finally:
            os.environ.pop("ECGLIB_RUNS")
            if before is not None:
                os.environ["ECGLIB_RUNS"] = before


def draw_cells(kept: KeptResults, n: int, seed: int) -> list[Cell]:
    """n of the kept cells that take little time: heads, and fine-tuned cells of the smallest fraction.

    One at least is fine-tuned where there is one: they are few among the heads, and chance would miss them.
    """
    there = [cell for cell in kept.cells if not kept.lack(cell)]
    smallest = min((cell.fraction for cell in there if cell.kind == "finetuned"), default=0)
    cheap = sorted(cell for cell in there if cell.kind == "head" or cell.fraction == smallest)
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if value < least:
            raise EcglibError(f"{name}={value}: it must be at least {least}; raise it")
    if n > len(cheap):
        raise EcglibError(f"n={n}: only {len(cheap)} cells are kept that can be tried again; lower it")
    drawn = [cheap[place] for place in np.random.default_rng(seed).permutation(len(cheap))]
    finetuned = next((cell for cell in drawn if cell.kind == "finetuned"), None)
    drawn.sort(key=lambda cell: cell != finetuned)  # that one first, the others as drawn
    return sorted(drawn[:n])


def compare(cell: Cell, kept: KeptResults, made: pd.DataFrame | None) -> dict[str, Any]:
    """A kept cell beside what was made now: largest difference of scores, both AUROCs, whether they agree.

    On the machine that made it scores must be equal to SAME_SCORE (and the rounding of kept heads); elsewhere
    the AUROC on test, at the step best on validation, to SAME_AUROC. Where it is not estimable (NaN) scores
    decide there, too.
    """
    here = same_machine(kept.cells[cell]["machine"], machine())
    told = {"cell": str(cell), "machine": HERE if here else ELSEWHERE}
    theirs = kept.predictions(cell)
    if theirs is None or made is None:
        return told | {"by": "unstable here", "same": False}
    keys = ["record_id", "part", "step"]
    both = theirs.merge(made, on=keys, suffixes=("", "_now"))
    same_rows = len(both) == len(theirs) and (both["y_true"] == both["y_true_now"]).all()
    there, now = both["y_score"].to_numpy(np.float64), both["y_score_now"].to_numpy(np.float64)
    aurocs = [_auroc_or_nan(table) for table in (theirs, made)]
    by_scores = here or bool(np.isnan(aurocs).any())
    equal = bool((np.abs(there - now) <= SAME_SCORE + rounding(cell, both)).all())
    agrees = equal if by_scores else abs(aurocs[0] - aurocs[1]) <= SAME_AUROC
    return told | {
        "largest difference": float(np.abs(there - now).max(initial=0)),
        "AUROC kept": round(aurocs[0], 4),
        "AUROC now": round(aurocs[1], 4),
        "by": f"scores to {SAME_SCORE:g}" if by_scores else f"AUROC to {SAME_AUROC:g}",
        "same": bool(same_rows and agrees),
    }


def _auroc_or_nan(predictions: pd.DataFrame) -> float:
    """AUROC on test at the step best on validation; NaN where a class lacks in either."""
    try:
        return auroc_on_test(predictions)
    except EcglibError:
        return math.nan


def same_machine(kept: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two entries of `machine` are alike in all that rounds numbers; Python's version does not."""
    return {**kept, "python": here["python"]} == here
