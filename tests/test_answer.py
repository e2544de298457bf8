"""The central claim: two sentences from kept predictions, a verdict by rule, none where nothing is kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from predicted import cell
from sklearn.metrics import roc_auc_score

from ecglib import pages
from ecglib.answer import (
    HOW,
    NO_ANSWER,
    NOT_TUNED,
    PROFILE,
    Answer,
    Mean,
    _caveat,
    _sentence,
    _table,
    central_answer,
)
from ecglib.errors import EcglibError
from ecglib.grid import Cell, Kind
from ecglib.metrics import ScoreSettings
from ecglib.profiles import ROOT
from ecglib.results import KeptResults, write_results
from ecglib.style import model_name

MODELS: tuple[str, ...] = ("heartbeit", "random", "efficientnet_lite2", "mobilenetv2")
SETTINGS = ScoreSettings(n_draws=50)


def keep(
    folder: Path, distances: Mapping[str, float], kinds: Sequence[Kind] = ("finetuned",), n_draws: int = 2
) -> dict[str, list[pd.DataFrame]]:
    """Keep some draws at 1 % and one at 100 % for each model, whose classes lie `distances` apart."""
    cells, smallest = {}, {}
    for i, (model, distance) in enumerate(distances.items()):
        runs = {
            run: cell(external=False, seed=10 * i + k, distance=distance)
            for k, run in enumerate([*((0.01, draw) for draw in range(n_draws)), (1.0, 0)])
        }
        made = {"settings": {}, "commit": "abc", "seconds": 1.0}
        for (fraction, draw), table in runs.items():
            for kind in kinds:
                cells[Cell("stemi", model, kind, "official", fraction, draw, 0)] = (made, table)
        smallest[model] = [table for (fraction, _), table in runs.items() if fraction < 1]
    head = {"cohort": {"name": "PTB-XL"}, "settings": {}}
    write_results(folder, head, pd.DataFrame({"usable": [True]}), pd.DataFrame({"x": [1.0]}), cells, "")
    return smallest


def by_hand(table: pd.DataFrame, part: str) -> float:
    """AUROC of a part at the step best on validation, by scikit-learn."""
    scores = {
        (step, name): roc_auc_score(rows.y_true, rows.y_score)
        for name, of_part in table.groupby("part")
        for step, rows in of_part.groupby("step")
    }
    best = max(table.step.unique(), key=lambda step: scores[step, "validation"])
    return float(scores[best, part])


def test_the_numbers_are_means_over_draws_at_the_smallest_fraction(tmp_path: Path) -> None:
    distances = dict(zip(MODELS, (1.6, 0.4, 0.9, 0.6), strict=True))
    smallest = keep(tmp_path, distances)
    said = central_answer(tmp_path, SETTINGS)
    mean = {model: np.mean([by_hand(t, "test") for t in tables]) for model, tables in smallest.items()}
    on_validation = {
        model: np.mean([by_hand(t, "validation") for t in tables])
        for model, tables in smallest.items()
        if model not in ("heartbeit", "random")
    }
    best = max(on_validation, key=lambda model: on_validation[model])
    lead, untrained = (f"{mean['heartbeit'] - mean[other]:+.3f} (" for other in (best, "random"))
    assert "With 1 % of the labels of PTB-XL, our HeartBEiT's lead in AUROC over" in said
    assert f"is, with all weights fine-tuned, {lead}" in said
    name, size, ours, theirs, *leads = shown(said)
    assert (name, size) == ("STEMI, fine-tuned, 2 draws", "50 of 200")
    assert (ours, theirs) == (f"{mean['heartbeit']:.3f}", f"{mean[best]:.3f}, {model_name(best)}")
    assert [leads[0].startswith(lead), leads[1].startswith(untrained)] == [True, True]


def test_the_leads_with_the_most_labels_stand_beside_those_with_the_fewest(tmp_path: Path) -> None:
    keep(tmp_path, dict(zip(MODELS, (1.6, 0.4, 0.9, 0.6), strict=True)))
    said = central_answer(tmp_path, SETTINGS)
    kept = KeptResults.open(tmp_path)
    made = {
        model: kept.predictions(Cell("stemi", model, "finetuned", "official", 1.0, 0, 0)) for model in MODELS
    }
    tested, validated = (
        {model: by_hand(table, part) for model, table in made.items() if table is not None}
        for part in ("test", "validation")
    )
    best = max(MODELS[2:], key=lambda model: validated[model])
    lead = f"{tested['heartbeit'] - tested[best]:+.3f} ("
    assert f"**With more labels** that lead is, with all weights fine-tuned (100 %), {lead}" in said
    assert f"for STEMI (over {model_name(best)}). Each fine-tuned network of these was trained once" in said
    fewest = {cell: (kept.cells[cell], kept.predictions(cell)) for cell in kept.cells if cell.fraction < 1}
    head = {"cohort": {"name": "PTB-XL"}, "settings": {}}
    write_results(tmp_path, head, pd.DataFrame({"usable": [True]}), pd.DataFrame({"x": [1.0]}), fewest, "")
    assert "With more labels" not in central_answer(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [(2.5, 0.2, "**holds**"), (0.2, 2.5, "**is contradicted**"), (1.0, 1.0, "**is not shown**")],
)
def test_the_interval_decides(tmp_path: Path, ours: float, theirs: float, verdict: str) -> None:
    keep(tmp_path, dict(zip(MODELS, (ours, 1.0, theirs, theirs), strict=True)), n_draws=5)
    assert verdict in central_answer(tmp_path, SETTINGS)


def mean(value: float) -> Mean:
    return Mean("mobilenetv2", np.array([value]), np.full((1, 10), value), value, 100, 20)


ONE_DRAW = Answer("stemi", 0.01, 1, *(mean(value) for value in (0.8, 0.7, 0.6)), settings=SETTINGS)


def test_a_verdict_of_one_draw_is_called_so() -> None:
    lead = "+0.100 (+0.100 to +0.100)"
    assert _sentence([ONE_DRAW]) == f"{lead} for STEMI, by one draw of the labels: the claim **holds**."
    row = _table({"head": [ONE_DRAW]}).loc["STEMI, head, 1 draw"]
    assert row.tolist()[1:4] == ["0.800", "0.700, MobileNetV2", lead]


def test_outcomes_share_a_verdict_or_have_each_their_own() -> None:
    equal = Mean("mobilenetv2", np.array([0.7, 0.8]), np.full((2, 10), 0.75), 0.75, 100, 20)
    two = Answer("mi_any", 0.01, 2, equal, equal, equal, settings=SETTINGS)
    assert _sentence([two, replace(two, outcome="acute_stemi")]) == (
        "+0.000 (+0.000 to +0.000) for any infarction and +0.000 (+0.000 to +0.000) for acute STEMI: "
        "the claim **is not shown**."
    )
    said = _sentence([ONE_DRAW, two, replace(ONE_DRAW, outcome="acute_stemi")])
    assert said.endswith(
        "the claim **holds** for STEMI and acute STEMI and **is not shown** for any infarction."
    )


def test_a_lead_that_random_weights_share_is_not_called_pretrainings() -> None:
    shared = replace(ONE_DRAW, outcome="acute_stemi", untrained=mean(0.8))
    said = _caveat({"finetuned": [ONE_DRAW], "head": [ONE_DRAW, shared]})
    assert said.startswith("**But** for acute STEMI with a linear head on frozen features, the same network")
    none = replace(shared, photographs=mean(0.9))
    assert not _caveat({"finetuned": [ONE_DRAW], "head": [none]}), "where the claim does not hold"


def sentences(said: str) -> list[str]:
    """The sentences behind the name of the claim."""
    return re.split(r"(?<=\.) (?=[A-Z])", said.partition("\n")[0])[1:]


def shown(said: str) -> list[str]:
    """The texts of the rows of the table, one after the other."""
    rows = said.partition("<tbody>")[2].replace('<span style="white-space: nowrap">', "")
    return re.findall(r"<t[hd]>(.*?)</t[hd]>", rows.replace("</span>", ""))


def test_heads_answer_where_nothing_was_fine_tuned(tmp_path: Path) -> None:
    keep(tmp_path, dict.fromkeys(MODELS, 1.0), ["head"])
    answer, lack = sentences(central_answer(tmp_path, SETTINGS))
    assert "our HeartBEiT's lead" in answer
    assert HOW["head"] in answer
    assert lack == NOT_TUNED


def test_the_answer_is_one_sentence_of_fine_tuned_networks_and_one_of_heads(tmp_path: Path) -> None:
    distances = dict(zip(MODELS, (1.6, 0.4, 1.2, 0.3), strict=True))
    keep(tmp_path, distances, ["finetuned", "head"])
    tuned, heads = sentences(central_answer(tmp_path, SETTINGS))
    assert HOW["finetuned"] in tuned
    assert heads.startswith("With a linear head on frozen features it is ")
    rows = shown(central_answer(tmp_path, SETTINGS))
    of_tuned, of_heads = rows[:6], rows[6:]
    assert (of_tuned[0], of_heads[0]) == ("STEMI, fine-tuned, 2 draws", "STEMI, head, 2 draws")
    assert of_tuned[1:] == of_heads[1:], "the same predictions, the same numbers"


def test_the_answer_stands_on_the_first_screen() -> None:
    beginning = (ROOT / "book" / "index.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert "```{include} answer.md\n```" in beginning


def test_a_book_asks_once_for_each_state_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(pages, "central_answer", Mock(side_effect=["none", "one", "another"]))
    assert pages._answer(tmp_path) == "none"
    keep(tmp_path / "kept" / PROFILE, dict.fromkeys(MODELS, 1.0))
    assert [pages._answer(tmp_path), pages._answer(tmp_path)] == ["one", "one"]
    keep(tmp_path / "kept" / PROFILE, dict.fromkeys(MODELS, 2.0))
    assert pages._answer(tmp_path) == "another"


def test_without_results_or_without_a_model_there_is_no_answer(tmp_path: Path) -> None:
    assert central_answer(tmp_path) == NO_ANSWER
    keep(tmp_path, dict.fromkeys(("heartbeit", "efficientnet_lite2"), 1.0))
    assert central_answer(tmp_path, SETTINGS) == NO_ANSWER


def test_changed_predictions_are_noticed(tmp_path: Path) -> None:
    keep(tmp_path, dict.fromkeys(MODELS, 1.0))
    path = next(tmp_path.glob("stemi-*.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EcglibError, match="missing, or not as"):
        central_answer(tmp_path, SETTINGS)
