"""Fixtures that every test file shares: real data where it exists, one thread, no network."""

import contextlib
import datetime
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["HF_HUB_OFFLINE"] = "1"
# A law holds however busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-figures", metavar="FILE", help="write there what each test found, and where")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Keep outcomes, seconds and what tests recorded as a page of the book; cases of one test together."""
    path = config.getoption("--keep-figures")
    if not path or hasattr(config, "workerinput"):  # a process of xdist knows its own tests alone
        return
    from ecglib.provenance import commit, machine

    here, tests = machine(), {}
    for report in itertools.chain(*terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            tests.setdefault(report.nodeid.partition("[")[0], []).append(report)
    lines = [
        "# Slow checks",
        "",
        "Checks that take longer than a minute, as `make test-slow` last found them: on "
        f"{datetime.date.today():%d %B %Y}, commit {commit()}, {here['processor']}, {here['cores']} cores.",
        "",
        "| Check | Outcome | Seconds | Figures |",
        "|---|---|---:|---|",
        *(_line(name, reports) for name, reports in tests.items()),
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(name: str, reports: list[pytest.TestReport]) -> str:
    told = [report for report in reports if report.when == "call" or report.outcome != "passed"]
    outcomes = ", ".join(f"{n} {outcome}" for outcome, n in Counter(r.outcome for r in told).items())
    figures = "; ".join(f"{key}: {value}" for report in told for key, value in report.user_properties)
    words = name.partition("::test_")[2].replace("_", " ")
    return f"| {words} | {outcomes} | {sum(r.duration for r in reports):.0f} | {figures} |"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are many times slower on two threads than on one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings, named by ECGLIB_TEST_DATA."""
    folder = Path(os.environ.get("ECGLIB_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ptb-xl" / "unpack.py").exists():
        pytest.skip(f"no real recordings at {folder}: set ECGLIB_TEST_DATA to the folder that holds ptb-xl/")
    return folder


@pytest.fixture(scope="session")
def ptbxl_table(shared_data: Path) -> pd.DataFrame:
    """PTB-XL's whole table, 21,837 rows, as `datasets.read_ptbxl_table` reads it."""
    from ecglib.datasets import read_ptbxl_table

    folder = shared_data / "ptb-xl"
    return read_ptbxl_table(folder, table=folder / "ptbxl_database.csv.xz")


@pytest.fixture(scope="session")
def ptbxl_subset(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 1,200-record subset of PTB-XL at 100 Hz, unpacked into PhysioNet's layout."""
    folder = tmp_path_factory.getbasetemp().parent / "ptbxl-1200"
    packed = shared_data / "ptb-xl"
    if not folder.exists():  # two processes may find so at the same time: whole or absent
        own = tmp_path_factory.mktemp("unpacked") / folder.name
        unpack = [sys.executable, packed / "unpack.py", own, "--ids-file", packed / "ids_subset_1200.txt"]
        subprocess.run(unpack, check=True, capture_output=True)
        with contextlib.suppress(OSError):  # the other was first
            own.rename(folder)
    return folder
