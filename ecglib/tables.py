"""Tables and sentences on data, preprocessing, pretraining and domain shift, made from results.

Tables come as text that is ready to be read; sentences are Markdown. No number on a page is typed by hand.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ecglib import synthetic
from ecglib.claims import read_claims
from ecglib.criteria import CRITERIA, criteria_met
from ecglib.datasets import REMOVED_IN_1_0_3, Cohort, read_ptbxl_table, read_scp_statements
from ecglib.filtering import FilterSettings
from ecglib.image import ImageSettings
from ecglib.labels import STEMI_DEFINITIONS, stemi_label
from ecglib.pictures import GRID
from ecglib.records import LEADS_8
from ecglib.signs import CONDITIONS
from ecglib.splits import SPLITS
from ecglib.style import PART_NAMES, Table, outcome_name
from ecglib.tokenizer import MAX_COMMONEST_SHARE, MAX_ERROR_RATIO, MIN_CODES, MIN_PERPLEXITY

TOKENIZER_COURSES = {
    "loss": "Loss (error + pull on codes)",
    "error_ratio": "Error (1 = mean image's)",
    "codes_used": "Codes used in a batch",
}
COMBINATIONS = {
    "ecg-ecg": "ECG and ECG",
    "natural-natural": "Photograph and photograph",
    "ecg-natural": "ECG and photograph",
    "blank-natural": "Blank page and photograph",
}
# Table 1 of the paper, as printed.
PAPER_COHORTS = pd.DataFrame(
    {
        "outcome": ["low_lvef", "hcm", "stemi"],
        "label from": [
            "echo report: ejection fraction at most 40 %",
            "echo report: any mention",
            "PTB-XL, rule not stated",
        ],
        "fine-tuning (prevalence)": ["511,491 (18 %)", "78,831 (38 %)", "17,449 (5.7 %)"],
        "internal test (prevalence)": ["20,448 (18.5 %)", "20,448 (38.8 %)", "4,352 (5.4 %)"],
        "external": ["1,480", "3,859", "-"],
    }
)


# --- the data ---


def source_sentence(cohort: Cohort) -> str:
    """What the ECGs are, and what must not be read into them."""
    n_patients = cohort.manifest.patient_id.nunique()
    facts = f"**{cohort.name}**: {len(cohort):,} ECGs of {n_patients:,} patients."
    if cohort.synthetic:
        return (
            f"> {facts}\n>\n> **These ECGs are synthetic.** No patient stands behind them: a generator made "
            "the beats, and code put each outcome's signs into them. Scores on them show that the method "
            "runs and how it behaves; they are no evidence about hearts, hospitals or the paper's numbers."
        )
    if not cohort.comparable:
        return f"> {facts}\n>\n> **Not the whole of PTB-XL**: prevalence and scores are not PTB-XL's."
    return f"> {facts}"


def outcome_sentence(cohort: Cohort, outcome: str) -> str:
    """Which outcome, of which ECGs, how common; and whose ECGs they are not."""
    marked = cohort.manifest[outcome]
    warning = " **The ECGs and their labels are synthetic.**" if cohort.synthetic else ""
    return (
        f"> **{outcome_name(outcome)}** in {cohort.name}: {marked.sum():,} of {len(marked):,} ECGs "
        f"({100 * marked.mean():.1f} %) have it.{warning}"
    )


def cohort_table(cohort: Cohort, parts: pd.Series) -> Table:
    """The form of the paper's Table 1: a row for each part; size, age, sex and prevalence."""
    present = [part for part in PART_NAMES if (parts == part).any()]
    rows = [_describe(cohort.manifest.loc[parts == part], cohort.outcomes) for part in present]
    rows.append(_describe(cohort.manifest, cohort.outcomes))
    return Table(rows, index=pd.Index([*(PART_NAMES[p] for p in present), "All"], name="part"))


def _describe(manifest: pd.DataFrame, outcomes: Sequence[str]) -> dict[str, object]:
    age = manifest.age.dropna()
    return {
        "ECGs": f"{len(manifest):,}",
        "patients": f"{manifest.patient_id.nunique():,}",
        "age, mean ± SD (years)": f"{age.mean():.0f} ± {age.std():.0f}",
        "age missing": int(manifest.age.isna().sum()),
        "women (%)": f"{100 * (manifest.sex == 'female').mean():.0f}",
        "sites": manifest.site.nunique(),
        **{f"{outcome_name(o)} (%)": f"{100 * manifest[o].mean():.1f}" for o in outcomes},
    }


