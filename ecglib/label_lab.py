"""The label lab: one outcome under every definition that could have been meant, and what each one changes.

On PTB-XL the definitions are the rules of `ecglib.labels`. In the embedded cohort, where the truth is known,
they are the label, the truth, its strong cases, and what a rule catches that takes mimics too. A hospital's
table has one definition of each of its outcomes; where it says nothing of an ECG, that ECG is in no count and
no share.
"""

import itertools

import numpy as np
import pandas as pd

from ecglib.audit_study import tree_predictions
from ecglib.claims import printed, read_claims
from ecglib.classical import MODEL
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, read_ptbxl_rows, read_scp_statements
from ecglib.errors import EcglibError
from ecglib.grid import Cell, GridSettings
from ecglib.labels import ELEVATION_WORDS, STEMI_DEFINITIONS, LabSettings, rule_words, stemi_labels
from ecglib.metrics import ScoreSettings
from ecglib.protocols import score_or_lack
from ecglib.splits import assign
from ecglib.study import LACKS_CLASS, Study
from ecglib.style import METRIC_NAMES, PART_NAMES, Table, model_name

OUTCOME = "stemi"
STRONG = 0.5  # severity, 0..1
EMBEDDED = {
    "label": "As the embedded cohort's table labels it, mistakes and all",
    "truth": "Who truly has it",
    "strong_cases": f"Who truly has it, with at least {STRONG:g} of the full severity",
    "truth_or_mimic": "Who truly has it, or early repolarisation, or an old infarct",
    "mimic_alone": "Early repolarisation or an old infarct, and no STEMI",
}
# What reports say, German and English. "Alter unbestimmt" is "age undetermined", not "old".
WORDS = {
    "ST elevation": ELEVATION_WORDS,
    "old": r"\balt\b|\bold\b",
    "age undetermined": r"\balter unbest|age undetermined",
}
STAGES = ("I", "I-II", "II", "II-III", "III", "unknown", "none")
MIN_DEVICE_ECGS = 200  # fewer say little of a prevalence of some percent
NETWORKS = ("heartbeit", "random")


def source_sentence(study: Study) -> str:
    """What the definitions of this page are made of, and how to see PTB-XL's."""
    source = study.profile.settings(CohortSettings).source
    if source == "ptbxl":
        return f"> {study.cohort.name}: definitions from PTB-XL's codes, infarction stages and reports."
    what = "the truth, which the generator knows" if source == "embedded" else "the table's own labels"
    return (
        f"> **{study.cohort.name}** has no diagnostic codes to switch. The definitions here are made of "
        f"{what}; those that could have been the paper's need PTB-XL: "
        "`ecglib run ptbxl-tiny --data PTBXL_DIR`"
    )


def definitions(study: Study) -> pd.DataFrame:
    """Every definition as a column of 0, 1 and -1 (nobody said), int8, one row for each of the records."""
    cohort, records = study.cohort, _records(study)
    if study.data_dir is not None and records is not None:
        made = stemi_labels(records, read_scp_statements(study.data_dir))
    elif cohort.drawn is not None:
        made = _of_the_truth(cohort, cohort.drawn)
    else:
        made = {outcome: cohort.manifest[outcome] for outcome in cohort.outcomes}
    return pd.DataFrame({name: np.asarray(marked, np.int8) for name, marked in made.items()})


def _of_the_truth(cohort: Cohort, drawn: pd.DataFrame) -> dict[str, pd.Series]:
    severity = drawn[f"{OUTCOME}_severity"]
    mimic = (drawn["early_repolarisation_severity"] > 0) | (drawn["old_infarct_severity"] > 0)
    marked = (
        cohort.manifest[OUTCOME] == 1,
        severity > 0,
        severity >= STRONG,
        (severity > 0) | mimic,
        mimic & (severity == 0),
    )
    return dict(zip(EMBEDDED, marked, strict=True))


def _records(study: Study) -> pd.DataFrame | None:
    """PTB-XL's table, row for row as the manifest; None for another source."""
    if study.data_dir is None:
        return None
    return read_ptbxl_rows(study.data_dir, study.cohort.manifest)


