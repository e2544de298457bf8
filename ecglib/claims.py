"""The paper's numbers, ours beside them, and a verdict that is computed, never typed.

`book/claims.csv` holds every number that the paper gives for its cohorts and results (npj Digital Medicine 6,
108, 2023), in our own words. `judge` sets the study's numbers against them by the rules in its docstring.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ecglib.comparisons import FIRST_RUN
from ecglib.errors import EcglibError
from ecglib.style import counts_text, model_name, number_text

CLAIMS_FILE = Path(__file__).resolve().parent.parent / "book" / "claims.csv"
TEXT_COLUMNS = ("id", "source", "kind", "outcome", "part", "model", "reference", "metric", "statement")
NUMBER_COLUMNS = ("fraction", "reference_fraction", "paper_value", "paper_low", "paper_high")
# A claim about "the others" is held against the models here that were pretrained on photographs; one about
# "the CNNs" against the convolutional ones of them. A margin over the strongest is one over each of them.
ALL_OTHERS, CNNS, WEAKEST = "others", "cnns", "weakest_other"
CONVOLUTIONAL = ("efficientnet_lite2", "mobilenetv2", "efficientnet_b4", "resnet152")
CONTROLS = ("random", "heartbeit")  # never one of "the others"
ANY_PART = "any"
IN_PERCENT = ("relative difference", "no difference", "at least as good")
# Claims about a single one of the others, and which that is by its score on validation: to choose it by the
# margin on the scored part would find a margin where there is none.
BY_VALIDATION = {
    ("relative difference", WEAKEST): min,
    ("no difference", ALL_OTHERS): max,
}
# Percent of the other model's score. Wider than the paper's smallest gain (1.1 %): an interval of some
# hundred positive ECGs could not lie within less. So "as good" excludes large losses alone.
EQUALITY_MARGIN = 5.0
# At 1 % of the labels the paper's HeartBEiT leads its best rival by .02 to .05 in AUROC and .03 to .09 in
# AUPRC: a wider interval would hold the rival's value as well.
LARGEST_HALF_WIDTH = 0.05  # of an interval that shows a value of AUROC or AUPRC
STEMI_AT_1_PERCENT = "auroc-stemi-1pct-test-heartbeit"  # whose printed interval is put to the test
WORDS = ("saliency", "stability")  # kinds of claim for which the paper prints no number
# Where a number of ours stands, by kind and metric of the claim: a page of the book and a heading on it.
_AUROC_DIFFERENCES = "06_results.html#how-much-better-is-heartbeit"
_AUPRC_DIFFERENCES = "06_results.html#how-much-better-in-auprc"
_COUNTS = "01_cohorts.html#who-is-in-which-part"
PAGES = {
    ("value", "auroc"): "06_results.html#auroc-the-form-of-suppl-table-1",
    ("value", "auprc"): "06_results.html#auprc-the-form-of-suppl-table-2",
    ("relative difference", "auroc"): _AUROC_DIFFERENCES,
    ("relative difference", "auprc"): _AUPRC_DIFFERENCES,
    ("no difference", "auroc"): _AUROC_DIFFERENCES,
    ("no difference", "auprc"): _AUPRC_DIFFERENCES,
    ("at least as good", "auroc"): "06_results.html#does-a-tenth-of-the-labels-do",
    ("stability", ""): "06_results.html#what-could-not-be-estimated",
    ("count", "n_records"): _COUNTS,
    ("count", "n_patients"): _COUNTS,
    ("count", "prevalence"): _COUNTS,
    ("distance", "wasserstein"): "07_domain_shift.html#the-paper-s-measure",
    ("saliency", ""): "08_saliency.html",
}

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
SYNTHETIC, ENRICHED = "not comparable: synthetic cohort", "not comparable: enriched subset"
OTHERS = "not comparable: other patients"
NOT_TESTABLE = "not testable here"
JUDGED_BY = ("synthetic", "comparable", "other_patients")  # what a cohort says of itself
VERDICTS = (REPRODUCED, NOT_REPRODUCED, SYNTHETIC, ENRICHED, OTHERS, NOT_TESTABLE)
NOT_RUN = "the first draw was not run"  # and no other takes its place
LEAST_FIRST = (NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED)  # a claim about each is met as its least comparison

Row = dict[str, Any]
Verdict = tuple[str, str]  # verdict, reason
OURS = (
    "ours",
    "low",
    "high",
    "n",
    "n_patients",
    "n_positive",
    "in_part",
    "draw",
    "seed",
    "step",
    "against",
    "n_runs",
    "runs_low",
    "runs_high",
)


def read_claims(path: Path = CLAIMS_FILE) -> pd.DataFrame:
    """Read the paper's claims, one row for each number: the columns above, and `decimals` as printed.

    Values are AUROC or AUPRC, relative differences in percent, distances in grey levels, counts, prevalences
    in percent. Raises EcglibError for a missing file or column, an unknown kind, a repeated id, a bad number.
    """
    if not path.exists():
        raise EcglibError(f"no claims at {path}: restore book/claims.csv from git")
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in TEXT_COLUMNS + NUMBER_COLUMNS if name not in claims.columns]:
        raise EcglibError(f"{path.name} lacks the columns {', '.join(missing)}: restore it from git")
    claims["decimals"] = [len(text.partition(".")[2]) for text in claims["paper_value"]]
    for name in NUMBER_COLUMNS:
        try:
            claims[name] = [float(text or "nan") for text in claims[name]]
        except ValueError as error:
            raise EcglibError(f"{path.name}: column {name}: {error}; write a plain number") from error
    _check_claims(claims, path.name)
    return claims


def printed(claims: pd.DataFrame, outcome: str, part: str, metric: str) -> float:
    """A number of the paper's Table 1; NaN where it prints none."""
    found = claims.loc[
        (claims["kind"] == "count") & (claims["outcome"] == outcome) & (claims["fraction"] == 1)
        & (claims["part"] == part) & (claims["metric"] == metric), "paper_value",
    ]  # fmt: skip
    return float(found.iloc[0]) if len(found) else math.nan


