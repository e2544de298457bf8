"""Tables and sentences on data, preprocessing, pretraining and domain shift, made from results.

Tables come as text that is ready to be read; sentences are Markdown. No number on a page is typed by hand:
the paper's come from book/claims.csv.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ecglib import synthetic
from ecglib.claims import printed, read_claims
from ecglib.cohort import Cohort, known_labels
from ecglib.criteria import CRITERIA, criteria_met
from ecglib.datasets import read_ptbxl_rows, read_scp_statements
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.image import ImageSettings
from ecglib.labels import STEMI_DEFINITIONS, stemi_labels
from ecglib.masking import lead_patch_rows
from ecglib.pictures import GRID
from ecglib.published import Pretrained
from ecglib.quality import FAULTS, UNUSABLE, QualitySettings
from ecglib.records import LEADS_8
from ecglib.signs import CONDITIONS
from ecglib.splits import EXCLUDED, SPLITS
from ecglib.style import PART_NAMES, Table, outcome_name
from ecglib.tokenizer import MAX_COMMONEST_SHARE, MAX_ERROR_RATIO, MIN_CODES, MIN_PERPLEXITY

TOKENIZER_COURSES = {
    "loss": "Loss (error + pull on codes)",
    "error_ratio": "Error (1 = mean image's)",
    "codes_used": "Codes used in a batch",
    "temperature": "Temperature (dVAE)",
}
COMBINATIONS = {
    "ecg-ecg": "ECG and ECG",
    "natural-natural": "Photograph and photograph",
    "ecg-natural": "ECG and photograph",
    "blank-natural": "Blank page and photograph",
}
PAPER_LABELS = {
    "low_lvef": "echo report: ejection fraction at most 40 %",
    "hcm": "echo report: any mention",
    "stemi": "PTB-XL, rule not stated",
}
# Sets of the paper's Table 1: the parts that make each here, and its name among the claims. The paper has no
# validation part: what it fine-tunes on is ours for training and validation.
SETS = {
    "All": (("train", "validation", "test", "external"), "all"),
    "Fine-tuning": (("train", "validation"), "fine_tune"),
    "Internal test": (("test",), "test"),
    "External": (("external",), "external"),
}


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
    if cohort.other_patients:
        return (
            f"> {facts} {' '.join(cohort.notes)}\n>\n> **These are a hospital's own patients**, not "
            "the paper's: how the models compare can be judged here, the paper's counts and scores cannot."
        )
    if not cohort.comparable:
        return f"> {facts}\n>\n> **Not the whole of PTB-XL**: prevalence and scores are not PTB-XL's."
    return f"> {facts}"


def outcome_sentence(cohort: Cohort, outcome: str) -> str:
    """Which outcome, of which ECGs, how common, labelled by what; and whose ECGs they are not."""
    marked = known_labels(cohort.manifest, outcome)
    origin = f" Label: {cohort.origins[outcome]}." if outcome in cohort.origins else ""
    warning = " **The ECGs and their labels are synthetic.**" if cohort.synthetic else ""
    return (
        f"> **{outcome_name(outcome)}** in {cohort.name}: {marked.sum():,} of {len(marked):,} ECGs "
        f"({100 * marked.mean():.1f} %) have it.{origin}{warning}"
    )


def cohort_table(cohort: Cohort, parts: pd.Series) -> Table:
    """The paper's Table 1 for this source: a row for each outcome and set, ours and the paper's side by side.

    `parts` names the part of every row, as `study.parts` does; ECGs whose label nobody gave count in no set.
    "-" marks what does not exist, here or there.
    """
    rows, claims = {}, read_claims()
    for outcome in dict.fromkeys((*PAPER_LABELS, *cohort.outcomes)):
        for name, (members, claimed) in SETS.items():
            chosen = cohort.manifest.loc[parts.isin(members)]
            labels = known_labels(chosen, outcome) if outcome in cohort.outcomes else pd.Series(dtype=float)
            ecgs, prevalence = (printed(claims, outcome, claimed, of) for of in ("n_records", "prevalence"))
            if len(labels) or not math.isnan(ecgs):
                described = _describe(chosen.loc[labels.index], labels, ecgs, prevalence)
                rows[outcome_name(outcome), name] = described
    return Table(pd.DataFrame(rows).T.rename_axis(["outcome", "set"]))


def _describe(
    manifest: pd.DataFrame, labels: pd.Series, paper_ecgs: float, paper_prevalence: float
) -> dict[str, str]:
    age, known_sex = manifest.age, manifest.sex[manifest.sex != "unknown"]
    return {
        "ECGs": f"{len(labels):,}" if len(labels) else "-",
        "paper's ECGs": "-" if math.isnan(paper_ecgs) else f"{paper_ecgs:,.0f}",
        "prevalence (%)": f"{100 * labels.mean():.1f}" if len(labels) else "-",
        "paper's prevalence (%)": "-" if math.isnan(paper_prevalence) else f"{paper_prevalence:g}",
        "patients": f"{manifest.patient_id.nunique():,}" if len(labels) else "-",
        "age, mean ± SD (years)": f"{age.mean():.0f} ± {age.std():.0f}" if age.notna().sum() > 1 else "-",
        "age missing": f"{age.isna().sum():,}" if len(labels) else "-",
        "women (%)": f"{100 * (known_sex == 'female').mean():.0f}" if len(known_sex) else "-",
        "sites": f"{manifest.site.nunique()}" if len(labels) else "-",
    }


def split_table(cohort: Cohort, parts_of: Callable[[str], pd.Series]) -> Table:
    """ECGs in each part of each split, and how many patients stand in more than one part.

    `parts_of` is `study.parts`.
    """
    rows = {}
    for split in SPLITS:
        parts = parts_of(split)
        counts = parts.value_counts().reindex(list(PART_NAMES), fill_value=0)
        kept = parts.where(parts != EXCLUDED)
        shared = int((kept.groupby(cohort.manifest.patient_id).nunique() > 1).sum())
        rows[split] = {PART_NAMES[p]: f"{counts[p]:,}" for p in PART_NAMES}
        rows[split]["training + validation"] = f"{counts.train + counts.validation:,}"
        rows[split]["patients in two parts"] = f"{shared}"
    return Table(pd.DataFrame(rows).T.rename_axis("split"))


def quality_table(manifest: pd.DataFrame, parts: pd.Series, settings: QualitySettings) -> Table:
    """How many ECGs have each fault, in all and by part, the worst figure, and what the study does with them.

    `manifest` is `study.manifest`; every reason is listed, found or not. An ECG may have several faults.
    """
    rules, worst = _fault_rules(settings), _worst_figures(manifest)
    present = [part for part in PART_NAMES if (parts == part).any()]
    reasons = manifest.faults.str.split(",")
    rows = {}
    for fault in FAULTS:
        found = reasons.map(lambda of_one, fault=fault: fault in of_one)
        rows[fault] = {
            "an ECG has it if": rules[fault],
            "ECGs": f"{found.sum():,}",
            **{PART_NAMES[part]: f"{found[parts == part].sum():,}" for part in present},
            "worst of all ECGs": worst[fault],
            "the study": "leaves it out, a blank page" if fault in UNUSABLE else "counts and uses it",
        }
    return Table(pd.DataFrame(rows).T.rename_axis("fault"))


def _fault_rules(settings: QualitySettings) -> dict[str, str]:
    flat, still = f"{settings.flat_mv:g} mV", f"{settings.still_s:g} s"
    return {
        "missing lead": "one of the eight drawn leads is not stored",
        "too short": "it is shorter than the part that is drawn",
        "missing samples": "a sample of a drawn lead is missing",
        "all leads flat": f"no lead moves by {flat} in the part that is drawn",
        "flat lead": f"a lead moves by less than {flat} or stands still for {still}",
        "saturated": f"a lead stands still at its extremes, at least {settings.saturated_mv:g} mV from zero, "
        f"for {settings.saturated_s:g} s in all",
        "amplitude": f"a lead ranges over more than {settings.amplitude_mv:g} mV",
        "Einthoven": "a stored III, aVR, aVL or aVF differs from what I and II make it by more than "
        f"{settings.einthoven_mv:g} mV",
    }


def _worst_figures(manifest: pd.DataFrame) -> dict[str, str]:
    least, most = manifest.min(numeric_only=True), manifest.max(numeric_only=True)
    residual = most.einthoven_mv  # NaN where no ECG stores a limb lead
    return {
        "missing lead": f"leads missing: {most.missing_leads:.0f}",
        "too short": f"{most.lacking_s:.2f} s lacking",
        "missing samples": f"samples missing: {most.missing_samples:,.0f}",
        "all leads flat": f"{least.most_moving_mv:.2f} mV",
        "flat lead": f"{least.least_moving_mv:.2f} mV; still for {most.still_s:.2f} s",
        "saturated": f"{most.saturated_s:.2f} s",
        "amplitude": f"{most.amplitude_mv:.1f} mV",
        "Einthoven": "none is stored" if np.isnan(residual) else f"{residual:.4f} mV",
    }


def outcome_sources(cohort: Cohort) -> Table:
    """Where the paper has each outcome's labels from, and where this source of ECGs has them from."""
    outcomes = list(dict.fromkeys((*PAPER_LABELS, *cohort.outcomes)))
    here = [cohort.origins.get(o, "does not exist here") for o in outcomes]
    paper = [PAPER_LABELS.get(o, "not in the paper") for o in outcomes]
    names = pd.Index([outcome_name(o) for o in outcomes], name="outcome")
    return Table({"labels in the paper": paper, "labels here": here}, index=names)


