"""What `ecglib run` plans, follows and says on the terminal."""

import json
from pathlib import Path

import pytest

from ecglib.datasets import DataPaths
from ecglib.opening import open_data
from ecglib.profiles import KEPT, load_profile, pages, result_pages
from ecglib.run import _Ledger, make_plan, say


def test_a_plan_holds_the_pages_of_kept_results_in_an_environment_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECGLIB_RUNS", str(tmp_path))
    profile, cohort = open_data(load_profile("quick", ["01_cohorts.n_patients=150"]), DataPaths())
    plan = make_plan(profile, cohort)
    shown = load_profile("ptbxl-tiny")
    theirs = [f"ptbxl-tiny/{page}" for page in result_pages(shown)]
    assert list(plan["pages"]) == [*pages(profile), *theirs]
    for page, entry in plan["pages"].items():
        environment = {"ECGLIB_RESULTS": str(KEPT / "ptbxl-tiny")} if page in theirs else {}
        assert entry["environment"] == environment
        assert entry["executed"] == str(tmp_path / "quick" / "executed" / f"{page}.ipynb")
    assert plan["pages"]["ptbxl-tiny/06_results"]["reads"] == [
        f"ptbxl-tiny/05_finetuning_{outcome}" for outcome in shown.outcomes
    ]
    assert plan["ledgers"] == {
        "": str(tmp_path / "quick" / "ledger.jsonl"),
        "ptbxl-tiny/": str(tmp_path / "ptbxl-tiny-from-predictions" / "ledger.jsonl"),
    }


def test_a_ledger_is_read_from_where_it_was_left_and_by_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = _Ledger(path, "mine/")
    assert ledger.new() == []
    first, second = (json.dumps({"page": page}) for page in ("01_cohorts", "02_preprocessing"))
    path.write_text(f"{first}\n{second[:9]}")
    assert ledger.new() == [{"page": "mine/01_cohorts"}]
    path.write_text(f"{first}\n{second}\n")
    assert ledger.new() == [{"page": "mine/02_preprocessing"}]


def test_a_line_that_stays_is_said_whole_and_one_that_passes_is_kept_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = ", ".join(f"{number:02d}_page" for number in range(20))
    say(f"pages unchanged: {pages}")
    assert capsys.readouterr().err == f"pages unchanged: {pages}\n"
    say(pages, passing=True)
    assert capsys.readouterr().err == pages[:110]