def cohort_counts(
    manifest: pd.DataFrame, parts: pd.Series, outcomes: Sequence[str], split: str
) -> pd.DataFrame:
    """Records, patients and prevalence (percent) by outcome and part, as in the paper's Table 1.

    `manifest` and `parts` have one row per record; the paper's fine-tuning data are our train and validation.
    Columns: outcome, split, part (all, fine_tune, test, external), metric, value, n.
    """
    members = {"all": parts.notna(), "fine_tune": parts.isin(["train", "validation"])}
    members |= {part: parts == part for part in ("test", "external")}
    rows: list[Row] = []
    for part, member in members.items():
        records = manifest.loc[member.to_numpy()]
        head = {"split": split, "part": part}
        for outcome in outcomes if len(records) else ():
            labelled = records.loc[records[outcome] >= 0]
            prevalence = 100 * float(labelled[outcome].mean())
            numbers = {"n_records": len(labelled), "n_patients": len(set(labelled["patient_id"]))}
            for metric, value in {**numbers, "prevalence": prevalence}.items():
                rows.append(
                    {"outcome": outcome, **head, "n": len(labelled), "metric": metric, "value": value}
                )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Results:
    """What the study found, as rows, restricted to one protocol, split and kind of cell."""

    scores: list[Row]
    differences: list[Row]
    distances: list[Row]
    counts: list[Row]
    synthetic: bool
    comparable: bool
    other_patients: bool

    def outcomes(self) -> set[str]:
        return {row["outcome"] for row in [*self.scores, *self.counts]}

    def models(self) -> set[str]:
        return {row["model"] for row in [*self.scores, *self.differences]}


