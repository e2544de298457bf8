"""Cells trained on two processors: what moved, against scikit-learn; only equal cells are compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from predicted import cell
from sklearn.metrics import roc_auc_score

from ecglib.errors import EcglibError
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings
from ecglib.repeats import repeats_sentence, repeats_table, trained_twice
from ecglib.results import write_results

SETTINGS = ScoreSettings(n_draws=50)
STEPS = {"steps": 600}


def made(processor: str, **changed: Any) -> dict[str, Any]:
    machine = {"processor": processor, "cores": 2}
    return {"settings": STEPS, "model": "m", "commit": "abc", "seconds": 1.0, "machine": machine} | changed


def keep(folder: Path, cells: Mapping[Cell, tuple[Mapping[str, Any], pd.DataFrame | None]]) -> Path:
    head = {"cohort": {"name": "PTB-XL"}, "settings": {}}
    write_results(folder, head, pd.DataFrame({"usable": [True]}), pd.DataFrame({"x": [1.0]}), cells, "")
    return folder


def stemi(model: str, draw: int = 0) -> Cell:
    return Cell("stemi", model, "finetuned", "official", 0.01, draw, 0)


def by_hand(table: pd.DataFrame) -> float:
    """AUROC on test at the step best on validation, by scikit-learn."""
    of = {key: roc_auc_score(rows.y_true, rows.y_score) for key, rows in table.groupby(["part", "step"])}
    best = max(table.step.unique(), key=lambda step: of["validation", step])
    return float(of["test", best])


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path, dict[str, pd.DataFrame]]:
    """HeartBEiT on three draws and MobileNetV2 on one here; both on the first draw elsewhere."""
    names = ("ours", "ours1", "ours2", "theirs", "ours again", "theirs again")
    tables = {name: cell(external=False, seed=i, distance=1 + 0.2 * i) for i, name in enumerate(names)}
    here = {
        stemi("heartbeit"): (made("EPYC"), tables["ours"]),
        stemi("heartbeit", 1): (made("EPYC"), tables["ours1"]),
        stemi("heartbeit", 2): (made("EPYC"), tables["ours2"]),
        stemi("mobilenetv2"): (made("EPYC"), tables["theirs"]),
    }
    elsewhere = {
        stemi("heartbeit"): (made("Xeon"), tables["ours again"]),
        stemi("mobilenetv2"): (made("Xeon"), tables["theirs again"]),
    }
    return keep(tmp_path / "here", here), keep(tmp_path / "elsewhere", elsewhere), tables


def test_what_moved_is_the_difference_of_both_scores(
    both: tuple[Path, Path, dict[str, pd.DataFrame]],
) -> None:
    here, elsewhere, tables = both
    twice = trained_twice(here, elsewhere, SETTINGS).set_index("model")
    auroc = {name: by_hand(table) for name, table in tables.items()}
    ours = twice.loc["heartbeit"]
    assert ours.value_b == pytest.approx(auroc["ours"], abs=1e-12)
    assert ours.value_a == pytest.approx(auroc["ours again"], abs=1e-12)
    assert ours.value == pytest.approx(auroc["ours again"] - auroc["ours"], abs=1e-12)
    assert ours.low < ours.value < ours.high
    spread = np.std([auroc[name] for name in ("ours", "ours1", "ours2")], ddof=1)
    assert (ours.n_draws, ours.sd) == (3, pytest.approx(spread, abs=1e-12))
    assert (twice.loc["mobilenetv2"].n_draws, np.isnan(twice.loc["mobilenetv2"].sd)) == (1, True)
    assert (ours.processor_a, ours.processor_b) == ("Xeon", "EPYC")


def test_the_page_shows_scores_and_leads_of_both(both: tuple[Path, Path, dict[str, pd.DataFrame]]) -> None:
    here, elsewhere, tables = both
    twice = trained_twice(here, elsewhere, SETTINGS)
    auroc = {name: by_hand(table) for name, table in tables.items()}
    table = repeats_table(twice)
    assert table.loc["HeartBEiT, 1 % of STEMI, official, draw 0", "HeartBEiT's lead"] == ""
    row = table.loc["MobileNetV2, 1 % of STEMI, official, draw 0"]
    assert (row["AUROC"], row["elsewhere"]) == (f"{auroc['theirs']:.3f}", f"{auroc['theirs again']:.3f}")
    assert row["HeartBEiT's lead"] == f"{auroc['ours'] - auroc['theirs']:+.3f}"
    assert row["its lead elsewhere"] == f"{auroc['ours again'] - auroc['theirs again']:+.3f}"
    moved = [abs(auroc[f"{name} again"] - auroc[name]) for name in ("ours", "theirs")]
    said = repeats_sentence(twice)
    assert f"differs by {min(moved):.3f} to {max(moved):.3f}; " in said
    assert "2 networks were trained on EPYC and, elsewhere, on Xeon." in said


def test_each_draw_has_a_row_of_its_own(both: tuple[Path, Path, dict[str, pd.DataFrame]]) -> None:
    here, elsewhere, tables = both
    again = {stemi("heartbeit", draw): (made("Xeon"), tables["ours again"]) for draw in range(3)}
    assert len(repeats_table(trained_twice(here, keep(elsewhere, again), SETTINGS))) == 3


@pytest.mark.parametrize(
    ("lead_here", "lead_elsewhere", "told"), [(0.1, -0.1, "1 leads 1 change"), (0.1, 0.2, "1 leads 0 change")]
)
def test_a_lead_that_changes_sign_is_counted(lead_here: float, lead_elsewhere: float, told: str) -> None:
    known = {
        "outcome": "stemi",
        "split": "official",
        "fraction": 0.01,
        "draw": 0,
        "seed": 0,
        "n": 9,
        "n_positive": 3,
    }
    known |= {
        "value": 0.0,
        "low": -0.1,
        "high": 0.1,
        "sd": np.nan,
        "processor_a": "Xeon",
        "processor_b": "EPYC",
    }
    scores = {"heartbeit": (0.7 + lead_elsewhere, 0.7 + lead_here), "mobilenetv2": (0.7, 0.7)}
    rows = [known | {"model": m, "value_a": a, "value_b": b} for m, (a, b) in scores.items()]
    assert told in repeats_sentence(pd.DataFrame(rows))


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"steps": 40}},
        {"model": "other"},
        {"unstable": "loss"},
        {"machine": {"processor": "EPYC"}},
    ],
)
def test_only_cells_that_differ_in_nothing_but_the_processor_are_compared(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    table, other = cell(external=False), made("Xeon", **changed)
    here = keep(tmp_path / "here", {stemi("heartbeit"): (made("EPYC"), table)})
    again = None if "unstable" in changed else table
    elsewhere = keep(tmp_path / "elsewhere", {stemi("heartbeit"): (other, again)})
    with pytest.raises(
        EcglibError, match=r"elsewhere: it keeps no fine-tuned cell of .* restore both from git"
    ):
        trained_twice(here, elsewhere, SETTINGS)