def stemi_definitions(cohort: Cohort, data_dir: Path | None, chosen: str) -> Table:
    """The rules that could have made the paper's STEMI label, with their prevalence in a PTB-XL folder.

    For the embedded cohort the rules stand alone: they need PTB-XL's codes and reports.
    """
    rules = {name: str(inspect.getdoc(rule)).split(":")[0] for name, rule in STEMI_DEFINITIONS.items()}
    table = Table({"rule": rules}, index=pd.Index(rules, name="definition"))
    if cohort.synthetic or data_dir is None:
        return table
    marked = stemi_labels(read_ptbxl_rows(data_dir, cohort.manifest), read_scp_statements(data_dir))
    table["ECGs"] = [f"{marked[name].sum():,}" for name in table.index]
    table["prevalence (%)"] = [f"{100 * marked[name].mean():.2f}" for name in table.index]
    table["used"] = ["yes" if name == chosen else "" for name in table.index]
    return table


def example_rows(cohort: Cohort, usable: pd.Series) -> dict[str, int]:
    """One usable ECG without any outcome and one with each, alone if there is such a one: name -> row.

    Where it is known how strongly each condition shows: the strongest, and an ECG without any.
    """
    marked = cohort.manifest[list(cohort.outcomes)]
    n_outcomes = (marked == 1).sum(axis=1)
    shown = pd.DataFrame(dict.fromkeys(CONDITIONS, 0.0), marked.index)
    if cohort.drawn is not None:
        shown = cohort.drawn[[f"{name}_severity" for name in CONDITIONS]].set_axis(list(CONDITIONS), axis=1)
    others = shown.sum(axis=1)
    fits = {"No outcome": (marked == 0).all(axis=1) * (1 + (others == 0))}
    for outcome in cohort.outcomes:
        own = shown[outcome] if outcome in shown else 0.0 * others
        alone = (n_outcomes == 1) & (others == own)
        fits[outcome_name(outcome)] = (marked[outcome] == 1) * (2 + alone + 0.9 * own)
    fits = {name: (fit * usable).to_numpy() for name, fit in fits.items()}
    return {name: int(fit.argmax()) for name, fit in fits.items() if fit.any()}