def judge(
    claims: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    synthetic: bool,
    comparable: bool,
    other_patients: bool = False,
    differences: pd.DataFrame | None = None,
    distances: pd.DataFrame | None = None,
    counts: pd.DataFrame | None = None,
    protocol: str = "honest",
    split: str = "official",
    kind: str = "finetuned",
) -> pd.DataFrame:
    """Set our numbers beside each claim and compute the verdict.

    `scores`: as `protocols.score_cell` with the columns of the cell (outcome, model, split, fraction, draw;
    kind and seed if there are several). `differences`: as `comparisons.paired_difference` of HeartBEiT and
    `model`, with the same columns, `on_validation` (the other model's score there) and `reference_fraction`
    where the other model had another fraction. `distances`: the table of `domain_shift`. `counts`:
    `cohort_counts`. Of several runs the first draw and seed is judged, fixed in advance, and no other where
    it lacks; the range over all runs (runs_low, runs_high) stands beside it.

    The first rule that fits gives the verdict:

    1. *not testable here*: words rather than a number, an outcome or model that is not here, no such number
       computed, a cell that is not estimable.
    2. *not comparable: synthetic cohort*, then *not comparable: enriched subset*: our number stands beside
       the paper's, unjudged. Distances between photographs do not depend on the cohort. *Not comparable:
       other patients*: a hospital's own scores and counts; how its models differ is judged.
    3. value, distance: *reproduced* if the paper's value lies in our interval; but if that of a value is
       wider than twice LARGEST_HALF_WIDTH, *not testable here*.
    4. relative difference: *reproduced* if ours has the paper's sign and its interval excludes 0.
    5. no difference: *not reproduced* if our interval excludes 0; *reproduced* if it lies within 5 % of 0;
       else *not testable here*, for a wide interval shows nothing. "At least as good" looks at the lower
       side only.
    6. count: *reproduced* if ours, rounded as the paper's, is the same.
    7. stability: *reproduced* if any of the model's runs with more labels than the claim's became unstable.

    A claim about each other network, or each of CONVOLUTIONAL, gets the least of the verdicts on them, and
    shows that comparison; the least or largest margin over the others is judged against the one that is
    strongest or weakest on validation, of those with a score. "Any" part means each part.

    Returns the claims with ours, low, high (relative differences in percent), n, n_patients, n_positive,
    in_part, draw, seed, step, against (the model compared with), n_runs, runs_low, runs_high, protocol,
    split, verdict, reason and page (where our number stands, by PAGES; empty where the outcome is not in this
    book).
    """
    results = _Results(
        _chosen(scores, protocol=protocol, split=split, kind=kind),
        _chosen(differences, protocol=protocol, split=split, kind=kind),
        _rows(distances),
        _rows(counts),
        synthetic,
        comparable,
        other_patients,
    )
    judged = []
    for claim in _rows(claims):
        ours, lack = _find(claim, results)
        verdict, reason = (NOT_TESTABLE, lack) if lack else _judge(claim, ours, results)
        used = {"protocol": protocol, "split": ours.pop("split", split)}
        used |= {"verdict": verdict, "reason": reason, "page": _page(claim, results)}
        judged.append({**claim, **dict.fromkeys(OURS), **ours, **used})
    return pd.DataFrame(judged)


def readable(judged: pd.DataFrame, splits: Mapping[str, str]) -> pd.DataFrame:
    """The judged claims as text: claim, source, paper, ours, cell, all runs, verdict, reason, page.

    `cell` names what our number is of, with its split by `splits` (`Study.split_names`) and its ECGs.
    """
    rows = []
    for row in _rows(judged):
        counted = row["kind"] in ("count", "stability")
        digits = row["decimals"] if counted else 1 if row["kind"] in IN_PERCENT else 2
        rows.append(
            {
                "claim": row["statement"],
                "source": row["source"],
                "paper": _text(row, row["decimals"], row["paper_value"], row["paper_low"], row["paper_high"]),
                "ours": _text(row, digits, row["ours"], row["low"], row["high"]),
                "cell": "" if pd.isna(row["ours"]) else _cell_text(row, splits[row["split"]]),
                "all runs": _runs_text(row, digits),
                "verdict": row["verdict"],
                "reason": row["reason"],
                "page": row["page"],
            }
        )
    return pd.DataFrame(rows)


def _cell_text(row: Row, split: str) -> str:
    """What our number is of: models, labels, draw, split, ECGs."""
    if row["kind"] == "distance":
        return f"{int(row['n']):,} pairs"
    if row["kind"] == "count":  # of labels alone, whatever a network has seen
        return f"{row['split']}: {int(row['n']):,} ECGs"
    labels = f"{100 * row['fraction']:g} % of the labels"
    if row["kind"] == "stability":
        return f"unstable runs of {model_name(row['model'])}, above {labels}, {split}"
    words = [f"{model_name(row['model'])}, {labels}"]
    if isinstance(row["against"], str):
        words.append(f"minus {model_name(row['against'])}, {100 * _reference_fraction(row):g} %")
    words.append(f"draw {int(row['draw'])}" + (f", {row['in_part']} part" if row["part"] == ANY_PART else ""))
    return f"{', '.join([*words, split])}: {counts_text([row['n']], [row['n_positive']])}"


