"""What a careful reader finds in the paper, on a study's own records and scores; and two outside standards.

The standards are trees on the classical measurements, which every network should beat, and published scores
of larger models (book/larger_models.csv).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.audit import read_text_table
from ecglib.checkpoints import ENCODER, read_checkpoint
from ecglib.claims import CLAIMS_FILE
from ecglib.classical import MODEL, TreeSettings, fit_trees
from ecglib.comparisons import of_first_run
from ecglib.datasets import CohortSettings
from ecglib.grid import Cell
from ecglib.metrics import ScoreSettings, auprc, trapezoid_auprc
from ecglib.protocols import PROTOCOLS, read, score_or_lack
from ecglib.published import WEIGHTS, published
from ecglib.score_tables import NOT_ESTIMABLE, score_table
from ecglib.splits import SPLITS, assign, label_fraction_rows
from ecglib.study import LACKS_CLASS, PRETRAINING_SPLIT, Study
from ecglib.style import PART_NAMES, Table, counts_text, model_name, outcome_name

LEFT_OUTSIDE = ("ECGs", "patients", "patients with ECGs outside", "ECGs outside")
LARGER_MODELS_FILE = CLAIMS_FILE.with_name("larger_models.csv")


def source_sentence(study: Study) -> str:
    """Whether this page's records are PTB-XL's; if not, the command that makes it with them."""
    if study.profile.settings(CohortSettings).source == "ptbxl" and study.cohort.comparable:
        return f"> {study.cohort.name}: what follows on records is counted on the paper's own open data."
    return (
        f"> **{study.cohort.name}**, not the whole of PTB-XL: what follows on records shows the mechanism. "
        "With PTB-XL's table the same cells give the paper's own counts: "
        "`ecglib run ptbxl-tiny --data PTBXL_DIR`"
    )


# --- who was seen, and who was drawn ---


def leakage_table(study: Study) -> Table:
    """How many ECGs of each part, in each split of this study, its pretraining has seen (no labels)."""
    seen = np.zeros(len(study.cohort), bool)
    seen[study.seen_rows] = True
    patients = set(study.cohort.manifest.patient_id[seen])
    known = study.cohort.manifest.patient_id.isin(patients).to_numpy()
    rows = {}
    for split in SPLITS:
        parts = study.parts(split).to_numpy()
        for part in ("train", "validation", "test", "external"):
            if (own := parts == part).any():
                n_patients = study.cohort.manifest.patient_id[own & known].nunique()
                found = {"ECGs": own.sum(), "seen in pretraining": (own & seen).sum()}
                found |= {"their patients seen": n_patients}
                rows[split, PART_NAMES[part]] = {name: f"{n:,}" for name, n in found.items()}
    return Table(pd.DataFrame(rows).T.rename_axis(["split", "part"]))


def seen_sentence(study: Study) -> str:
    """How many of the ECGs on which each split tests were seen in pretraining."""
    shares = [f"{100 * study.seen_of_test(split):.0f} % of those of `{split}`" for split in SPLITS]
    return f"Of the test ECGs this study's pretraining has seen, without labels, {' and '.join(shares)}."


def weights_table(weights: Path = WEIGHTS) -> Table:
    """What the files of the public weights say of the ECGs that they learnt from, by source."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name in published(weights):
        for source, found in read_checkpoint(weights / name / ENCODER).metadata.get("audit", {}).items():
            share = found["seen_of_seed42_test"]
            rows[name, source] = {
                "ECGs seen": f"{found['records']:,}",
                "patients seen": f"{found['patients']:,}",
                "of folds 9, 10 and external": f"{found['records_of_folds_9_and_10']:,} ECGs, "
                f"{found['patients_of_folds_9_and_10']:,} patients",
                "seen of the paper's test part (seed42)": f"{100 * share:.0f} %",
            }
    if not rows:
        return Table({"public weights": ["none come with this copy of the package"]})
    return Table(pd.DataFrame(rows).T.rename_axis(["weights", "source"]))


def draw_table(study: Study, outcome: str, fractions: Sequence[float] = (0.01, 0.1, 0.5)) -> Table:
    """A fraction of the training labels drawn by record, as in the public code, and by patient.

    Both stratified by the outcome, one draw. Last columns: patients of the draw who have further training
    ECGs outside it, and those ECGs.
    """
    parts = assign(study.cohort.manifest, "seed42")
    part = parts.mask(parts == "validation", "train").where(study.labels(outcome) >= 0)  # the paper has none
    manifest, rows = study.cohort.manifest, {}
    for fraction, by in itertools.product(fractions, ("record", "patient")):
        drawn = label_fraction_rows(manifest, part, outcome, fraction, 0, f"{by}_id")
        rows[f"{100 * fraction:g} %", f"by {by}"] = _left_outside(manifest.patient_id, part, drawn)
    return Table(pd.DataFrame(rows).T.rename_axis(["labels", "drawn"]))


def _left_outside(patient_id: pd.Series, part: pd.Series, drawn: np.ndarray | None) -> dict[str, str]:
    if drawn is None:
        return dict.fromkeys(LEFT_OUTSIDE, NOT_ESTIMABLE)
    patients = set(patient_id.iloc[drawn])
    outside = ((part == "train") & patient_id.isin(patients)).to_numpy()
    outside[drawn] = False
    found = (len(drawn), len(patients), len(set(patient_id.iloc[outside])), outside.sum())
    return dict(zip(LEFT_OUTSIDE, map("{:,}".format, found), strict=True))


# --- average precision ---