def split_table(cohort: Cohort, parts_of: Callable[[str], pd.Series]) -> Table:
    """ECGs in each part of each split, and how many patients stand in more than one part.

    `parts_of` is `study.parts`.
    """
    rows = {}
    for split in SPLITS:
        parts = parts_of(split)
        counts = parts.value_counts().reindex(list(PART_NAMES), fill_value=0)
        shared = int((parts.groupby(cohort.manifest.patient_id).nunique() > 1).sum())
        rows[split] = {PART_NAMES[p]: f"{counts[p]:,}" for p in PART_NAMES}
        rows[split]["training + validation"] = f"{counts.train + counts.validation:,}"
        rows[split]["patients in two parts"] = f"{shared}"
    return Table(pd.DataFrame(rows).T.rename_axis("split"))


def outcome_sources(cohort: Cohort) -> Table:
    """The paper's cohorts, and whether each outcome exists in this source of ECGs."""
    here = "put into the beats by code" if cohort.synthetic else "from PTB-XL's own codes"
    table = PAPER_COHORTS.assign(
        here=[here if o in cohort.outcomes else "does not exist here" for o in PAPER_COHORTS.outcome]
    )
    own = [o for o in cohort.outcomes if o not in set(table.outcome)]
    extra = pd.DataFrame({"outcome": own, "label from": "not in the paper", "here": here})
    table = pd.concat([table, extra], ignore_index=True).fillna("-")
    return Table(table.assign(outcome=table.outcome.map(outcome_name)).set_index("outcome"))


def stemi_definitions(cohort: Cohort, data_dir: Path | None, chosen: str) -> Table:
    """The rules that could have made the paper's STEMI label, with their prevalence in a PTB-XL folder.

    For the embedded cohort the rules stand alone: they need PTB-XL's codes and reports.
    """
    rules = {name: str(inspect.getdoc(rule)).split(":")[0] for name, rule in STEMI_DEFINITIONS.items()}
    table = Table({"rule": rules}, index=pd.Index(rules, name="definition"))
    if cohort.synthetic or data_dir is None:
        return table
    records, statements = read_ptbxl_table(data_dir), read_scp_statements(data_dir)
    records = records.loc[~records.index.isin(REMOVED_IN_1_0_3)]
    marked = {name: stemi_label(records, statements, name) for name in STEMI_DEFINITIONS}
    table["ECGs"] = [f"{marked[name].sum():,}" for name in table.index]
    table["prevalence (%)"] = [f"{100 * marked[name].mean():.2f}" for name in table.index]
    table["used"] = ["yes" if name == chosen else "" for name in table.index]
    return table


def example_rows(cohort: Cohort) -> dict[str, int]:
    """One ECG without any outcome and one with each, alone if there is such a one: its name -> row.

    Where it is known how strongly each condition shows: the strongest, and an ECG without any.
    """
    marked = cohort.manifest[list(cohort.outcomes)]
    n_outcomes = marked.sum(axis=1)
    shown = pd.DataFrame(dict.fromkeys(CONDITIONS, 0.0), marked.index)
    if cohort.drawn is not None:
        shown = cohort.drawn[[f"{name}_severity" for name in CONDITIONS]].set_axis(list(CONDITIONS), axis=1)
    others = shown.sum(axis=1)
    fits = {"No outcome": (n_outcomes == 0) * (1 + (others == 0))}
    for outcome in cohort.outcomes:
        own = shown[outcome] if outcome in shown else 0.0 * others
        alone = (n_outcomes == 1) & (others == own)
        fits[outcome_name(outcome)] = marked[outcome] * (2 + alone + 0.9 * own)
    return {name: int(fit.to_numpy().argmax()) for name, fit in fits.items() if fit.any()}


