"""The grid: what is run, once each, in an order in which a part of it is already a result."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from ecglib.errors import EcglibError
from ecglib.grid import Cell, GridSettings, run_name
from ecglib.profiles import load_profile

ALL = ("heartbeit", "random", "efficientnet_lite2", "mobilenetv2")


@pytest.fixture
def tiny() -> dict[str, list[Cell]]:
    profile = load_profile("ptbxl-tiny")
    return {outcome: profile.settings(GridSettings).cells(outcome) for outcome in profile.outcomes}


def test_ptbxl_tiny_runs_what_its_pages_claim(tiny: dict[str, list[Cell]]) -> None:
    cells = [cell for of_one in tiny.values() for cell in of_one]
    finetuned = [cell for cell in cells if cell.kind == "finetuned"]
    counts = Counter((c.outcome, c.split, c.fraction) for c in finetuned if c.model == "heartbeit")
    assert counts == {
        **{
            (outcome, "official", f): n
            for outcome in ("stemi", "mi_any")
            for f, n in ((0.01, 3), (0.1, 2), (1.0, 1))
        },
        ("stemi", "seed42", 0.01): 1,
        ("stemi", "seed42", 1.0): 1,
    }
    assert len(finetuned) == 56
    assert {cell.seed for cell in finetuned} == {0}
    heads = [cell for cell in cells if cell.kind == "head"]
    assert Counter(c.fraction for c in heads) == dict.fromkeys((0.01, 0.1, 0.25, 0.5), 240) | {1.0: 12}
    assert {cell.split for cell in heads} == {"official"}
    assert set(Counter(c.model for c in finetuned).values()) == {14}


def test_a_part_of_the_grid_is_already_a_result(tiny: dict[str, list[Cell]]) -> None:
    assert {cell.kind for cell in tiny.pop("acute_stemi")} == {"head"}
    for cells in tiny.values():
        kinds = [kind for kind, _ in itertools.groupby(cells, lambda cell: cell.kind)]
        assert kinds == ["head", "finetuned"], "what is cheap comes first"
        first = [cell for cell in cells if cell.kind == "finetuned"][:12]
        assert [(c.fraction, c.model) for c in first] == list(itertools.product((0.01, 0.1, 1.0), ALL))
        assert {(cell.draw, cell.split) for cell in first} == {(0, "official")}


def test_heads_of_all_outcomes_come_before_any_fine_tuning() -> None:
    cells = GridSettings().all_cells(["hcm", "stemi"])
    kinds = [(kind, {c.outcome for c in group}) for kind, group in itertools.groupby(cells, lambda c: c.kind)]
    assert kinds == [("head", {"hcm", "stemi"}), ("finetuned", {"hcm", "stemi"})]


def test_one_kind_of_training_is_enough() -> None:
    heads, finetuned = GridSettings(models=()).cells("hcm"), GridSettings(head_models=()).cells("hcm")
    assert {cell.kind for cell in heads} == {"head"}
    assert {cell.kind for cell in finetuned} == {"finetuned"}


def test_no_cell_is_run_twice() -> None:
    settings = GridSettings(models=ALL, extra_models=ALL, draws=(4, 3, 2, 2, 9), seeds=2, head_draws=3)
    cells = settings.cells("stemi")
    assert len(cells) == len(set(cells))
    of_one = [c for c in cells if c.kind == "finetuned" and c.model == "random" and c.fraction == 1]
    assert [(cell.draw, cell.seed) for cell in of_one] == [(0, 0), (0, 1)], (
        "all labels can be drawn only once"
    )
    assert {replace(cell, draw=0, seed=0) for cell in cells} == set(
        GridSettings(models=ALL, extra_models=ALL).cells("stemi")
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("resnet",)}, "models=resnet: no such model"),
        ({"extra_models": ("resnet",)}, "extra_models=resnet"),
        ({"splits": ("folds",)}, "splits=folds: no such split"),
        ({"extra_split": "folds"}, "extra_split=folds"),
        ({"extra_fractions": (2.0,)}, r"extra_fractions=2\.0"),
        ({"draws": (1, 2)}, r"draws=\[1, 2\]: give one number, or one for each of fractions"),
        ({"draws": (0,)}, "draws=0: at least 1"),
        ({"head_draws": 0}, "head_draws=0"),
        ({"splits": ()}, r"splits=\[\]: at least one is needed"),
        ({"fractions": ()}, r"fractions=\[\]"),
        ({"head_fractions": ()}, r"head_fractions=\[\]"),
        ({"draws": ()}, r"draws=\[\]"),
        ({"fractions": (0.1, 1.0, 0.10)}, r"fractions=0\.1: it is named twice; name it once"),
        ({"extra_fractions": (1.0, 1.0)}, r"extra_fractions=1\.0: it is named twice"),
        ({"head_fractions": (0.5, 0.5)}, r"head_fractions=0\.5: it is named twice"),
        ({"head_models": ("random", "random")}, "head_models=random: it is named twice"),
        ({"splits": ("official", "official")}, "splits=official: it is named twice"),
        ({"models": (), "head_models": ()}, r"models=\[\], head_models=\[\]: no network"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(EcglibError, match=message):
        GridSettings(**settings)


def test_several_runs_of_a_cell_are_told_apart_by_draw_and_seed() -> None:
    assert [run_name(0, 0), run_name(2, 0), run_name(1, 3)] == ["draw 0", "draw 2", "draw 1, seed 3"]