def own_precision(study: Study) -> Table:
    """Average precision beside the trapezoid rule: the fine-tuned cells of most labels, internal test."""
    rows = {}
    for cell in _largest(study):
        table = study.predictions(cell)
        reading = None if table is None else read(table, "honest", "test")
        if reading and not reading.reason:
            y_true, y_score, _ = reading.arrays
            by_steps, by_lines = auprc(y_true, y_score), trapezoid_auprc(y_true, y_score)
            split = study.split_names[cell.split]
            rows[outcome_name(cell.outcome), split, model_name(cell.model)] = {
                "ECGs": f"{len(y_true):,}", "positive": f"{y_true.sum():,}", "steps": f"{by_steps:.3f}",
                "trapezoid": f"{by_lines:.3f}", "trapezoid minus steps": f"{by_lines - by_steps:+.3f}",
            }  # fmt: skip
    if not rows:
        return Table({"fine-tuned cells": [NOT_ESTIMABLE]})
    return Table(pd.DataFrame(rows).T.rename_axis(["outcome", "split", "model"]))


def _largest(study: Study) -> list[Cell]:
    cells = [c for outcome in study.profile.outcomes for c in study.grid(outcome) if c.kind == "finetuned"]
    top = max((cell.fraction for cell in cells), default=0)
    return [c for c in cells if (c.fraction, c.draw, c.seed, c.split) == (top, 0, 0, cells[0].split)]


# --- what the networks should be better than, and what is better than they ---


def tree_predictions(study: Study, cell: Cell) -> pd.DataFrame | None:
    """Predictions of trees on the classical measurements for a cell; None where a class has no patient."""
    rows, settings = study.rows(cell), study.profile.settings(TreeSettings)
    if rows is None:
        return None
    return fit_trees(study.measurements, study.images, rows, study.labels(cell.outcome), settings)


def tree_scores(study: Study) -> pd.DataFrame:
    """Scores of trees on the classical measurements in the form of `study.scores`, for all outcomes.

    At every split and fraction of the grid, first draw, both protocols.
    """
    settings, found = study.profile.settings(ScoreSettings), []
    own = [
        replace(cell, model=MODEL, kind="finetuned", draw=0, seed=0)
        for outcome in study.profile.outcomes
        for cell in study.grid(outcome)
    ]
    for cell in dict.fromkeys(own):
        predictions = tree_predictions(study, cell)
        for protocol in PROTOCOLS:
            table = score_or_lack(predictions, LACKS_CLASS, protocol, settings)
            found.append(table.assign(**asdict(cell)))
    return pd.concat(found, ignore_index=True)


def baseline_scores(scores: pd.DataFrame, trees: pd.DataFrame, splits: Mapping[str, str]) -> Table:
    """AUROC of the fine-tuned networks of `study.scores` and of trees on the classical measurements.

    Of the first draw of the labels, the trees' only one.
    """
    return score_table(pd.concat([_first_runs(scores), trees], ignore_index=True), splits, "auroc")


def _first_runs(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.loc[(scores.kind == "finetuned") & of_first_run(scores)]


def baseline_sentence(scores: pd.DataFrame, trees: pd.DataFrame, splits: Mapping[str, str]) -> str:
    """In how many comparisons of each split, at the same outcome, fraction and part, HeartBEiT is ahead.

    Both learnt from the same labels, the first draw.
    """
    keys = ["outcome", "split", "fraction", "part"]

    def honest(table: pd.DataFrame) -> pd.Series:
        chosen = (table.metric == "auroc") & (table.protocol == "honest") & table.value.notna()
        return table.loc[chosen].set_index(keys).value

    ours = _first_runs(scores.loc[scores.model == "heartbeit"])
    both = pd.concat([honest(ours), honest(trees)], axis=1, join="inner", keys=["network", "trees"])
    ahead = (both["network"] > both["trees"]).groupby("split").agg(["sum", "size"])
    told = [
        f"**{row['sum']} of {row['size']}** comparisons on {splits[str(split)]}"
        for split, row in ahead.iterrows()
    ]
    return (
        "Fine-tuned HeartBEiT has a higher AUROC than the classical measurements in "
        f"{'; '.join(told) or 'none, as none was run'} (honest protocol, both from the first draw of the "
        "labels; no test of the "
        "differences)."
    )


def larger_models_table(scores: pd.DataFrame, path: Path = LARGER_MODELS_FILE) -> Table:
    """Published scores of larger models on PTB-XL, and this study's HeartBEiT with all its labels.

    The published ones are macro AUROC over PTB-XL's five superclasses; ours is of one outcome, on the split
    `official`, of whose test ECGs no pretraining has seen any.
    """
    table = read_text_table(path, ("model", "auroc", "training"))
    task = "five superclasses of PTB-XL, macro AUROC"
    rows: list[dict[str, Any]] = [
        {"model": model, "task": task, "training": training, "AUROC": f"{float(auroc):.3f}"}
        for model, auroc, training in table[["model", "auroc", "training"]].to_numpy()
    ]
    honest = (scores.protocol == "honest") & (scores.metric == "auroc") & (scores.part == "test")
    honest &= scores.value.notna()
    official = scores.split == PRETRAINING_SPLIT
    own = _first_runs(scores.loc[honest & official & (scores.model == "heartbeit")])
    for row in own.loc[own.fraction == own.fraction.max()].to_dict("records"):
        counts = counts_text([row["n"]], [row["n_positive"]])
        task = f"{outcome_name(row['outcome'])} of this study, split {row['split']}: {counts} "
        task += f"({100 * row['prevalence']:.1f} %)"
        auroc = f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
        words = f"pretrained here, fine-tuned on {100 * row['fraction']:g} % of the labels"
        rows.append({"model": "HeartBEiT here", "task": task, "training": words, "AUROC": auroc})
    return Table(pd.DataFrame(rows).set_index("model"))
