"""The paper's central claim, answered in two sentences and a table from the predictions kept with the book.

The claim: with few labels a network pretrained on ECGs tells patients apart better than one pretrained on
photographs. It is judged by the interval of a difference, by a rule; no verdict is typed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings, auroc
from ecglib.protocols import read
from ecglib.resampling import auroc_draws, mean_over_runs
from ecglib.results import CELLS, KeptResults
from ecglib.style import Table, difference_text, listed, model_name, outcome_name

PROFILE = "ptbxl-tiny"
OURS, UNTRAINED = "heartbeit", "random"
SPLIT, PART = "official", "test"
HOW = {"finetuned": "with all weights fine-tuned", "head": "with a linear head on frozen features"}
LEARNS = {"finetuned": "fine-tuned", "head": "head"}
CLAIM = (
    "**The central claim, tested** (with few labels, pretraining on ECGs beats pretraining on photographs)."
)
HOLDS = "holds"
TRAINED_ONCE = (
    " Each fine-tuned network of these was trained once, and what another training of it would score is not "
    "in the interval."
)
NOT_TUNED = "Fine-tuned networks are not among the kept results yet."
NO_ANSWER = (
    "**The central claim** (with few labels, pretraining on ECGs beats pretraining on photographs) has no "
    f"answer yet: no results of profile `{PROFILE}` are kept with this book. "
    f"`ecglib grid {PROFILE} --data PTBXL_DIR --export book/results/{PROFILE}` makes them.\n"
)


@dataclass(frozen=True)
class Mean:
    """AUROC on test at the step best on validation, the mean over draws of the labels."""

    model: str
    values: np.ndarray  # AUROC of each draw of the labels
    draws: np.ndarray  # (n_runs, n_draws): the same for each draw of the patients
    on_validation: float
    n: int  # ECGs of test
    n_positive: int

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.values.mean())


@dataclass(frozen=True)
class Answer:
    """One outcome: HeartBEiT, the best network pretrained on photographs, the untrained one."""

    outcome: str
    fraction: float
    n_runs: int
    ours: Mean
    photographs: Mean
    untrained: Mean
    settings: ScoreSettings

    def minus(self, other: Mean) -> tuple[float, float, float]:
        """Difference of HeartBEiT to another model, and its interval: run by run, patient by patient."""
        values, draws = self.ours.values - other.values, self.ours.draws - other.draws
        return float(values.mean()), *mean_over_runs(values, draws, self.settings)

    @property
    def verdict(self) -> str:
        """What the interval of the difference to photographs says of the claim."""
        _, low, high = self.minus(self.photographs)
        return HOLDS if low > 0 else "is contradicted" if high < 0 else "is not shown"


def central_answer(folder: Path, settings: ScoreSettings | None = None) -> str:
    """A sentence of fine-tuned networks, one of linear heads, a table. EcglibError for damaged results.

    Of the networks pretrained on photographs the one that is best on validation stands against HeartBEiT.
    """
    if not (folder / CELLS).exists():
        return NO_ANSWER
    kept, settings = KeptResults.open(folder), settings or ScoreSettings()
    usable = [cell for cell in kept.cells if cell.split == SPLIT and not kept.lack(cell)]
    answers = {kind: _answers(kept, _of_kind(usable, kind, min), settings) for kind in HOW}
    answers = {kind: of_kind for kind, of_kind in answers.items() if of_kind}
    if not answers:
        return NO_ANSWER
    fewest = next(iter(answers.values()))[0]
    (kind, first), *others = ((kind, _sentence(of_kind)) for kind, of_kind in answers.items())
    told = [
        f"With {100 * fewest.fraction:g} % of the labels of {kept.head['cohort']['name']}, our HeartBEiT's "
        f"lead in AUROC over the best network pretrained on photographs is, {HOW[kind]}, {first}",
        *(f"{HOW[kind].capitalize()} it is {other}" for kind, other in others),
    ]
    told += [] if "finetuned" in answers else [NOT_TUNED]
    most = {kind: _answers(kept, _of_kind(usable, kind, max), settings) for kind in answers}
    below = [_table(answers)._repr_html_(), _caveat(answers), _with_most(most, fewest), _legend(settings)]
    return "\n\n".join([f"{CLAIM} {' '.join(told)}", *filter(None, below)]) + "\n"


def _of_kind(cells: Sequence[Cell], kind: str, choose: Callable[..., float]) -> list[Cell]:
    """The cells of a kind that have its smallest share of the labels (`min`), or its largest (`max`)."""
    share = choose((cell.fraction for cell in cells if cell.kind == kind), default=1.0)
    return [cell for cell in cells if (cell.kind, cell.fraction) == (kind, share)]


def _answers(kept: KeptResults, cells: Sequence[Cell], settings: ScoreSettings) -> list[Answer]:
    """Of cells of one kind and fraction an answer for each outcome that has one."""
    outcomes = dict.fromkeys(cell.outcome for cell in cells)
    found = [_answer(kept, [c for c in cells if c.outcome == outcome], settings) for outcome in outcomes]
    return [answer for answer in found if answer]


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
    return Answer(cells[0].outcome, cells[0].fraction, len(common), *compared, settings)


def _mean(kept: KeptResults, model: str, cells: Sequence[Cell], settings: ScoreSettings) -> Mean:
    predictions = [table for cell in cells if (table := kept.predictions(cell)) is not None]
    tested, validated = (
        [read(table, "honest", part).arrays for table in predictions] for part in (PART, "validation")
    )
    y_true, _, patients = tested[0]
    draws = auroc_draws(y_true, [score for _, score, _ in tested], patients, settings)
    return Mean(
        model,
        np.array([auroc(y, score) for y, score, _ in tested]),
        draws,
        float(np.mean([auroc(y, score) for y, score, _ in validated])),
        len(y_true),
        int(y_true.sum()),
    )


def _called(outcome: str) -> str:
    """An outcome's name within a sentence: STEMI, but any infarction."""
    name = outcome_name(outcome)
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def _sentence(answers: Sequence[Answer]) -> str:
    """The lead for each outcome, then the verdict: one for all, or each with its outcomes."""
    leads = listed(map(_lead, answers))
    by_verdict: dict[str, list[Answer]] = {}
    for answer in answers:
        by_verdict.setdefault(answer.verdict, []).append(answer)
    verdicts = " and ".join(
        f"**{verdict}**" + (f" for {listed(_called(a.outcome) for a in of)}" if len(by_verdict) > 1 else "")
        for verdict, of in by_verdict.items()
    )
    return f"{leads}: the claim {verdicts}."