def own_definition(study: Study) -> str:
    """The definition that the study is run with."""
    if study.data_dir is not None:
        return study.profile.settings(CohortSettings).stemi_definition
    return "label" if study.cohort.drawn is not None else study.profile.outcomes[0]


def chosen_definition(study: Study, marked: pd.DataFrame) -> str:
    """The definition to look at closely; EcglibError where there is none of that name."""
    chosen = study.profile.settings(LabSettings).definition or own_definition(study)
    if chosen not in marked:
        raise EcglibError(f"definition={chosen!r}: {study.cohort.name} has {', '.join(marked)}")
    return chosen


# --- what the definitions hold ---


def prevalence_table(study: Study, marked: pd.DataFrame) -> Table:
    """Each definition's rule, ECGs, patients, and prevalence (of labelled ECGs) in all and its split."""
    parts, claims, rows = assign(study.cohort.manifest, "seed42"), read_claims(), {}
    sets = {"fine-tuning (%)": ("train", "validation"), "test (%)": ("test",)}
    patients = study.cohort.manifest.patient_id
    for name in marked:
        own, known = marked[name].to_numpy() == 1, marked[name].to_numpy() >= 0
        inside = {words: own[known & parts.isin(members)] for words, members in sets.items()}
        rows[name] = {
            "rule": _rule(str(name)),
            "ECGs": f"{own.sum():,}",
            "patients": f"{patients[own].nunique():,}",
            **{words: _percent(found) for words, found in {"all (%)": own[known], **inside}.items()},
            "used": "yes" if name == own_definition(study) else "",
        }
    shares = [printed(claims, OUTCOME, part, "prevalence") for part in ("fine_tune", "test")]
    rows["the paper prints"] = dict(zip(sets, map("{:.1f}".format, shares), strict=True))
    return Table(pd.DataFrame(rows).T.fillna("").rename_axis("definition"))


def _percent(own: np.ndarray) -> str:
    return f"{100 * own.mean():.2f}" if len(own) else "-"


def _rule(name: str) -> str:
    if name in STEMI_DEFINITIONS:
        return rule_words(name)
    return EMBEDDED.get(name, "As the table says")


def jaccard(marked: pd.DataFrame) -> pd.DataFrame:
    """ECGs in both of two definitions over ECGs in either, for every pair; 0 where neither has any.

    Of the ECGs that both definitions have a label for.
    """
    both = shared(marked)
    first = (marked == 1).to_numpy(np.int64).T @ (marked >= 0).to_numpy(np.int64)
    return both / np.maximum(first + first.T - both.to_numpy(), 1)


def shared(marked: pd.DataFrame) -> pd.DataFrame:
    """ECGs in both of two definitions, for every pair; on the diagonal the definition's own."""
    values = (marked == 1).to_numpy(np.int64)
    return pd.DataFrame(values.T @ values, index=marked.columns, columns=marked.columns)


def shared_table(marked: pd.DataFrame) -> Table:
    """`shared` in words."""
    return Table(shared(marked).map("{:,}".format).rename_axis("ECGs in both"))


def report_table(study: Study, marked: pd.DataFrame) -> Table:
    """How many reports of each definition's ECGs hold a word, and the share; no report's text."""
    records = _records(study)
    if records is None:
        return _none(study, "reports")
    said = records["report"].fillna("").str.lower()
    has = {word: said.str.contains(pattern, regex=True).to_numpy() for word, pattern in WORDS.items()}
    rows = {
        name: {"ECGs": f"{own.sum():,}", **{word: _share(found[own]) for word, found in has.items()}}
        for name, own in _each(marked)
    }
    return Table(pd.DataFrame(rows).T.rename_axis("definition"))


def stage_table(study: Study, marked: pd.DataFrame) -> Table:
    """How many of each definition's ECGs have which stage of a first infarction, as PTB-XL's table has it."""
    records = _records(study)
    if records is None:
        return _none(study, "stages of infarction")
    stages = records["infarction_stadium1"].fillna("none").str.replace("Stadium ", "", regex=False)
    order = [stage for stage in STAGES if (stages == stage).any()]
    rows = {
        name: {f"stage {stage}": f"{(own & (stages == stage)).sum():,}" for stage in order}
        for name, own in _each(marked)
    }
    return Table(pd.DataFrame(rows).T.rename_axis("definition"))


