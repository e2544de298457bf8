"""The study as its users run it: one command, from records to pages, on the smallest profile."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlcroissant
import pandas as pd
import psutil
import pytest

from ecglib.checkpoints import read_checkpoint
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.preprocessing import fingerprint
from ecglib.profiles import ROOT, load_profile, pages
from ecglib.published import load, publish
from ecglib.tokenizer import load_tokenizer

BIN = Path(sys.executable).parent
FINETUNING = {"05_finetuning_stemi", "06_results", "08_saliency", "10_reliability_stemi"}
FINETUNING |= {"11_audit", "12_label_lab"}


class Run:
    """`ecglib run smoke` with a folder of results of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.html = folder / "smoke", folder / "html"
        self.environment = os.environ | {"ECGLIB_RUNS": str(folder)}

    def start(self, *overrides: str) -> subprocess.Popen:
        settings = [word for override in overrides for word in ("--set", override)]
        command = [BIN / "ecglib", "run", "smoke", "--html", self.html, *settings]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True)

    def finish(self, *overrides: str) -> str:
        process = self.start(*overrides)
        said = process.communicate()[1]
        assert process.returncode == 0, said + (self.folder / "snakemake.log").read_text()
        return said


def pages_said(said: str, what: str) -> set[str]:
    line = next(line for line in said.splitlines() if line.startswith(f"pages {what}:"))
    return set(line.split(":")[1].strip().split(", ")) - {"none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("runs"))
    run.finish()
    return run


ALL_PAGES = set(pages(load_profile("smoke")))


def test_every_page_carries_what_made_it(run: Run) -> None:
    for page in ALL_PAGES:
        text = (run.html / "book" / "executed" / f"{page}.html").read_text()
        assert "How this page was made" in text
        assert "Embedded synthetic cohort" in text
        assert f"papermill notebooks/{page[:2]}" in text
        assert str(ROOT) not in text
        assert str(run.folder) not in text


def test_no_page_asks_the_network_for_anything(run: Run) -> None:
    loads = re.compile(r'<(?:script|img|iframe|link)[^>]+(?:src|href)="(https?:)?//[^"]+"')
    for path in run.html.rglob("*.html"):
        found = [tag[0] for tag in loads.finditer(path.read_text()) if 'rel="canonical"' not in tag[0]]
        assert not found, f"{path.name}: {found[0]}"


def test_what_the_run_consumed_is_described_in_its_folder_and_beside_the_book(run: Run) -> None:
    for name in ("croissant.json", "manifest.csv"):
        assert (run.html / name).read_bytes() == (run.folder / name).read_bytes()
        assert f'href="../{name}"' in (run.html / "book" / "index.html").read_text()
    dataset = mlcroissant.Dataset(run.html / "croissant.json")
    cohort = open_cohort(load_profile("smoke").settings(CohortSettings))
    ids = [record["ecgs/record_id"].decode() for record in dataset.records("ecgs")]
    assert ids == list(cohort.manifest.record_id)
    assert next(iter(dataset.records("consumed")))["consumed/data_hash"] == cohort.fingerprint


def test_cells_hold_predictions_for_every_scored_step(run: Run) -> None:
    folders = list((run.folder / "cells").iterdir())
    assert folders
    for folder in folders:
        table = pd.read_parquet(folder / "predictions.parquet")
        assert table["y_score"].between(0, 1).all()
        patients = table.groupby("part")["patient_id"].agg(set)
        assert not patients["validation"] & patients["test"]
        assert json.loads((folder / "made.json").read_text())["commit"]


def test_a_run_s_encoder_and_tokenizer_know_their_images_and_can_be_published(
    run: Run, tmp_path: Path
) -> None:
    encoder = next((run.folder / "encoder").glob("*/encoder.safetensors"))
    tokenizer = next((run.folder / "tokenizer").iterdir())
    assert read_checkpoint(encoder).preprocessing == fingerprint()
    publish(encoder, tokenizer, tmp_path / "smoke")
    model = load("smoke", tmp_path)
    assert model.metadata["settings"]["steps"] == 12
    assert model.metadata["tokenizer_sha256"] == load_tokenizer(tokenizer).metadata["weights_sha256"]


def test_the_same_command_again_makes_nothing(run: Run) -> None:
    said = run.finish()
    assert pages_said(said, "made") == set()
    assert "results made:    none" in said


def test_one_setting_makes_again_only_what_depends_on_it(run: Run) -> None:
    said = run.finish("05_finetuning.steps=3")
    assert pages_said(said, "made") == FINETUNING
    assert pages_said(said, "unchanged") == ALL_PAGES - FINETUNING
    made = next(line for line in said.splitlines() if line.startswith("results made"))
    assert "cells" in made
    for upstream in ("images", "tokenizer", "encoder", "features"):
        assert upstream not in made
    assert "changed" in (run.html / "book" / "executed" / "05_finetuning_stemi.html").read_text()


def test_a_killed_run_goes_on(run: Run) -> None:
    # As the test before left it, and one more page; the tests of pretraining kill what takes long.
    longer = ("05_finetuning.steps=3", "09_statistics.n_large=60")
    process = run.start(*longer)
    ledger = run.folder / "ledger.jsonl"
    before, deadline = ledger.stat().st_size, time.time() + 120
    while ledger.stat().st_size == before and time.time() < deadline:  # until the notebook is at work
        time.sleep(0.1)
    for left in psutil.Process(process.pid).children(recursive=True):
        left.suspend()  # what is left at work must not come to its end before the next run ends it
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pages_said(run.finish(*longer), "made") - FINETUNING == {"09_statistics"}


def test_a_notebook_runs_alone_from_any_folder(run: Run, tmp_path: Path) -> None:
    command = [BIN / "papermill", ROOT / "notebooks" / "05_finetuning.ipynb", "out.ipynb"]
    words = ["-p", "outcome", "stemi", "-p", "profile", "smoke", "--no-progress-bar"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=run.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "How this page was made" in (tmp_path / "out.ipynb").read_text()
