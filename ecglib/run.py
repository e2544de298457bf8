"""Running a profile: the plan, Snakemake under a lock, progress in the terminal, what was reused."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from ecglib.cohort import Cohort
from ecglib.croissant import write_description
from ecglib.datasets import CohortSettings, DataPaths
from ecglib.errors import EcglibError
from ecglib.estimates import estimate_steps
from ecglib.opening import open_data, require_weights, runs_folder
from ecglib.profiles import KEPT, NOTEBOOKS, ROOT, Profile, load_profile, page_key, pages, result_pages
from ecglib.provenance import atomic_path, digest, file_sha256
from ecglib.results import CELLS
from ecglib.stages import LEDGER

BOOK_FILES = ("book/**/*", "docs/**/*", "_config.yml", "_toc.yml")


def make_plan(
    profile: Profile, cohort: Cohort, html: Path | None = None, data: DataPaths | None = None
) -> dict[str, Any]:
    """All that the Snakefile needs: each page's source, key, arguments and the pages that it reads.

    `profile` and `cohort` as `open_data` gives them. Where `data` names kept results, the pages made of them.
    Pages of kept results that the profile shows besides lie under the name of theirs.
    """
    folder, kept = runs_folder(profile, data), bool(data and data.results)
    # Every outcome has a slot: three pages of one thread each keep two cores busier than two at a time do.
    slots = max(os.cpu_count() or 1, len(profile.outcomes))
    made = pages(profile, of_predictions=kept)
    entries, ledgers = _entries(profile, cohort, folder / "executed", made, slots), {"": folder / LEDGER}
    for name in profile.shows:
        if (KEPT / name / CELLS).exists():
            shown, results = load_profile(name), DataPaths(results=KEPT / name)
            shown, its_cohort = open_data(shown, results)
            its_pages = _entries(shown, its_cohort, folder / "executed" / name, result_pages(shown), slots)
            entries |= _under(name, its_pages, results.environment())
            ledgers[f"{name}/"] = runs_folder(shown, results) / LEDGER
    book = {str(p.relative_to(ROOT)): file_sha256(p) for glob in BOOK_FILES for p in _tracked(glob)}
    return {
        "profile": profile.name,
        "description": profile.description,
        "folder": str(folder),
        "ledgers": {under: str(path) for under, path in ledgers.items()},
        "python": sys.executable,
        "slots": slots,
        "from_predictions": kept,
        "shares_manifest": not (cohort.other_patients or kept),
        "html": str(html.resolve() if html else folder / "html"),
        "pages": entries,
        "book_key": digest([book, {page: entry["key"] for page, entry in entries.items()}]),
    }


def _entries(
    profile: Profile, cohort: Cohort, executed: Path, made: Mapping[str, tuple[str, str | None]], slots: int
) -> dict[str, dict[str, Any]]:
    """What the Snakefile needs of each page; `made`: page -> (notebook, outcome)."""
    return {
        page: {
            "notebook": notebook,
            "source": str(ROOT / "notebooks" / f"{notebook}.ipynb"),
            "executed": str(executed / f"{page}.ipynb"),
            "key": page_key(profile, notebook, outcome, cohort.fingerprint),
            "arguments": _arguments(profile, notebook, outcome),
            "environment": {},
            "threads": _threads(profile, notebook),
            "slots": slots if NOTEBOOKS[notebook].all_cores else _threads(profile, notebook),
            "gpu": int(torch.cuda.is_available()),  # the Snakefile lets one page at a time use it
            "reads": [page for page, (name, _) in made.items() if name in NOTEBOOKS[notebook].reads],
        }
        for page, (notebook, outcome) in made.items()
    }


def _under(
    name: str, entries: Mapping[str, dict[str, Any]], environment: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The same pages under a name, made in an environment of their own."""
    return {
        f"{name}/{page}": entry
        | {"environment": dict(environment), "reads": [f"{name}/{read}" for read in entry["reads"]]}
        for page, entry in entries.items()
    }


