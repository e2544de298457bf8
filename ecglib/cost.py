"""What the paper's pretraining would cost: operations over what a GPU can do, at a stated share of its peak.

Only the operations are counted here; no GPU was at hand. Peaks are the makers' figures for dense matrix
products in bfloat16 (data sheets of the A100, the H100 SXM and the L40S, NVIDIA 2020-2023).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecglib.beit import SIZES
from ecglib.errors import EcglibError
from ecglib.masking import PATCH_SIZE
from ecglib.patchbook import GRID

TRAINING_PASSES = 3  # a forward pass and a backward pass of twice its cost
PEAKS = {"A100": 312e12, "H100": 989e12, "L40S": 362e12}  # operations a second
N_GPUS = (1, 4, 8)
# The paper: 8.5 million ECGs, about six hours an epoch on four A100s, 300 epochs.
PAPER_ECGS, PAPER_EPOCHS, PAPER_EPOCH_HOURS, PAPER_GPUS, PAPER_GPU = 8_500_000, 300, 6.0, 4, "A100"
PAPER_VOCAB, PAPER_TARGET = 8192, 78


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
    patches, pixels = GRID**2, 3 * PATCH_SIZE**2
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


def over_utilisation(settings: CostSettings) -> pd.DataFrame:
    """Days on the paper's own GPUs over the share of their peak that is used: utilisation, days."""
    shares = np.geomspace(0.02, 0.8, 60)
    images, flops = settings.n_ecgs * settings.epochs, useful_flops(settings.size)
    days = images * flops / (shares * PAPER_GPUS * PEAKS[PAPER_GPU]) / 86400
    return pd.DataFrame({"utilisation": shares, "days": days})
