"""The grid of the experiment: which outcome, model, split, label fraction, draw and seed are run."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ecglib.classifiers import MODELS
from ecglib.errors import EcglibError

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


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """Which cells are run for an outcome (paper, Methods: 1, 10, 25, 50 and 100 % of the labels)."""

    splits: tuple[str, ...] = ("official",)  # seed42 (the paper's 80/20) and/or official (folds 1-8 / 9 / 10)
    fractions: tuple[float, ...] = (0.01, 0.1, 0.25, 0.5, 1.0)  # shares of the training patients
    draws: int = 1  # random draws of each fraction below 100 %
    seeds: int = 1  # seeds of the fresh weights and of the order of training, for each draw
    models: tuple[str, ...] = ("heartbeit", "random")  # fine-tuned at every fraction
    photo_models: tuple[str, ...] = ("mobilenetv2",)  # photograph-pretrained models that are fine-tuned too
    photo_fractions: tuple[float, ...] = (1.0,)  # fractions at which the photo models are fine-tuned
    photo_outcomes: tuple[str, ...] = ("stemi",)  # outcomes for which the photo models are fine-tuned
    head_models: tuple[str, ...] = ("heartbeit", "random", "efficientnet_lite2", "mobilenetv2")  # frozen
    head_fractions: tuple[float, ...] = (0.01, 0.1, 0.25, 0.5, 1.0)  # fractions for heads on frozen features
    head_draws: int = 1  # random draws of each fraction below 100 % for the heads

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        for name in ("models", "photo_models", "head_models"):
            if unknown := set(getattr(self, name)) - set(MODELS):
                raise EcglibError(
                    f"{name}={sorted(unknown)[0]}: no such model; take some of {', '.join(MODELS)}"
                )
        if unknown := set(self.splits) - {"seed42", "official"}:
            raise EcglibError(f"splits={sorted(unknown)[0]}: no such split; take seed42 and/or official")
        for name in ("fractions", "photo_fractions", "head_fractions"):
            if bad := [f for f in getattr(self, name) if not 0 < f <= 1]:
                raise EcglibError(f"{name}={bad[0]}: a label fraction lies above 0 and up to 1; mend it")
        for name in ("draws", "seeds", "head_draws"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name}={getattr(self, name)}: at least 1 is needed; raise it")

    def cells(self, outcome: str) -> list[Cell]:
        """All cells of one outcome, the cheap and telling ones first."""
        finetuned = self._cells(outcome, "finetuned", self.models, self.fractions, self.draws)
        photos = self._cells(outcome, "finetuned", self.photo_models, self.photo_fractions, self.draws)
        heads = self._cells(outcome, "head", self.head_models, self.head_fractions, self.head_draws)
        return [*heads, *finetuned, *(photos if outcome in self.photo_outcomes else ())]

    def _cells(
        self, outcome: str, kind: Kind, models: tuple[str, ...], fractions: tuple[float, ...], draws: int
    ) -> Iterator[Cell]:
        # Drawing all training patients gives the same set each time; a head's optimum has no seed.
        for split, fraction, model in itertools.product(self.splits, fractions, models):
            for draw in range(draws if fraction < 1 else 1):
                for seed in range(self.seeds if kind == "finetuned" else 1):
                    yield Cell(outcome, model, kind, split, fraction, draw, seed)