def _lead(answer: Answer) -> str:
    by = ", by one draw of the labels" if answer.n_runs == 1 and answer.fraction < 1 else ""
    return f"{difference_text(*answer.minus(answer.photographs))} for {_called(answer.outcome)}{by}"


def _table(answers: Mapping[str, Sequence[Answer]]) -> Table:
    """What the sentences stand on."""
    rows = {
        f"{outcome_name(a.outcome)}, {LEARNS[kind]}, {a.n_runs} draw{'s' * (a.n_runs > 1)}": {
            "positive ECGs": f"{a.ours.n_positive:,} of {a.ours.n:,}",
            "HeartBEiT": f"{a.ours.value:.3f}",
            "best on photographs": f"{a.photographs.value:.3f}, {model_name(a.photographs.model)}",
            "lead": difference_text(*a.minus(a.photographs)),
            "lead over random weights": difference_text(*a.minus(a.untrained)),
        }
        for kind, of_kind in answers.items()
        for a in of_kind
    }
    return Table(pd.DataFrame.from_dict(rows, orient="index"))


def _caveat(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Where the claim holds though the network does as well without pretraining; empty where nowhere."""
    doubtful = [
        f"{_called(answer.outcome)} {HOW[kind]}"
        for kind, of_kind in answers.items()
        for answer in of_kind
        if answer.verdict == HOLDS and answer.minus(answer.untrained)[1] <= 0
    ]
    if not doubtful:
        return ""
    return (
        f"**But** for {'; '.join(doubtful)}, the same network with random weights is not shown to be worse: "
        "that lead need not come from pretraining."
    )


def _with_most(answers: Mapping[str, Sequence[Answer]], fewest: Answer) -> str:
    """The leads with the most labels; empty where these are the fewest."""
    more = {kind: of for kind, of in answers.items() if of and of[0].fraction > fewest.fraction}
    told = [
        f"{HOW[kind]} ({100 * of[0].fraction:g} %), "
        + listed(f"{_lead(answer)} (over {model_name(answer.photographs.model)})" for answer in of)
        for kind, of in more.items()
    ]
    if not told:
        return ""
    once = any(answer.n_runs == 1 for answer in more.get("finetuned", ()))
    return f"**With more labels** that lead is, {'; '.join(told)}." + (TRAINED_ONCE if once else "")


def _legend(settings: ScoreSettings) -> str:
    return (
        f"AUROC on fold 10 in the mean over draws of the labels, {100 * settings.confidence:g} % intervals "
        "over patients and (where there are several) draws of the labels, wide where these are few. The best "
        "network pretrained on photographs is the one that is best on validation; *random weights* is "
        "HeartBEiT's network without pretraining. The claim *holds* where the interval lies above 0, "
        "*is contradicted* where it lies below, and *is not shown*, which refutes nothing, where it holds 0. "
        "HeartBEiT was pretrained, without labels, on the training folds of the same collection; the paper's "
        "had seen no ECG of PTB-XL."
    )
