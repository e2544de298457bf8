"""HeartBEiT beside each other model: which cells are compared, with what difference."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from predicted import SPLITS, cell
from sklearn.metrics import roc_auc_score

from ecglib.difference_tables import difference_table
from ecglib.grid import Cell, GridSettings
from ecglib.metrics import ScoreSettings
from ecglib.pairs import FEWER_LABELS, against_heads, against_others, differences

FEW_DRAWS = ScoreSettings(n_draws=20)
GRID = GridSettings(fractions=(0.1, 1.0), extra_models=(), head_models=("heartbeit",)).cells("stemi")


def made(cells: list[Cell]) -> dict[Cell, pd.DataFrame]:
    """Predictions of the same records for each cell, at one step."""
    return {of: cell(40, steps=(1,), external=False, seed=seed) for seed, of in enumerate(cells)}


def test_differences_are_heartbeit_minus_the_other_on_the_same_records() -> None:
    predictions = made(GRID)
    table = differences(against_others(GRID), predictions.get, FEW_DRAWS)
    row = table[(table.reference_fraction == 0.1) & (table.metric == "auroc")]
    assert row.model.item() == "random"
    tests = [
        predictions[of][predictions[of].part == "test"]
        for of in GRID
        if of.kind == "finetuned" and of.fraction == 0.1
    ]
    ours, theirs = (roc_auc_score(test.y_true, test.y_score) for test in tests)
    assert row.value.item() == pytest.approx(ours - theirs)


def test_a_difference_knows_the_others_score_on_validation() -> None:
    ours = Cell("stemi", "heartbeit", "finetuned", "official", 1.0, 0, 0)
    cells = [ours, replace(ours, model="mobilenetv2")]
    predictions = made(cells)
    theirs = predictions[cells[1]]
    known = theirs.part == "validation"
    theirs.loc[known, "y_score"] = np.where(theirs.y_true[known] == 1, 0.9, 0.1)
    table = differences(against_others(cells), predictions.get, FEW_DRAWS)
    assert (table.on_validation == 1).all()
    assert (table.value_b < 1).all()


def test_few_labels_are_compared_with_all_labels_of_the_others() -> None:
    table = differences(against_others(GRID), made(GRID).get, FEW_DRAWS)
    unequal = table[table.fraction != table.reference_fraction]
    assert set(zip(unequal.fraction, unequal.reference_fraction, strict=True)) == {FEWER_LABELS}
    assert len(table) == 3 * len(unequal), "and each with its own fraction"


def test_without_predictions_there_is_no_difference_but_a_reason() -> None:
    nothing = differences(
        against_others(GRID), lambda of: None, FEW_DRAWS, lack_of=lambda of: "it was not run"
    )
    assert nothing.value.isna().all()
    assert not nothing.estimable.any()
    assert set(nothing.reason) == {"HeartBEiT: it was not run"}
    assert difference_table(nothing, SPLITS).empty
    assert differences([], made(GRID).get, FEW_DRAWS).empty


def test_tuning_is_compared_with_a_head_on_the_same_labels() -> None:
    predictions = made(GRID)
    table = differences(against_heads(GRID), predictions.get, FEW_DRAWS)
    rows = table[table.metric == "auroc"].set_index("fraction")
    assert set(table.model) == {"heartbeit"}, "random weights have no heads in this grid"
    for fraction in (0.1, 1.0):
        tuned, head = (
            roc_auc_score(test.y_true, test.y_score)
            for kind in ("finetuned", "head")
            for test in [predictions[Cell("stemi", "heartbeit", kind, "official", fraction, 0, 0)]]
            for test in [test[test.part == "test"]]
        )
        assert rows.value[fraction] == pytest.approx(tuned - head)
