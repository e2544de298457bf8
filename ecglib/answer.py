"""The paper's central claim, answered in two sentences from the predictions that are kept with the book.

The claim: with few labels a network pretrained on ECGs tells patients apart better than one pretrained on
photographs. It is judged by the interval of a difference, by a rule; no verdict is typed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecglib.grid import Cell
from ecglib.intervals import percentile
from ecglib.metrics import ScoreSettings, auroc
from ecglib.protocols import read
from ecglib.resampling import mean_auroc_draws
from ecglib.results import CELLS, KeptResults
from ecglib.style import model_name, outcome_name

PROFILE = "ptbxl-tiny"
OURS, UNTRAINED = "heartbeit", "random"
SPLIT, PART = "official", "test"
HOW = {
    "finetuned": "fine-tuned",
    "head": "a linear head on its frozen features (fine-tuned networks are not among the kept results yet)",
}
NO_ANSWER = (
    "**The central claim** (with few labels, pretraining on ECGs beats pretraining on photographs) has no "
    f"answer yet: no results of profile `{PROFILE}` are kept with this book. "
    f"`ecglib grid {PROFILE} --data PTBXL_DIR --export book/results/{PROFILE}` makes them.\n"
)


@dataclass(frozen=True)
class Mean:
    """AUROC on test at the step best on validation, the mean over draws of the labels."""

    model: str
    value: float
    draws: np.ndarray  # (n_draws,) of the bootstrap over patients, the same for all models
    on_validation: float
    n: int  # ECGs of test
    n_positive: int


@dataclass(frozen=True)
class Answer:
    """One outcome: HeartBEiT, the best network pretrained on photographs, the untrained one."""

    outcome: str
    n_runs: int
    ours: Mean
    photographs: Mean
    untrained: Mean
    confidence: float

    def minus(self, other: Mean) -> tuple[float, float, float]:
        """Difference of HeartBEiT to another model, and its interval."""
        low, high = percentile(self.ours.draws - other.draws, self.confidence)
        return self.ours.value - other.value, low, high

    @property
    def verdict(self) -> str:
        """What the interval of the difference to photographs says of the claim."""
        _, low, high = self.minus(self.photographs)
        return "holds" if low > 0 else "is contradicted" if high < 0 else "is not shown"


def central_answer(folder: Path, settings: ScoreSettings | None = None) -> str:
    """The two sentences. EcglibError where the kept results are damaged.

    Of the networks pretrained on photographs the one that is best on validation stands against HeartBEiT.
    Fine-tuned cells answer where there are any, heads on frozen features elsewhere.
    """
    if not (folder / CELLS).exists():
        return NO_ANSWER
    kept, settings = KeptResults.open(folder), settings or ScoreSettings()
    usable = [cell for cell in kept.cells if cell.split == SPLIT and not kept.lack(cell)]
    for kind in HOW:
        of_kind = [cell for cell in usable if cell.kind == kind]
        outcomes = list(dict.fromkeys(cell.outcome for cell in of_kind))
        smallest = min((cell.fraction for cell in of_kind), default=1.0)
        found = [_answer(kept, [c for c in of_kind if (c.outcome, c.fraction) == (o, smallest)], settings)
                 for o in outcomes]  # fmt: skip
        if answers := [answer for answer in found if answer]:
            return _sentences(answers, kind, smallest, kept.head["cohort"]["name"])
    return NO_ANSWER


def _answer(kept: KeptResults, cells: Sequence[Cell], settings: ScoreSettings) -> Answer | None:
    """Means over the draws that every model has; None where a model lacks."""
    runs: dict[str, dict[tuple[int, int], Cell]] = {}
    for cell in cells:
        runs.setdefault(cell.model, {})[cell.draw, cell.seed] = cell
    if len(runs) < 3 or not {OURS, UNTRAINED} <= runs.keys():
        return None
    common = sorted(set.intersection(*(set(of_model) for of_model in runs.values())))
    if not common:
        return None
    means = {
        name: _mean(kept, name, [of_model[run] for run in common], settings)
        for name, of_model in runs.items()
    }
    photographs = [mean for name, mean in means.items() if name not in (OURS, UNTRAINED)]
    best = max(photographs, key=lambda mean: mean.on_validation)
    compared = means[OURS], best, means[UNTRAINED]
    return Answer(cells[0].outcome, len(common), *compared, settings.confidence)


def _mean(kept: KeptResults, model: str, cells: Sequence[Cell], settings: ScoreSettings) -> Mean:
    predictions = [table for cell in cells if (table := kept.predictions(cell)) is not None]
    tested, validated = (
        [read(table, "honest", part).arrays for table in predictions] for part in (PART, "validation")
    )
    y_true, _, patients = tested[0]
    return Mean(
        model,
        float(np.mean([auroc(y, score) for y, score, _ in tested])),
        mean_auroc_draws(y_true, [score for _, score, _ in tested], patients, settings),
        float(np.mean([auroc(y, score) for y, score, _ in validated])),
        len(y_true),
        int(y_true.sum()),
    )


def _called(outcome: str) -> str:
    """An outcome's name within a sentence: STEMI, but any infarction."""
    name = outcome_name(outcome)
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def _sentences(answers: Sequence[Answer], kind: str, fraction: float, cohort: str) -> str:
    first = answers[0]

    def each(text: Callable[[Answer], str]) -> str:
        return " and ".join(text(answer) for answer in answers)

    def difference(answer: Answer, other: Mean) -> str:
        value, low, high = answer.minus(other)
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"

    runs = "one draw" if first.n_runs == 1 else f"the mean of {first.n_runs} draws"
    counts = each(lambda a: f"{a.ours.n_positive:,} with {_called(a.outcome)}")
    ours = each(lambda a: f"{a.ours.value:.3f} for {_called(a.outcome)}")
    theirs = each(lambda a: f"{a.photographs.value:.3f} ({model_name(a.photographs.model)})")
    gaps = each(lambda a: difference(a, a.photographs))
    verdicts = each(lambda a: f"**{a.verdict}** for {_called(a.outcome)}")
    untrained = each(lambda a: difference(a, a.untrained))
    return (
        f"**The central claim, tested.** With {100 * fraction:g} % of the labels of {cohort} ({runs} of the "
        f"labels; {first.ours.n:,} ECGs of fold 10, {counts}), our HeartBEiT, {HOW[kind]}, reaches an AUROC "
        f"of {ours}, the best network pretrained on photographs {theirs}: differences of {gaps} with their "
        f"{100 * first.confidence:g} % intervals over patients. So the claim that pretraining on ECGs beats "
        f"pretraining on photographs where labels are few {verdicts} in this small setting; to the same "
        f"network with random weights the differences are {untrained}.\n"
    )