def textbook_table(seed: int, n: int = 25) -> Table:
    """Of n made ECGs of each kind at full severity the share that meets each criterion, in percent.

    What a kind must meet is marked.
    """
    rows = {}
    for name, kind in synthetic.KINDS.items():
        people = synthetic.textbook_cases(kind, n, seed)
        made, _ = synthetic.waveforms(people, np.arange(n), seed)
        share = _share_met(list(made), synthetic.SAMPLING_RATE, people.age, people.sex)
        rows[name] = {c: f"{value} ✓" if c in kind.criteria else f"{value}" for c, value in share.items()}
    return Table(pd.DataFrame(rows).T.rename_axis("kind of ECG"))


def criteria_table(cohort: Cohort, n: int = 25) -> Table:
    """Of the first n ECGs with each outcome the share that meets each criterion, in percent.

    Where conditions are known, of the ECGs that truly have one, mimics too; else of those labelled.
    """
    known = cohort.drawn
    marked = cohort.manifest[list(cohort.outcomes)] > 0
    if known is not None:
        marked = pd.DataFrame({name: known[f"{name}_severity"] > 0 for name in CONDITIONS})
    groups = {"None of these": ~marked.any(axis=1)} | {outcome_name(name): marked[name] for name in marked}
    rows: dict[str, dict[str, object]] = {}
    for name, group in groups.items():
        chosen = np.flatnonzero(group & cohort.manifest.age.notna())[:n]
        if len(chosen):
            records, people = cohort.read_many(chosen), cohort.manifest.iloc[chosen]
            made = [record.select(LEADS_8) for record in records]
            share = _share_met(made, records[0].sampling_rate, people.age, people.sex)
            rows[name] = {"ECGs": len(chosen), **share}
    return Table(pd.DataFrame(rows).T.rename_axis("ECGs with"))


def _share_met(
    waveforms: Sequence[np.ndarray], sampling_rate: float, ages: pd.Series, sexes: pd.Series
) -> dict[str, int]:
    met = [
        criteria_met(waveform, sampling_rate, age, sex)
        for waveform, age, sex in zip(waveforms, ages, sexes, strict=True)
    ]
    return {name: round(100 * float(np.mean([one[name] for one in met]))) for name in CRITERIA}


def criteria_sources() -> Table:
    """What each criterion asks for."""
    return Table({"asks for": {name: inspect.getdoc(rule) for name, rule in CRITERIA.items()}}).rename_axis(
        "criterion"
    )


def people(cohort: Cohort, rows: Mapping[str, int]) -> Table:
    """Whose the ECGs are: name -> row of the manifest."""
    chosen = cohort.manifest.iloc[list(rows.values())]
    age = ["not known" if np.isnan(years) else f"{years:.0f}" for years in chosen.age]
    table = chosen.loc[:, ["record_id", "patient_id", "site", "sex"]].assign(**{"age (years)": age})
    return Table(
        table.set_index(pd.Index(rows, name="ECG with")).rename(columns=lambda c: c.replace("_", " "))
    )


def band_power(stages: Mapping[str, np.ndarray], sampling_rate: float) -> Table:
    """Root mean square in µV over all leads, below, inside and above the paper's band.

    Stages (leads, samples) in mV, by name; rate in Hz.
    """
    bands = {"below 0.5 Hz": (0.0, 0.5), "0.5-40 Hz": (0.5, 40.0), "above 40 Hz": (40.0, np.inf)}
    rows: dict[str, dict[str, float]] = {name: {} for name in stages}
    for name, waveform in stages.items():
        frequency = np.fft.rfftfreq(waveform.shape[1], 1 / sampling_rate)
        for band, (low, high) in bands.items():
            inside = (frequency >= low) & (frequency < high)
            kept = np.fft.irfft(np.fft.rfft(waveform, axis=1) * inside, waveform.shape[1], axis=1)
            rows[name][f"{band} (µV)"] = round(1000 * float(np.sqrt((kept**2).mean())), 1)
    return Table(pd.DataFrame(rows).T.rename_axis("stage"))


def patch_table(filters: FilterSettings, image: ImageSettings) -> Table:
    """What one patch holds."""
    seconds = filters.n_samples / filters.sampling_rate
    facts = {
        "pixels": f"{image.size // GRID} x {image.size // GRID}",
        "time (ms)": f"{1000 * seconds / GRID:.0f}",
        "samples of a lead": f"{filters.n_samples / GRID:.0f}",
        "height in bands of a lead": f"{len(LEADS_8) / GRID:.2f}",
        "height (mV)": f"{image.size / GRID / image.pixels_per_mv:.2f}",
    }
    return Table({"one patch": facts})


