"""Cells of a grid that were trained twice, on two processors: the same labels, seed and settings.

Processors round the last digits each in its way, and training carries that on: a trained network is one of
many. An interval over patients is of one of them, and does not hold what another would score.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ecglib.comparisons import difference_of
from ecglib.errors import EcglibError
from ecglib.grid import Cell, run_name
from ecglib.metrics import ScoreSettings, auroc
from ecglib.profiles import KEPT
from ecglib.protocols import choose_step, read_parts
from ecglib.results import KeptResults
from ecglib.style import Table, counts_text, difference_text, listed, model_name, outcome_name

PROTOCOL, PART = "honest", "test"
FOLDERS = (KEPT / "ptbxl-tiny", KEPT / "ptbxl-tiny-elsewhere")


def trained_twice(
    here: Path = FOLDERS[0], elsewhere: Path = FOLDERS[1], settings: ScoreSettings | None = None
) -> pd.DataFrame:
    """AUROC on test of the cells that both folders keep, each read at the step best on its own validation.

    One row a fine-tuned cell of the same settings and weights and of two processors: the columns of `Cell`;
    value, low, high (elsewhere minus here, paired bootstrap over patients), value_a (elsewhere), value_b
    (here), n, n_positive, processor_a, processor_b; n_draws and sd (of the AUROC here over draws of the
    labels, NaN of one). EcglibError for damaged results, and where no such cell stands in both folders.
    """
    ours, theirs = KeptResults.open(here), KeptResults.open(elsewhere)
    both = [cell for cell in ours.cells if cell in theirs.cells and _alike(cell, ours, theirs)]
    if not both:
        raise EcglibError(
            f"{elsewhere}: it keeps no fine-tuned cell of {here} with the same settings and weights; "
            "restore both from git, or train one on another processor with `ecglib grid --export`"
        )
    return pd.DataFrame([_compared(cell, ours, theirs, settings or ScoreSettings()) for cell in both])


def _alike(cell: Cell, *kept: KeptResults) -> bool:
    """Whether a fine-tuned cell has the same settings and weights on several processors, stable on each."""
    makers = [of.cells[cell] for of in kept]
    same = all(made[name] == makers[0][name] for made in makers for name in ("settings", "model"))
    processors = {made["machine"]["processor"] for made in makers}
    stable = not any(of.lack(cell) for of in kept)
    return cell.kind == "finetuned" and same and stable and len(processors) == len(kept)


def _compared(cell: Cell, ours: KeptResults, theirs: KeptResults, settings: ScoreSettings) -> dict[str, Any]:
    again, first = (read_parts(_predictions(kept, cell), PROTOCOL, settings) for kept in (theirs, ours))
    found = difference_of(again, first, PROTOCOL, settings)
    row = found.loc[(found.part == PART) & (found.metric == "auroc")].iloc[0]
    draws = [other for other in ours.cells if replace(other, draw=cell.draw) == cell and not ours.lack(other)]
    return asdict(cell) | {
        **row[["value", "low", "high", "value_a", "value_b", "n", "n_positive"]],
        "processor_a": theirs.cells[cell]["machine"]["processor"],
        "processor_b": ours.cells[cell]["machine"]["processor"],
        "n_draws": len(draws),
        "sd": pd.Series([auroc_on_test(_predictions(ours, draw)) for draw in draws]).std(),
    }


def _predictions(kept: KeptResults, cell: Cell) -> pd.DataFrame:
    return cast(pd.DataFrame, kept.predictions(cell))  # there are some: the cell does not lack


def auroc_on_test(predictions: pd.DataFrame) -> float:
    """AUROC on test at the step best on validation; EcglibError where a class lacks there."""
    step = choose_step(predictions, PROTOCOL, PART)
    rows = predictions.loc[(predictions["part"] == PART) & (predictions["step"] == step)]
    return auroc(rows["y_true"].to_numpy(), rows["y_score"].to_numpy())


def repeats_sentence(twice: pd.DataFrame) -> str:
    """How far AUROCs move from processor to processor, beside how far they move from draw to draw."""
    moved, spread, leads = twice.value.abs(), twice.sd.dropna(), _leads(twice)
    apart = ((twice.low > 0) | (twice.high < 0)).sum()
    here, elsewhere = (listed(twice[name].unique()) for name in ("processor_b", "processor_a"))
    told = [
        f"**Seen here** ({counts_text(twice.n, twice.n_positive)}): {len(twice)} networks were trained on "
        f"{here} and, elsewhere, on {elsewhere}.",
        f"Their AUROC differs by {moved.min():.3f} to {moved.max():.3f}; of these {len(twice)} differences "
        f"{apart or 'none'} can be told from zero by the interval over patients.",
    ]
    if len(spread):
        told += [f"From draw to draw of the labels its SD is {spread.min():.3f} to {spread.max():.3f}."]
    if len(leads):
        turned = (np.sign(leads.value_a) != np.sign(leads.value_b)).sum()
        told += [f"Of HeartBEiT's {len(leads)} leads {turned} change sign."]
    return " ".join(told)


def repeats_table(twice: pd.DataFrame) -> Table:
    """AUROC of each cell here and elsewhere, their difference, and HeartBEiT's lead here and elsewhere."""
    leads = _leads(twice).reindex(twice.index).to_dict("records")
    rows = {}
    for cell, lead in zip(twice.to_dict("records"), leads, strict=True):
        labels = f"{100 * cell['fraction']:g} % of {outcome_name(cell['outcome'])}, {cell['split']}"
        name = f"{model_name(cell['model'])}, {labels}, {run_name(cell['draw'], cell['seed'])}"
        rows[name] = {
            "AUROC": f"{cell['value_b']:.3f}",
            "elsewhere": f"{cell['value_a']:.3f}",
            "difference": difference_text(cell["value"], cell["low"], cell["high"]),
            "SD over draws": f"{cell['sd']:.3f} (n = {cell['n_draws']})"
            if cell["n_draws"] > 1
            else "one draw",
            "HeartBEiT's lead": "" if np.isnan(lead["value_b"]) else f"{lead['value_b']:+.3f}",
            "its lead elsewhere": "" if np.isnan(lead["value_a"]) else f"{lead['value_a']:+.3f}",
        }
    return Table(pd.DataFrame.from_dict(rows, orient="index"))


def _leads(twice: pd.DataFrame) -> pd.DataFrame:
    """HeartBEiT's value_a and value_b minus those of each other model of the same labels."""
    same, scores = ["outcome", "split", "fraction", "draw", "seed"], ["value_a", "value_b"]
    ours = twice.loc[twice.model == "heartbeit"].set_index(same)[scores]
    both = twice.loc[twice.model != "heartbeit"].join(ours, on=same, rsuffix="_ours")
    return pd.DataFrame({score: both[f"{score}_ours"] - both[score] for score in scores}).dropna()