def device_table(study: Study, marked: pd.DataFrame, definition: str) -> Table:
    """Prevalence of one definition by recording device, in the ECGs that have a label.

    Devices with at least MIN_DEVICE_ECGS records, where there are two such.
    """
    known = marked[definition].to_numpy() >= 0
    own, devices = marked.loc[known, definition], study.cohort.manifest.device.to_numpy()[known]
    found = pd.DataFrame(own.groupby(devices).agg(["size", "sum", "mean"])).sort_values(by="mean")
    large = found.loc[found["size"] >= MIN_DEVICE_ECGS]
    found = large if len(large) > 1 else found
    return Table(
        {
            "ECGs": found["size"].map("{:,}".format),
            f"of {definition}": found["sum"].map("{:,}".format),
            "prevalence (%)": (100 * found["mean"]).map("{:.2f}".format),
        }
    ).rename_axis("device")


def _each(marked: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    return [(str(name), marked[name].to_numpy() == 1) for name in marked]


def _share(found: np.ndarray) -> str:
    return f"{found.sum():,} ({100 * found.mean():.0f} %)" if len(found) else "-"


def _none(study: Study, what: str) -> Table:
    return Table({"not here": [f"{study.cohort.name} has no {what}; a PTB-XL folder has"]})


# --- what the definitions change ---


def heads_sentence(study: Study) -> str:
    """Which networks' frozen features are scored here, on which split, and which the profile lacks."""
    heads = _heads(study)
    names = ", ".join(model_name(model) for model in heads) or "no network"
    lacking = ", ".join(model_name(model) for model in NETWORKS if model not in heads)
    missing = f"; not run by this profile (`05_finetuning.head_models`): {lacking}" if lacking else ""
    split = study.split_names[study.profile.settings(GridSettings).splits[0]]
    trees = "Beside them trees on the classical measurements"
    return f"Frozen features of {names}{missing}. {trees}. Split: {split}."


def _heads(study: Study) -> list[str]:
    return [model for model in NETWORKS if model in study.profile.settings(GridSettings).head_models]


def scores(study: Study, marked: pd.DataFrame) -> pd.DataFrame:
    """Scores under every definition: heads on each network's frozen features, and trees on measurements.

    All training labels, the grid's first split, the honest protocol. One row a definition, model, part and
    metric, as `protocols.score_cell`, with `definition` and `model`; where a class is missing one row with
    `estimable` False.
    """
    grid, settings = study.profile.settings(GridSettings), study.profile.settings(ScoreSettings)
    outcome = OUTCOME if OUTCOME in study.cohort.outcomes else study.profile.outcomes[0]
    found = []
    for name, model in itertools.product(marked, [*_heads(study), MODEL]):
        other = study.relabelled(outcome, marked[name].to_numpy())
        cell = Cell(outcome, model, "head", grid.splits[0], 1.0, 0, 0)
        predictions = tree_predictions(other, cell) if model == MODEL else other.predictions(cell)
        table = score_or_lack(predictions, LACKS_CLASS, "honest", settings)
        found.append(table.assign(definition=name, model=model))
    return pd.concat(found, ignore_index=True)


def score_table(scored: pd.DataFrame) -> Table:
    """`scores` in words: a row for each definition and part, a column for each model's AUROC and AUPRC."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in scored.loc[scored["estimable"].astype(bool)].to_dict("records"):
        line = rows.setdefault((row["definition"], PART_NAMES[row["part"]]), {})
        line |= {"n": f"{row['n']:,.0f}", "positives": f"{row['n_positive']:,.0f}"}
        line["prevalence (%)"] = f"{100 * row['prevalence']:.1f}"
        scored_by = f"{model_name(row['model'])}, {METRIC_NAMES[row['metric']]}"
        line[scored_by] = f"{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
    for definition in dict.fromkeys(scored["definition"]):
        if not any(name == definition for name, _ in rows):
            rows[definition, "not estimable"] = {}
    table = pd.DataFrame(rows).T.fillna("-").rename_axis(["definition", "part"])
    return Table(table)