# --- tokens and pretraining ---


def token_table(report: Mapping[str, float]) -> Table:
    """`tokenizer.assess` on held-out images, beside the bounds that pretraining demands."""
    measures = {
        "codes used": ("codes_used", MIN_CODES, math.inf),
        "perplexity": ("perplexity", MIN_PERPLEXITY, math.inf),
        "share of the commonest code": ("commonest_share", 0, MAX_COMMONEST_SHARE),
        "error, as a share of the mean image's": ("error_ratio", 0, MAX_ERROR_RATIO),
    }
    rows = {
        name: {
            "held-out ECGs": f"{report[key]:.3g}",
            "bound": f"at least {least:g}" if least else f"at most {most:g}",
            "met": "yes" if least <= report[key] <= most else "NO",
        }
        for name, (key, least, most) in measures.items()
    }
    return Table(pd.DataFrame(rows).T.rename_axis("measure"))


def mask_table(masks_by_kind: Mapping[str, np.ndarray]) -> Table:
    """How much a kind of mask hides, and where: masks (n, 196) by kind."""
    rows = {}
    for kind, masks in masks_by_kind.items():
        hidden, share = masks.sum(axis=1), 100 * masks.mean(axis=0).reshape(GRID, GRID)
        rows[kind] = {
            "hidden patches, mean": f"{hidden.mean():.1f} of {masks.shape[1]}",
            "least to most": f"{hidden.min()} to {hidden.max()}",
            "a corner is hidden in (%)": f"{share[[0, 0, -1, -1], [0, -1, 0, -1]].mean():.0f}",
            "a central patch is hidden in (%)": f"{share[6:8, 6:8].mean():.0f}",
        }
    return Table(pd.DataFrame(rows).T.rename_axis("masks"))


def pretraining_sentence(history: pd.DataFrame, vocab_size: int) -> str:
    """Where pretraining began and ended, beside even guesses and the commonest token; ends over a tenth."""
    end = history.tail(max(1, len(history) // 10))
    loss, accuracy, majority = end.loss.mean(), 100 * end.accuracy.mean(), 100 * end.majority_accuracy.mean()
    verdict = "above" if accuracy > majority else "not above"
    return (
        f"The loss began at {history.loss.iloc[0]:.2f}, where even guesses give ln({vocab_size}) = "
        f"{math.log(vocab_size):.2f}, and ended at {loss:.2f} after {history.step.iloc[-1]:,} steps. At its "
        f"end the network names {accuracy:.1f} % of the hidden tokens, and always naming the commonest gives "
        f"{majority:.1f} %: it ends **{verdict}** that baseline."
    )


# --- domain shift ---


def paper_distances() -> dict[str, float]:
    """The paper's mean distances in grey levels, by combination."""
    claims = read_claims()
    distances = claims.loc[claims.kind == "distance"]
    return dict(zip(distances.part, distances.paper_value, strict=True))


def shift_table(table: pd.DataFrame, confidence: float) -> Table:
    """The table of `domain_shift` in words, beside the paper's means."""
    paper = paper_distances()
    rows = {
        COMBINATIONS[row["combination"]]: {
            "mean distance (grey levels)": f"{row['mean']:.1f}",
            f"{100 * confidence:g} % interval": f"{row['low']:.1f}-{row['high']:.1f}",
            "5th-95th percentile of pairs": f"{row['p5']:.1f}-{row['p95']:.1f}",
            "images": f"{row['n_a']} and {row['n_b']}",
            "pairs": f"{row['n_pairs']:,}",
            "the paper's mean": f"{paper[row['combination']]:g}" if row["combination"] in paper else "-",
        }
        for row in table.to_dict("records")
    }
    return Table(pd.DataFrame(rows).T.rename_axis("between"))


def shift_series(distances: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Distances by readable pair, and the paper's means by the same names, for `figures.distances`."""
    paper = {COMBINATIONS[name]: value for name, value in paper_distances().items() if name in COMBINATIONS}
    return {COMBINATIONS[name]: values for name, values in distances.items()}, paper