def _threads(profile: Profile, notebook: str) -> int:
    """Cores that a page computes on: a small network gains little from more, another page gains all of it."""
    cores, entry = os.cpu_count() or 1, NOTEBOOKS[notebook]
    at_once = 1 if entry.all_cores else len(profile.outcomes) if entry.per_outcome else 2
    return max(1, cores // at_once)


def _tracked(glob: str) -> Iterator[Path]:
    made = {"executed", "__pycache__", "figures", "results"}  # pages have the results in their keys
    return (path for path in sorted(ROOT.glob(glob)) if path.is_file() and not made & set(path.parts))


def _arguments(profile: Profile, notebook: str, outcome: str | None) -> list[str]:
    overrides = profile.overrides_for(notebook)
    return [
        *("-r", "profile", profile.reference),
        *(("-r", "outcome", outcome) if outcome else ()),
        *(("-r", "overrides", overrides) if overrides else ()),
    ]


def run_profile(name: str, data: DataPaths, overrides: Sequence[str], html: Path | None) -> None:
    """Make a profile's book; raises EcglibError with the first failed page's own message."""
    profile, started = load_profile(name, overrides), time.time()
    folder = runs_folder(profile, data)
    if not data.results:
        require_weights(profile)
    profile, cohort = open_data(profile, data)
    for note in cohort.notes:
        say(note)
    plan = make_plan(profile, cohort, html, data)
    with alone(folder) as lock:
        _write_plan(plan, folder)
        if not data.results:
            write_description(folder, cohort, profile.settings(CohortSettings), data.folder)
        environment = os.environ | data.environment() | {"ECGLIB_PROGRESS": str(folder / "progress")}
        code = _follow(_start_snakemake(folder, plan["slots"], environment, lock), plan, folder)
        if code:
            raise EcglibError(_why(plan, folder))
    _summarise(plan, started)


def _write_plan(plan: dict[str, Any], folder: Path) -> None:
    with atomic_path(folder / "plan.json") as path:
        path.write_text(json.dumps(plan, indent=1), encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[TextIO]:
    """Hold the folder's lock; what a killed run left at work is ended first."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EcglibError(
                f"runs/{folder.name}: another `ecglib run` is at work there; wait for it"
            ) from None
        lock.seek(0)
        _end_leftovers(lock.read(), folder)
        yield lock
        lock.truncate(0)


def _end_leftovers(text: str, folder: Path) -> None:
    """End what a killed run left at work on this folder: its process group, named in the lock file."""
    if not text.strip():
        return
    group, family = int(text), []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            # The number may belong to others by now; ours name the folder in their command.
            if os.getpgid(process.pid) == group and str(folder) in " ".join(process.cmdline()):
                family += [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def _start_snakemake(folder: Path, slots: int, environment: dict[str, str], lock: TextIO) -> subprocess.Popen:
    snakemake = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(folder),
    ]
    config = ["--config", f"plan={folder / 'plan.json'}"]
    # Snakemake keeps its own lock over a kill -9; ours says that nobody is at work.
    subprocess.run([*snakemake, "--unlock", *config], capture_output=True, env=environment, check=False)
    command = [
        *snakemake,
        "--cores",
        str(slots),
        "--resources",
        "gpu=1",
        "--rerun-incomplete",
        "--nocolor",
        *config,
    ]
    with open(folder / "snakemake.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    lock.seek(0)
    lock.truncate(0)
    lock.write(str(process.pid))
    lock.flush()
    return process


def _follow(process: subprocess.Popen, plan: dict[str, Any], folder: Path) -> int:
    """Show what the notebooks report until Snakemake ends; returns its exit code."""
    progress = folder / "progress"
    progress.write_text("", encoding="utf-8")
    ledgers, shown = _ledgers(plan), 0.0
    for ledger in ledgers:
        ledger.new()  # of earlier runs
    try:
        while True:
            ended = process.poll() is not None
            for entry in (entry for ledger in ledgers for entry in ledger.new()):
                say(_sentence(entry))
            bar = (
                progress.read_text(encoding="utf-8", errors="replace")
                .replace("\r", "\n")
                .split("\n")[-1]
                .strip()
            )
            # A log file gets a line now and then, a terminal one line that moves.
            if bar and (sys.stderr.isatty() or time.time() - shown > 20):
                say(bar, passing=sys.stderr.isatty())
                shown = time.time()
            if ended:
                return process.returncode
            time.sleep(0.3)
    except KeyboardInterrupt:
        os.killpg(process.pid, 15)
        raise EcglibError("stopped by the keyboard; the same command goes on from here") from None


@dataclass
class _Ledger:
    """What the pages of a folder tell; they are called as in the plan."""

    path: Path
    under: str
    n_read: int = 0  # bytes

    def new(self) -> list[dict[str, Any]]:
        """The entries that were not read yet."""
        if not self.path.exists():
            return []
        with open(self.path, "rb") as stream:
            stream.seek(self.n_read)
            told = stream.read()
        whole = told[: told.rfind(b"\n") + 1]
        self.n_read += len(whole)
        entries = [json.loads(line) for line in whole.splitlines()]
        return [entry | {"page": self.under + entry["page"]} for entry in entries]


def _ledgers(plan: dict[str, Any]) -> list[_Ledger]:
    return [_Ledger(Path(path), under) for under, path in plan["ledgers"].items()]


def _sentence(entry: dict[str, Any]) -> str:
    if entry["event"] == "made":
        page = entry["page"].rpartition("/")[2][:2]
        return f"    {page} {entry['name']}: made in {entry['seconds']:.0f} s"
    if entry["event"] == "closed":
        return f"    {entry['page']}: done in {entry['seconds']:.0f} s"
    return entry["page"] if entry["event"] == "opened" else ""


def say(line: str, passing: bool = False) -> None:
    """Print a line to standard error; a `passing` one, kept short, is written over by the next."""
    if line:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        sys.stderr.write(clear + (line[:110] if passing else f"{line}\n"))
        sys.stderr.flush()


def _why(plan: dict[str, Any], folder: Path) -> str:
    """The message of the page that failed, in one line."""
    for page in plan["pages"]:
        failed = folder / "logs" / f"{page}.ipynb"
        if failed.exists() and failed.stat().st_size:  # Snakemake leaves an empty one where all went well
            for cell in json.loads(failed.read_text(encoding="utf-8"))["cells"]:
                for output in cell.get("outputs", []):
                    if output["output_type"] == "error":
                        name = "" if output["ename"] == "EcglibError" else f" {output['ename']}:"
                        return f"{page}:{name} {output['evalue']}".replace("\n", " ")
    lines = (folder / "snakemake.log").read_text(encoding="utf-8").splitlines()
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return own[-1] if own else f"Snakemake stopped; runs/{folder.name}/snakemake.log says why"


def _summarise(plan: dict[str, Any], started: float) -> None:
    """Say which pages and results were made in this run and which were there before."""
    told = [entry for ledger in _ledgers(plan) for entry in ledger.new()]
    entries = [entry for entry in told if entry["time"] >= started]
    pages_made = [entry["page"] for entry in entries if entry["event"] == "closed"]
    made = {entry["key"]: entry for entry in entries if entry["event"] == "made"}
    reused = {entry["key"] for entry in entries if entry["event"] == "reused"} - made.keys()
    unchanged = [page for page in plan["pages"] if page not in pages_made]
    kinds = sorted({entry["kind"] for entry in made.values()})
    counts = ", ".join(f"{sum(e['kind'] == kind for e in made.values())} {kind}" for kind in kinds)
    say(f"pages made:      {', '.join(pages_made) or 'none'}")
    say(f"pages unchanged: {', '.join(unchanged) or 'none'}")
    say(f"results made:    {counts or 'none'}; reused: {len(reused)}")
    say(f"book:            {plan['html']}/index.html ({time.time() - started:.0f} s)")


def dry_run(name: str, data: DataPaths, overrides: Sequence[str]) -> None:
    """Print each step, its size and estimated hours here, and write the plan for Snakemake."""
    profile = load_profile(name, overrides)
    steps = estimate_steps(profile, data)
    if data.folder or profile.settings(CohortSettings).source == "embedded":
        folder = runs_folder(profile)
        folder.mkdir(parents=True, exist_ok=True)
        profile, cohort = open_data(profile, data)
        _write_plan(make_plan(profile, cohort), folder)
        write_description(folder, cohort, profile.settings(CohortSettings), data.folder)
    print(steps.to_string(index=False))
    print(f"together about {steps['hours'].sum():,.1f} hours on this machine")