def sign_example(cohort: Cohort, usable: pd.Series) -> tuple[str, int]:
    """An outcome and the row of a usable ECG with it: STEMI, whose sign is plainest, or the first there is.

    Raises EcglibError where no usable ECG has an outcome.
    """
    rows = example_rows(cohort, usable)
    for outcome in sorted(cohort.outcomes, key=lambda outcome: outcome != "stemi"):
        if outcome_name(outcome) in rows:
            return outcome, rows[outcome_name(outcome)]
    raise EcglibError(f"{cohort.name}: no usable ECG has any outcome; take more ECGs")


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
    groups = {"None of these": ~marked.any(axis=1)} | {outcome_name(str(o)): marked[o] for o in marked}
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


def weights_sentence(weights: Pretrained | None, seen_of_test: float) -> str:
    """Whether tokenizer and encoder are published ones, and if so what made them; None: trained here.

    seen_of_test: share of the ECGs that the paper's split tests on that they saw (`Study.seen_of_test`).
    """
    if weights is None:
        return "Tokenizer and encoder of this book were trained by pages 03 and 04, on its own ECGs."
    made = weights.metadata
    day = f" on {made['made']}" if "made" in made else ""
    at = f" at commit `{made['commit']}`" if "commit" in made else ""
    seen = (
        f"Of the ECGs on which split `seed42` tests they saw, without labels, {100 * seen_of_test:.0f} %."
        if seen_of_test
        else "They have seen none of the ECGs on which this book tests."
    )
    return (
        f"> Tokenizer and encoder are the **published weights** `{weights.name}`, made{day}{at} by "
        f"`ecglib pretrain {weights.name} --data PTBXL_DIR`; nothing was trained for this page. {seen}"
    )


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


