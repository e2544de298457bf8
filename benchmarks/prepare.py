"""A hospital's folder of MUSE exports to images on disk: files a second, and memory at two sizes.

Writes folders of 2,000 and 10,000 exports (1.7 GB, in a temporary folder) from 200 made-up recordings of ten
seconds, two of a patient, and runs `ecglib prepare` on each, all of it counted: start, reading, drawing.
Prints files a second and the largest resident memory of the command and of one worker; memory is flat if both
sizes have about the same. Then a run of the small size is killed after its first shard and started again.
Run: python benchmarks/prepare.py [--sizes 2000 10000]
"""

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parent.parent
N_BASES, PER_PATIENT = 200, 2
COMMAND = [sys.executable, "-c", "from ecglib.cli import main; main()", "prepare"]


def made_up(rng: np.random.Generator) -> np.ndarray:
    """Ten seconds of eight leads at 500 Hz in mV (8, 5000): Gaussian P, QRS and T waves, and noise."""
    seconds = np.arange(5000) / 500
    phase = seconds % (period := rng.uniform(0.6, 1.0)) / period
    waves = [np.exp(-(((phase - at) / width) ** 2)) for at, width in ((0.2, 0.03), (0.4, 0.02), (0.7, 0.06))]
    heights = rng.normal([0.1, 0.8, 0.3], [0.03, 0.6, 0.15], (8, 3))
    return heights @ waves + rng.normal(0, 0.02, (8, 5000))


def write_folder(folder: Path, n_files: int) -> None:
    """Write `n_files` exports in folders of 1,000, and the table of their patients beside them."""
    write_muse = runpy.run_path(str(ROOT / "tests" / "muse_files.py"))["write_muse"]
    rng = np.random.default_rng(0)
    folder.mkdir()
    base, mark = folder / "base", "PATIENT-OF-THIS-FILE"
    texts = [write_muse(base, made_up(rng), patient_id=mark).read_bytes() for _ in range(N_BASES)]
    for number in range(n_files):
        part = folder / "exports" / f"{number // 1000:03d}"
        part.mkdir(parents=True, exist_ok=True)
        patient = f"{number // PER_PATIENT:08d}".encode()
        (part / f"{number:06d}.xml").write_bytes(texts[number % N_BASES].replace(mark.encode(), patient))
    patients = np.arange(-(-n_files // PER_PATIENT))
    table = {
        "patient_id": [f"{n:08d}" for n in patients],
        "lvef": 25 + patients % 50,
        "hcm": patients % 3 % 2,
    }
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False)


def start(folder: Path, out: Path) -> subprocess.Popen:
    """Start `ecglib prepare` on a folder of `write_folder`."""
    words = ["--data", folder / "exports", "--table", folder / "labels.csv", "--out", out]
    environment = os.environ | {"XDG_CONFIG_HOME": str(folder / "config")}
    return subprocess.Popen([*COMMAND, *map(str, words)], env=environment, stderr=subprocess.DEVNULL)


def peaks(process: subprocess.Popen) -> tuple[float, float]:
    """Wait; the largest resident memory in MB of the process and of any one of its workers."""
    own, worker = 0, 0
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            own = max(own, parent.memory_info().rss)
            worker = max([worker, *(child.memory_info().rss for child in parent.children())])
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit("ecglib prepare failed")
    return own / 1e6, worker / 1e6


def shards(out: Path) -> dict[Path, int]:
    """When each finished shard was written, in ns."""
    notes = list(out.glob("*/images/*/checksums.json"))
    names = [note.with_name(name) for note in notes for name in json.loads(note.read_text())["files"]]
    return {path: path.stat().st_mtime_ns for path in names if path.suffix == ".npy"}


def kill_and_go_on(folder: Path, out: Path) -> None:
    """Kill a run after its first shard, start it again, and see that the shard was kept."""
    process = start(folder, out)
    while not shards(out):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, began = shards(out), time.perf_counter()
    peaks(start(folder, out))
    kept = sum(shards(out)[path] == written for path, written in before.items())
    print(
        f"killed after {len(before)} of {len(shards(out))} shards: {kept} of them kept, "
        f"the rest in {time.perf_counter() - began:.1f} s"
    )


def main() -> None:
    """Prepare each size and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 10_000])
    sizes = parser.parse_args().sizes
    with tempfile.TemporaryDirectory(prefix="ecglib-prepare-") as name:
        for size in sizes:
            folder = Path(name) / f"{size}"
            write_folder(folder, size)
            began = time.perf_counter()
            own, worker = peaks(start(folder, folder / "out"))
            seconds = time.perf_counter() - began
            print(
                f"{size:,} files: {seconds:.1f} s, {size / seconds:.0f} files/s on {os.cpu_count()} cores; "
                f"peak memory {own:.0f} MB, of a worker {worker:.0f} MB"
            )
        kill_and_go_on(Path(name) / f"{sizes[0]}", Path(name) / "again")


if __name__ == "__main__":
    main()
