"""The grid of the experiment: which outcome, model, split, label fraction, draw and seed are run."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ecglib.classifiers import MODELS
from ecglib.errors import EcglibError
from ecglib.splits import SPLITS

Kind = Literal["finetuned", "head"]


@dataclass(frozen=True, order=True)
class Cell:
    """One grid cell: a model trained once on one draw of one label fraction of one outcome."""

    outcome: str
    model: str
    kind: Kind  # "finetuned": all weights; "head": a linear head on cached frozen features
    split: str
    fraction: float
    draw: int
    seed: int

    def __str__(self) -> str:
        """What the cell is, in a line."""
        run = run_name(self.draw, self.seed)
        return f"{self.model} {self.kind}, {100 * self.fraction:g} % of {self.outcome}, {self.split}, {run}"


def run_name(draw: int, seed: int) -> str:
    """Which of several runs of a cell: its draw of the labels, and its seed where that is not the first."""
    return f"draw {draw}" + (f", seed {seed}" if seed else "")


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """Which cells are run for an outcome (paper, Methods: 1, 10, 25, 50 and 100 % of the labels)."""

    splits: tuple[str, ...] = ("official",)  # seed42 (the paper's 80/20) and/or official (folds 1-8 / 9 / 10)
    fractions: tuple[float, ...] = (0.01, 0.1, 0.25, 0.5, 1.0)  # shares of the training patients
    draws: tuple[int, ...] = (1,)  # random draws of every fraction below 100 %, or of each, in their order
    seeds: int = 1  # seeds of the fresh weights and of the order of training, for each draw
    models: tuple[str, ...] = ("heartbeit", "random")  # fine-tuned at every fraction
    extra_models: tuple[str, ...] = ("mobilenetv2",)  # fine-tuned besides, once at each of these:
    extra_fractions: tuple[float, ...] = (1.0,)  # fractions of the extra models
    extra_outcomes: tuple[str, ...] = ("stemi",)  # outcomes of the extra models
    extra_split: str = "official"  # split of the extra models
    head_models: tuple[str, ...] = ("heartbeit", "random", "efficientnet_lite2", "mobilenetv2")  # frozen
    head_fractions: tuple[float, ...] = (0.01, 0.1, 0.25, 0.5, 1.0)  # fractions for heads on frozen features
    head_draws: int = 1  # random draws of each fraction below 100 % for the heads
    head_outcomes: tuple[str, ...] = ()  # outcomes that have heads on frozen features alone

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        for name in ("splits", "fractions", "head_fractions", "draws"):
            if not getattr(self, name):
                raise EcglibError(f"{name}=[]: at least one is needed; name it")
        if not self.models and not self.head_models:
            raise EcglibError("models=[], head_models=[]: no network for every outcome; name one in either")
        models = ("models", "extra_models", "head_models")
        fractions = ("fractions", "extra_fractions", "head_fractions")
        for name in models:
            if unknown := set(getattr(self, name)) - set(MODELS):
                raise EcglibError(
                    f"{name}={sorted(unknown)[0]}: no such model; take some of {', '.join(MODELS)}"
                )
        for name, splits in {"splits": self.splits, "extra_split": (self.extra_split,)}.items():
            if unknown := set(splits) - set(SPLITS):
                known = ", ".join(SPLITS)
                raise EcglibError(f"{name}={sorted(unknown)[0]}: no such split; take one of {known}")
        for name in fractions:
            if bad := [f for f in getattr(self, name) if not 0 < f <= 1]:
                raise EcglibError(f"{name}={bad[0]}: a label fraction lies above 0 and up to 1; mend it")
        for name in ("splits", *models, *fractions):
            named = getattr(self, name)
            if twice := [value for value in named if named.count(value) > 1]:
                raise EcglibError(f"{name}={twice[0]}: it is named twice; name it once")
        if len(self.draws) not in (1, len(self.fractions)):
            raise EcglibError(f"draws={list(self.draws)}: give one number, or one for each of fractions")
        counts = {"draws": min(self.draws), "seeds": self.seeds, "head_draws": self.head_draws}
        for name, count in counts.items():
            if count < 1:
                raise EcglibError(f"{name}={count}: at least 1 is needed; raise it")

    def cells(self, outcome: str) -> list[Cell]:
        """All cells of one outcome, in the order in which a part of them tells most.

        Heads first, which are cheap; then all models on the first draw of each fraction from the smallest on,
        so that curves are whole before there are more draws of them.
        """
        heads = _cells(
            outcome, "head", self.head_models, self.splits, self.head_fractions, (self.head_draws,), 1
        )
        if outcome in self.head_outcomes:
            return list(heads)
        finetuned = _cells(
            outcome, "finetuned", self.models, self.splits, self.fractions, self.draws, self.seeds
        )
        fractions = self.extra_fractions if outcome in self.extra_outcomes else ()
        extra = _cells(outcome, "finetuned", self.extra_models, (self.extra_split,), fractions, (1,), 1)
        return list(dict.fromkeys([*heads, *finetuned, *extra]))

    def all_cells(self, outcomes: Sequence[str]) -> list[Cell]:
        """The cells of all outcomes in that order: the heads of all before the first that is fine-tuned."""
        cells = [cell for outcome in outcomes for cell in self.cells(outcome)]
        return sorted(cells, key=lambda cell: cell.kind != "head")


def _cells(
    outcome: str,
    kind: Kind,
    models: tuple[str, ...],
    splits: tuple[str, ...],
    fractions: tuple[float, ...],
    draws: tuple[int, ...],
    seeds: int,
) -> Iterator[Cell]:
    # Drawing all training patients gives the same set each time; a head's optimum has no seed.
    each = draws if len(draws) == len(fractions) else draws * len(fractions)
    n_draws = {f: n if f < 1 else 1 for f, n in zip(fractions, each, strict=True)}
    for draw, seed in itertools.product(range(max(n_draws.values(), default=0)), range(seeds)):
        for split, fraction, model in itertools.product(splits, fractions, models):
            if draw < n_draws[fraction]:
                yield Cell(outcome, model, kind, split, fraction, draw, seed)