def _runs_text(row: Row, digits: int) -> str:
    """How many runs were counted, or the range over them, where there are several."""
    if pd.isna(row["n_runs"]):
        return ""
    if row["kind"] == "stability":
        return f"{int(row['n_runs'])} runs"
    if row["n_runs"] < 2:
        return ""
    low, high = (number_text(row[name], digits) for name in ("runs_low", "runs_high"))
    return f"{low} to {high}, {int(row['n_runs'])} runs"


def _page(claim: Row, results: _Results) -> str:
    here = not claim["outcome"] or claim["outcome"] in results.outcomes()
    return PAGES[claim["kind"], claim["metric"]] if here else ""


# --- which of our numbers belongs to a claim: the number, or why there is none ---


def _find(claim: Row, results: _Results) -> tuple[Row, str]:
    lack = ""
    if claim["outcome"] and claim["outcome"] not in results.outcomes():
        lack = f"no outcome {claim['outcome']} here"
    for name in (claim["model"], claim["reference"]):
        if not lack and name and name not in {ALL_OTHERS, CNNS, WEAKEST} | results.models():
            lack = f"no model {name} here"
    return ({}, lack) if lack else FINDERS[claim["kind"]](claim, results)


def _find_score(claim: Row, results: _Results) -> tuple[Row, str]:
    runs = [row for row in results.scores if row["model"] == claim["model"] and _fits(claim, row)]
    return _first_run(runs, lambda row: (row["value"], row["low"], row["high"]), "no such cell was computed")


def _find_difference(claim: Row, results: _Results) -> tuple[Row, str]:
    """The paired difference, in percent; of several the one by which the claim is met least."""
    runs_of: dict[tuple[str, str], list[Row]] = {}
    for row in results.differences:
        if _takes_in(claim["reference"], row["model"]) and _fits(claim, row):
            runs_of.setdefault((row["model"], str(row.get("part"))), []).append(row)
    found = []
    for other in _compared_with(claim, runs_of):
        ours, lack = _first_run(runs_of[other], percent_of_other, "")
        found.append((ours | {"against": other[0]} if ours else {}, lack))
    return min(found, key=lambda one: _met(claim, *one), default=({}, "no such comparison was made"))


def _compared_with(claim: Row, runs_of: Mapping[tuple[str, str], list[Row]]) -> list[tuple[str, str]]:
    """Models and parts that decide a claim: all, or those of the model that validation chooses."""
    choose = BY_VALIDATION.get((claim["kind"], claim["reference"]))
    scores = {
        model: row["on_validation"]
        for (model, _), runs in runs_of.items()
        for row in runs
        if choose and _run(row) == FIRST_RUN and math.isfinite(row["on_validation"])
    }
    chosen = choose(scores, key=scores.__getitem__) if choose and scores else None
    return [other for other in runs_of if chosen in (None, other[0])]


def _met(claim: Row, ours: Row, lack: str) -> tuple[int, float]:
    verdict = NOT_TESTABLE if lack else RULES[claim["kind"]](claim, ours)[0]
    return LEAST_FIRST.index(verdict), ours.get("low", -math.inf)


def _takes_in(reference: str, model: str) -> bool:
    """Whether a claim's reference is this model, or a group that it belongs to."""
    if reference == CNNS:
        return model in CONVOLUTIONAL
    return model == reference or (reference in (ALL_OTHERS, WEAKEST) and model not in CONTROLS)


def _find_distance(claim: Row, results: _Results) -> tuple[Row, str]:
    for row in results.distances:
        if row["combination"] == claim["part"]:
            ours = {"ours": row["mean"], "low": row["low"], "high": row["high"], "n": row["n_pairs"]}
            return ours | {"n_photographs": row["n_b"] if "natural" in claim["part"] else 0}, ""
    return {}, "no such distance was computed"


def _find_unstable(claim: Row, results: _Results) -> tuple[Row, str]:
    runs = {
        (row["fraction"], *_run(row)): "unstable" in str(row.get("reason"))
        for row in results.scores
        if (row["model"], row["outcome"]) == (claim["model"], claim["outcome"])
        and row["fraction"] > claim["fraction"]
    }
    return (
        ({"ours": sum(runs.values()), "n_runs": len(runs)}, "") if runs else ({}, "no such cell was computed")
    )