def amplitude_table(ranges: pd.DataFrame) -> Table:
    """`amplitudes.compare_ranges` in words."""
    words = pd.DataFrame(
        {
            "range in the image, median (mV)": ranges.original_mv.map("{:.2f}".format),
            "in the copy (mV)": ranges.copy_mv.map("{:.2f}".format),
            "median difference of an ECG (mV)": ranges.error_mv.map("{:.3f}".format),
            "correlation": ranges.correlation.map("{:.2f}".format).where(ranges.correlation.notna(), "-"),
        }
    )
    return Table(words.set_index(pd.Index(ranges.lead, name="lead")))


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


def mask_lead_table(masks_by_kind: Mapping[str, np.ndarray]) -> Table:
    """How often a patch of each lead is hidden, in percent, by kind; a patch counts by its share in the band.

    Masks (n, 196) by kind.
    """
    rows = {kind: [f"{share:.0f}" for share in _lead_shares(masks)] for kind, masks in masks_by_kind.items()}
    return Table(pd.DataFrame(rows, pd.Index(LEADS_8)).T.rename_axis("hidden in (%)"))


def mask_lead_sentence(masks_by_kind: Mapping[str, np.ndarray]) -> str:
    """How often the first, the last and the favourite lead are hidden by each kind of mask, (n, 196)."""
    shares = {kind: _lead_shares(masks) for kind, masks in masks_by_kind.items()}
    words = [f"{s[0]:.0f}, {s[-1]:.0f} and {s.max():.0f} % under `{kind}`" for kind, s in shares.items()]
    return f"Lead I, V6 and the lead that is hidden most: {'; '.join(words)}."


def _lead_shares(masks: np.ndarray) -> np.ndarray:
    """How often masks (n, 196) hide a patch of each lead (8,), in percent."""
    return 100 * lead_patch_rows(GRID) @ masks.mean(axis=0).reshape(GRID, GRID).mean(axis=1)


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


def lead_accuracy_table(table: pd.DataFrame) -> Table:
    """`explanations.accuracy_by_lead` in words."""
    words = pd.DataFrame(
        {
            "hidden patches": table.hidden.map("{:,.0f}".format),
            "named right (%)": (100 * table.accuracy).map("{:.1f}".format),
            "always the lead's commonest token (%)": (100 * table.majority).map("{:.1f}".format),
            "difference (points)": ((100 * table.above).round(1) + 0.0).map("{:+.1f}".format),
        }
    )
    words.loc[table.accuracy.isna(), words.columns[1:]] = "-"  # nothing of this lead was hidden
    return Table(words.set_index(pd.Index(table.lead, name="lead")))


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
