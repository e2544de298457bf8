"""What the paper's pretraining would cost: operations over what a GPU can do, at a stated share of its peak.

Only the operations are counted here; no GPU was at hand. Peaks are the makers' figures for dense matrix
products in bfloat16 (data sheets of the A100, the H100 SXM and the L40S, NVIDIA 2020-2023).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.beit import SIZES
from ecglib.errors import EcglibError
from ecglib.masking import PATCH_SIZE
from ecglib.style import Table

TRAINING_PASSES = 3  # a forward pass and a backward pass of twice its cost
PEAKS = {"A100": 312e12, "H100": 989e12, "L40S": 362e12}  # operations a second
N_GPUS = (1, 4, 8)
# The paper: 8.5 million ECGs, about six hours an epoch on four A100s, 300 epochs.
PAPER_ECGS, PAPER_EPOCHS, PAPER_EPOCH_HOURS, PAPER_GPUS, PAPER_GPU = 8_500_000, 300, 6.0, 4, "A100"
PAPER_VOCAB, PAPER_TARGET = 8192, 78
SPEED = Path(__file__).resolve().parent.parent / "book" / "results" / "speed.json"


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """The pretraining whose cost is computed, and what is assumed of the GPUs."""

    size: str = "heartbeit_base"  # network: heartbeit_nano, heartbeit_tiny or heartbeit_base (the paper's)
    n_ecgs: int = PAPER_ECGS  # images in the corpus
    epochs: int = PAPER_EPOCHS  # how often each image is seen
    utilisation: float = 0.4  # assumed share of a GPU's peak that goes into useful operations, 0 to 1
    parallel: float = 0.95  # assumed share that is left when several GPUs work together, 0 to 1

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise EcglibError(f"size must be one of {', '.join(SIZES)}, not {self.size!r}")
        for name in ("n_ecgs", "epochs"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("utilisation", "parallel"):
            if not 0 < getattr(self, name) <= 1:
                raise EcglibError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")


def useful_flops(size: str, vocab_size: int = PAPER_VOCAB, target: int = PAPER_TARGET) -> float:
    """Operations to learn from one image of 224 x 224: three forward passes of the plain network.

    Matrix products alone, two operations for each product and sum; the head sees `target` patches. Shortcuts
    that a program takes do not lower it: utilisation compares programs.
    """
    width, depth, _ = SIZES[size]
    patches, pixels = 14 * 14, 3 * PATCH_SIZE**2
    tokens = patches + 1
    linear = 12 * width * width  # queries, keys, values: 3; projection: 1; two layers of the MLP: 4 each
    block = tokens * linear + 2 * tokens * tokens * width
    return TRAINING_PASSES * 2 * (depth * block + patches * pixels * width + target * width * vocab_size)


def paper_utilisation() -> float:
    """Share of its four GPUs' peak that the paper's pretraining used, by its own figures."""
    images_a_second = PAPER_ECGS / (PAPER_EPOCH_HOURS * 3600)
    return images_a_second * useful_flops("heartbeit_base") / (PAPER_GPUS * PEAKS[PAPER_GPU])


def cost(settings: CostSettings) -> pd.DataFrame:
    """One row for each GPU and number of them: gpu, n_gpus, images_per_second, hours, days, gpu_hours."""
    flops = useful_flops(settings.size)
    rows = []
    for gpu, peak in PEAKS.items():
        for n in N_GPUS:
            speed = n * peak * settings.utilisation * (settings.parallel if n > 1 else 1) / flops
            hours = settings.n_ecgs * settings.epochs / speed / 3600
            row = {"gpu": gpu, "n_gpus": n, "images_per_second": speed, "hours": hours, "days": hours / 24}
            rows.append(row | {"gpu_hours": hours * n})
    return pd.DataFrame(rows)


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


def over_utilisation(settings: CostSettings) -> pd.DataFrame:
    """Days on the paper's own GPUs over the share of their peak that is used: utilisation, days."""
    shares = np.geomspace(0.02, 0.8, 60)
    images, flops = settings.n_ecgs * settings.epochs, useful_flops(settings.size)
    days = images * flops / (shares * PAPER_GPUS * PEAKS[PAPER_GPU]) / 86400
    return pd.DataFrame({"utilisation": shares, "days": days})


def measured_speed(path: Path = SPEED) -> Table:
    """What `benchmarks/pretrain.py --out` measured when it last ran: a row for each network and contender.

    Raises EcglibError where the file is missing or was written otherwise.
    """
    rows = _measured(path)["rows"]
    table = {
        "images a second": [f"{row['images_per_second']:.2f}" for row in rows],
        "of the peak": [f"{100 * row['utilisation']:.0f} %" for row in rows],
        "ecglib's lead": [f"{row['ratio']:.2f} times" if row["ratio"] != 1 else "" for row in rows],
    }
    index = [[row[name] for row in rows] for name in ("size", "contender")]
    return Table(pd.DataFrame(table, pd.MultiIndex.from_arrays(index, names=["network", "program"])))


def measured_sentence(path: Path = SPEED) -> str:
    """On what machine, with what code and how `measured_speed` came about."""
    made = _measured(path)
    return (
        f"Measured on {made['machine']['processor']}, {made['threads']} threads, {made['precision']}, "
        f"batches of {made['batch_size']}, commit `{made['commit'][:12]}`, by "
        "`python benchmarks/pretrain.py --out FILE`."
    )


def _measured(path: Path) -> dict[str, Any]:
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        if {"rows", "machine", "threads", "precision", "batch_size", "commit"} <= measured.keys():
            return measured
        reason = "a key is missing"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise EcglibError(f"{path} cannot be read ({reason}): run python benchmarks/pretrain.py --out {path}")