def _find_count(claim: Row, results: _Results) -> tuple[Row, str]:
    for row in results.counts:
        keys = ("outcome", "part", "metric")
        if claim["fraction"] == 1 and all(row[key] == claim[key] for key in keys):
            return {"ours": row["value"], "n": row["n"], "split": row["split"]}, ""
    return {}, "no such count was made"


def _fits(claim: Row, row: Row) -> bool:
    """Whether a row of scores or differences is about the claim's outcome, fractions, part and metric."""
    if row["outcome"] != claim["outcome"] or not math.isclose(row["fraction"], claim["fraction"]):
        return False
    if not math.isclose(_reference_fraction(row), _reference_fraction(claim)):
        return False
    # A cell whose fraction lacks a class has one row without part and metric: it stands for all of them.
    if not isinstance(row.get("metric"), str):
        return True
    return row["metric"] == claim["metric"] and claim["part"] in (ANY_PART, row["part"])


def _reference_fraction(row: Row) -> float:
    """The other model's label fraction: its own if there is one, else that of HeartBEiT."""
    own = row.get("reference_fraction", math.nan)
    return row["fraction"] if math.isnan(own) else own


def _first_run(
    runs: list[Row], numbers: Callable[[Row], tuple[float, float, float]], none: str
) -> tuple[Row, str]:
    """FIRST_RUN, and the range over all runs."""
    if not runs:
        return {}, none
    by_run = {_run(row): row for row in runs}
    if len(by_run) < len(runs):
        raise EcglibError(
            f"two scores of one cell ({runs[0]['outcome']}, {runs[0]['model']}): give each once"
        )
    first = by_run.get(FIRST_RUN, {"estimable": False, "reason": NOT_RUN})
    if not first.get("estimable", True):
        return {}, f"not estimable: {first['reason']}"
    value, low, high = numbers(first)
    if not math.isfinite(value):
        return {}, "the other model's score is 0: no relative difference"
    if not (math.isfinite(low) and math.isfinite(high)):
        return {}, "no interval: not every draw of the patients has such a number"
    values = [numbers(row)[0] for row in runs if row.get("estimable", True)]
    known = {name: first.get(name) for name in ("n", "n_patients", "n_positive", "draw", "seed", "step")}
    known["in_part"] = first.get("part")
    spread = {"n_runs": len(values), "runs_low": min(values), "runs_high": max(values)}
    return {"ours": value, "low": low, "high": high, **known, **spread}, ""


def _run(row: Row) -> tuple[int, int]:
    return int(row["draw"]), int(row.get("seed", 0))


