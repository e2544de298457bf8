"""The command line, as a user meets it: help at once, a mistake is one clear line and exit code 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ECGLIB = Path(sys.executable).with_name("ecglib")
SUBSET_ROWS = 40
PTBXL = ("paper", "--set", "01_cohorts.sampling_rate=100")  # reads PTB-XL, and needs no published weights


def ecglib(*words: object, runs: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run the command as a user would."""
    environment = {**os.environ, **environment, **({"ECGLIB_RUNS": str(runs)} if runs else {})}
    return subprocess.run([ECGLIB, *map(str, words)], capture_output=True, text=True, env=environment)


def assert_one_clear_line(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in last


@pytest.mark.parametrize(("command", "argument"), [("run", "PROFILE"), ("convert", "source")])
def test_help_needs_none_of_the_slow_imports(command: str, argument: str) -> None:
    code = (
        "import sys, ecglib.cli\n"
        f"sys.argv = ['ecglib', '{command}', '--help']\n"
        "try: ecglib.cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'pandas', 'snakemake'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert argument in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_profile_is_named_with_those_that_exist(tmp_path: Path) -> None:
    assert_one_clear_line(ecglib("run", "quik", runs=tmp_path), "'quik'", "quick", "ptbxl-tiny")


def test_unknown_parameter_is_named_with_the_nearest(tmp_path: Path) -> None:
    done = ecglib("run", "quick", "--set", "05_finetuning.stepz=20", runs=tmp_path)
    assert_one_clear_line(done, "'stepz'", "did you mean 'steps'?")


def test_value_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    done = ecglib("run", "quick", "--set", "05_finetuning.steps=many", runs=tmp_path)
    assert_one_clear_line(done, "05_finetuning.steps=many", "int")


def test_missing_data_folder_is_named(tmp_path: Path) -> None:
    done = ecglib("run", "paper", "--data", tmp_path / "nowhere", runs=tmp_path)
    assert_one_clear_line(done, "nowhere")


def test_unknown_weights_are_named_before_any_work(tmp_path: Path) -> None:
    done = ecglib("run", "quick", "--set", "03_tokens.weights=heartbeit_huge", runs=tmp_path)
    assert_one_clear_line(done, "weights 'heartbeit_huge' are not in")
    assert not any(tmp_path.iterdir())


def test_a_hub_out_of_reach_is_named_before_any_work(tmp_path: Path) -> None:
    done = ecglib("grid", "quick", "--set", "05_finetuning.models=[vit_b16]", runs=tmp_path)
    assert_one_clear_line(done, "model vit_b16 needs weights from", "HF_HUB_OFFLINE is set")
    assert not any(tmp_path.iterdir())


def test_predictions_that_are_not_kept_are_named(tmp_path: Path) -> None:
    done = ecglib("run", "smoke", "--from-predictions", runs=tmp_path)
    assert_one_clear_line(done, "smoke/cells.json: no such file, so no results are kept there")


@pytest.fixture
def small_ptbxl(ptbxl_subset: Path, tmp_path: Path) -> Path:
    """A PTB-XL folder of a few records that a test may damage."""
    table = pd.read_csv(ptbxl_subset / "ptbxl_database.csv").iloc[::30].head(SUBSET_ROWS)
    folder = tmp_path / "ptbxl"
    for name in table["filename_lr"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".dat", ".hea"):
            shutil.copy(ptbxl_subset / f"{name}{suffix}", folder / f"{name}{suffix}")
    table.to_csv(folder / "ptbxl_database.csv", index=False)
    shutil.copy(ptbxl_subset / "scp_statements.csv", folder)
    return folder


def test_damaged_record_stops_the_run_with_one_line(small_ptbxl: Path, tmp_path: Path) -> None:
    damaged = sorted(small_ptbxl.glob("records100/*/*.dat"))[5]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    # A page that needs no ECG is at work meanwhile, and ends first.
    few = [word for size in ("large", "small") for word in ("--set", f"09_statistics.n_{size}=2")]
    done = ecglib("run", *PTBXL, *few, "--data", small_ptbxl, runs=tmp_path / "runs")
    assert_one_clear_line(done, damaged.name)


def test_convert_says_what_it_found(tmp_path: Path) -> None:
    from ecglib.beit import MaskedImageModel
    from ecglib.checkpoints import save_encoder

    save_encoder(tmp_path / "encoder.safetensors", MaskedImageModel("heartbeit_nano", 8), {})
    done = ecglib("convert", tmp_path / "encoder.safetensors", tmp_path / "out", "--to", "huggingface")
    assert done.returncode == 0, done.stderr
    assert "masked-image model of ecglib, width 96, 4 blocks, 3 heads" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
