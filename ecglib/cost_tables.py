"""Tables and sentences of the page on cost, and what `benchmarks/pretrain.py` measured."""

from pathlib import Path
from typing import Any

import pandas as pd

from ecglib.cost import (
    N_GPUS,
    PAPER_ECGS,
    PAPER_EPOCH_HOURS,
    PAPER_EPOCHS,
    PAPER_GPU,
    PAPER_GPUS,
    PEAKS,
    CostSettings,
    cost,
    paper_utilisation,
    useful_flops,
)
from ecglib.provenance import read_made
from ecglib.style import Table

SPEED = Path(__file__).resolve().parent.parent / "book" / "results" / "speed"  # a file for each processor


def cost_table(settings: CostSettings) -> Table:
    """Days of pretraining, by the kind of GPU and their number."""
    days = cost(settings).pivot(index="gpu", columns="n_gpus", values="days").loc[list(PEAKS)]
    names = {n: f"{n} GPU{'s' if n > 1 else ''} (days)" for n in N_GPUS}
    peaks = pd.Series({gpu: f"{peak / 1e12:.0f}" for gpu, peak in PEAKS.items()})
    table = days.round(1).rename(columns=names).rename_axis(index=None, columns=None)
    table.insert(0, "peak (TFLOP/s, bfloat16)", peaks)
    return Table(table)


def work_sentence(settings: CostSettings) -> str:
    """How much is to be computed, and how much of its GPUs the paper used."""
    flops, images = useful_flops(settings.size), settings.n_ecgs * settings.epochs
    speed, days = PAPER_ECGS / PAPER_EPOCH_HOURS / 3600, PAPER_EPOCH_HOURS * PAPER_EPOCHS / 24
    return (
        f"One image costs {flops / 1e9:.1f} GFLOP in `{settings.size}`; {settings.n_ecgs:,} ECGs, each seen "
        f"{settings.epochs} times, {flops * images:.2g} FLOP. At six hours an epoch the paper's "
        f"{PAPER_GPUS} {PAPER_GPU}s took in {speed:.0f} images a second and {days:.0f} days in all: "
        f"**{100 * paper_utilisation():.1f} %** of what they can do."
    )


def storage_sentence(settings: CostSettings) -> str:
    """What the corpus takes on disk, and how fast it must be read."""
    fastest = cost(settings).images_per_second.max()
    return (
        f"As uint8 images of 224 x 224 the corpus takes {settings.n_ecgs * 224**2 / 1e9:,.0f} GB, its tokens "
        f"{settings.n_ecgs * 196 * 2 / 1e9:.1f} GB. The fastest of these machines reads "
        f"{fastest * 224**2 / 1e6:,.0f} MB a second."
    )


def measured_speed(folder: Path = SPEED) -> Table:
    """What `benchmarks/pretrain.py --out` measured: a row for each processor, network and contender.

    Raises EcglibError where there is no file in the folder or one was written otherwise.
    """
    runs = [(made["machine"]["processor"], row) for made in _measured(folder) for row in made["rows"]]
    table = {
        "images a second": [f"{row['images_per_second']:.2f}" for _, row in runs],
        "of the peak": [f"{100 * row['utilisation']:.0f} %" for _, row in runs],
        "ecglib's lead": [f"{row['ratio']:.2f} times" if row["ratio"] != 1 else "" for _, row in runs],
    }
    index = [(processor, row["size"], row["contender"]) for processor, row in runs]
    names = ["processor", "network", "program"]
    return Table(pd.DataFrame(table, pd.MultiIndex.from_tuples(index, names=names)))


def measured_sentence(folder: Path = SPEED) -> str:
    """On what machines, with what code and how `measured_speed` came about."""
    runs = [
        f"{made['machine']['processor']} ({made['threads']} threads, {made['precision']}, batches of "
        f"{made['batch_size']}, commit `{made['commit'][:12]}`; "
        f"peak {max(row['peak_gflops'] for row in made['rows']):,.0f} GFLOP/s)"
        for made in _measured(folder)
    ]
    return f"Measured by `python benchmarks/pretrain.py --out FILE` on {' and '.join(runs)}."


def _measured(folder: Path) -> list[dict[str, Any]]:
    keys = ("rows", "machine", "threads", "precision", "batch_size", "commit")
    paths = sorted(folder.glob("*.json")) or [folder / "mine.json"]  # which is missing, and said to be
    return [read_made(path, keys, f"python benchmarks/pretrain.py --out {path}") for path in paths]