def percent_of_other(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """A paired difference and its limits, in percent of the other model's score; nan where that is 0."""
    return row["percent"], row["percent_low"], row["percent_high"]


FINDERS: dict[str, Callable[[Row, _Results], tuple[Row, str]]] = {
    "value": _find_score,
    "relative difference": _find_difference,
    "no difference": _find_difference,
    "at least as good": _find_difference,
    "distance": _find_distance,
    "count": _find_count,
    "stability": _find_unstable,
    "saliency": lambda claim, results: ({}, "words, not a number: no score decides it"),
}


# --- the rules ---


def _judge(claim: Row, ours: Row, results: _Results) -> Verdict:
    n_photographs = ours.pop("n_photographs", 0)
    of_photographs_only = claim["kind"] == "distance" and "ecg" not in claim["part"]
    if results.synthetic and not of_photographs_only:
        return SYNTHETIC, "made-up ECGs neither confirm nor refute it"
    if not results.comparable and not of_photographs_only:
        return ENRICHED, "chosen records: prevalence and scores are not PTB-XL's"
    if results.other_patients and claim["kind"] in ("value", "count"):
        return OTHERS, "another hospital's patients have scores and prevalences of their own"
    verdict, reason = RULES[claim["kind"]](claim, ours)
    if n_photographs:
        reason += f"; {n_photographs} photographs stand in for 1,000"
    return verdict, reason


def _inside(claim: Row, ours: Row) -> Verdict:
    if ours["low"] <= claim["paper_value"] <= ours["high"]:
        return REPRODUCED, "our interval holds the paper's value"
    side = "above" if ours["low"] > claim["paper_value"] else "below"
    return NOT_REPRODUCED, f"our interval lies {side} the paper's value"


def _close(claim: Row, ours: Row) -> Verdict:
    verdict = _inside(claim, ours)
    if verdict[0] == REPRODUCED and ours["high"] - ours["low"] > 2 * LARGEST_HALF_WIDTH:
        return NOT_TESTABLE, f"{verdict[1]}, but is too wide to show it: more than ± {LARGEST_HALF_WIDTH:g}"
    return verdict


def _same_sign(claim: Row, ours: Row) -> Verdict:
    sign = math.copysign(1, claim["paper_value"])
    nearest, farthest = sorted((sign * ours["low"], sign * ours["high"]))
    if nearest > 0:
        return REPRODUCED, "same sign, and our interval excludes 0"
    if farthest < 0:
        return NOT_REPRODUCED, "the difference has the other sign"
    return NOT_REPRODUCED, "our interval includes 0"


def _no_difference(claim: Row, ours: Row) -> Verdict:
    if ours["low"] > 0 or ours["high"] < 0:
        return NOT_REPRODUCED, f"our interval lies {'above' if ours['low'] > 0 else 'below'} 0"
    if max(-ours["low"], ours["high"]) <= EQUALITY_MARGIN:
        return REPRODUCED, f"our interval lies within {EQUALITY_MARGIN:g} % of 0"
    return NOT_TESTABLE, f"our interval is too wide to show equality within {EQUALITY_MARGIN:g} %"


def not_worse(low: float, high: float) -> Verdict:
    """Whether a difference, in percent, shows that HeartBEiT is at least as good, within the margin."""
    if high < 0:
        return NOT_REPRODUCED, "our interval lies below 0"
    if low >= -EQUALITY_MARGIN:
        return REPRODUCED, f"at most {EQUALITY_MARGIN:g} % worse over all our interval"
    return NOT_TESTABLE, f"our interval is too wide: it reaches more than {EQUALITY_MARGIN:g} % below 0"


def _same_digits(claim: Row, ours: Row) -> Verdict:
    same = round(ours["ours"], int(claim["decimals"])) == claim["paper_value"]
    return (REPRODUCED, "the same number") if same else (NOT_REPRODUCED, "another number")


def _some_unstable(claim: Row, ours: Row) -> Verdict:
    if ours["ours"]:
        return REPRODUCED, "training went out of bounds here, too"
    return NOT_REPRODUCED, "every run kept a finite loss"


RULES: dict[str, Callable[[Row, Row], Verdict]] = {
    "value": _close,
    "relative difference": _same_sign,
    "no difference": _no_difference,
    "at least as good": lambda claim, ours: not_worse(ours["low"], ours["high"]),
    "distance": _inside,
    "count": _same_digits,
    "stability": _some_unstable,
}

# --- tables ---


def _rows(table: pd.DataFrame | None) -> list[Row]:
    return [] if table is None else table.to_dict("records")


def _chosen(table: pd.DataFrame | None, **wanted: str) -> list[Row]:
    rows = _rows(table)
    return [row for row in rows if all(row.get(name, value) == value for name, value in wanted.items())]


def _check_claims(claims: pd.DataFrame, name: str) -> None:
    for claim in _rows(claims):
        where = f"{name}: claim {claim['id'] or '(no id)'}"
        if claim["kind"] not in FINDERS:
            raise EcglibError(
                f"{where} has the unknown kind {claim['kind']!r}: take one of {', '.join(FINDERS)}"
            )
        if not claim["statement"] or not claim["source"]:
            raise EcglibError(f"{where} needs a statement and its source in the paper: write them")
        if math.isnan(claim["paper_value"]) != (claim["kind"] in WORDS):
            raise EcglibError(f"{where} needs a paper_value, and one of words none: mend it")
    twice = claims["id"].duplicated().to_numpy()
    if twice.any():
        raise EcglibError(f"{name}: claim {claims['id'].to_numpy()[twice][0]} stands twice: keep one row")


def _text(claim: Row, digits: int, value: float, low: float, high: float) -> str:
    """`value unit (low to high)`, or nothing where there is no number."""
    if pd.isna(value):
        return ""
    unit = " %" if claim["kind"] in IN_PERCENT or claim["metric"] == "prevalence" else ""
    interval = "" if pd.isna(low) else f" ({number_text(low, digits)} to {number_text(high, digits)})"
    return f"{number_text(value, digits)}{unit}{interval}"
