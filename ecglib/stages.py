"""Results that are made once, by whichever page asks first, and lie under a hash of what made them.

A stage is there once its `made.json` is; what a killed process left behind is made anew. The ledger tells
`ecglib run` what happens.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ecglib.provenance import atomic_path, code_hash, commit, digest, machine

LEDGER = "ledger.jsonl"


class BusyError(Exception):
    """Another page is making this result at the moment."""


class Stages:
    """The stages in a folder as one page sees them; `made` lists those that it asked for, in order."""

    def __init__(self, folder: Path, page: str):
        self.folder, self.page = folder, page
        self.made: list[dict[str, Any]] = []
        self.waits = True  # for a result that another page is making; else BusyError
        self.log({"event": "opened"})

    def make(
        self,
        kind: str,
        made_by: dict[str, Any],
        modules: tuple[str, ...],
        make: Callable[[Path], None],
        name: str = "",
    ) -> Path:
        """The folder of a stage, made by `make` if it is not there.

        Its key hashes `made_by` and the code of `modules`.
        """
        folder, started = self.place(kind, made_by, modules), time.time()
        record = folder / "made.json"
        reused = record.exists()
        if not reused:
            with self.alone(folder):
                reused = record.exists()  # where another page was at work on it
                if not reused:
                    make(folder)
                    made = {**made_by, "commit": commit(), "machine": machine()}
                    made["seconds"] = time.time() - started
                    with atomic_path(record) as path:
                        path.write_text(json.dumps(made, default=asdict, indent=1), encoding="utf-8")
        self.note(name or kind, kind, folder.name, reused, time.time() - started)
        return folder

    def place(self, kind: str, made_by: dict[str, Any], modules: tuple[str, ...]) -> Path:
        """Where a stage lies or would lie."""
        key = digest({**made_by, "code": [code_hash(module) for module in modules]})
        return self.folder / kind / key

    @contextmanager
    def alone(self, folder: Path) -> Iterator[None]:
        """Hold a stage's lock, which the system takes back from a killed process."""
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if self.waits else fcntl.LOCK_NB))
            except BlockingIOError:
                raise BusyError from None
            yield

    def note(self, name: str, kind: str, key: str, reused: bool, seconds: float) -> None:
        """Remember, once, that the page has used a result."""
        if any(entry["key"] == key for entry in self.made):
            return
        entry = {"name": name, "kind": kind, "key": key, "reused": reused, "seconds": round(seconds, 1)}
        self.made.append(entry)
        self.log({"event": "reused" if reused else "made", **entry})

    def log(self, entry: dict[str, Any]) -> None:
        """Tell `ecglib run`, which follows the ledger, what happens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LEDGER, "a", encoding="utf-8") as ledger:
            ledger.write(json.dumps({"time": time.time(), "page": self.page, **entry}) + "\n")
