"""What a careful reader finds in the paper, computed: tables that need no more than its own numbers.

Those come from book/claims.csv and book/audit_facts.csv; none is typed into code or a notebook. What needs
records or scores of a study is in ecglib.audit_study.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from sklearn.model_selection import GroupShuffleSplit

from ecglib.claims import CLAIMS_FILE, STEMI_AT_1_PERCENT, printed, read_claims
from ecglib.classifiers import HALF, IMAGENET_MEAN, IMAGENET_STD
from ecglib.cohort import Cohort
from ecglib.domain_shift import histograms, pairwise_wasserstein
from ecglib.errors import EcglibError
from ecglib.intervals import hanley_mcneil_error
from ecglib.style import METRIC_NAMES, Table, model_name, outcome_name

FACTS_FILE = CLAIMS_FILE.with_name("audit_facts.csv")
ROUNDING = 0.005  # of a number printed with two digits
N_SIMULATED = 20_000  # runs behind an expected maximum
SEED = 0


def read_facts(path: Path = FACTS_FILE) -> dict[str, str]:
    """What the paper and its public code say of their methods: name -> value, as text.

    Raises EcglibError for a missing file or column, and for a name that stands twice.
    """
    facts = read_text_table(path, ("name", "value", "source", "statement"))
    twice = facts.name[facts.name.duplicated()]
    if len(twice):
        raise EcglibError(f"{path.name}: {twice.iloc[0]} stands twice: keep one")
    return dict(zip(facts.name, facts.value, strict=True))


def read_text_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file of the book as text; EcglibError where it or a column is missing."""
    if not path.exists():
        raise EcglibError(f"no file at {path}: restore book/{path.name} from git")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in columns if name not in table]:
        raise EcglibError(f"{path.name} lacks the column {missing[0]}: restore it from git")
    return table


# --- the split ---


def split_counts(cohort: Cohort) -> pd.DataFrame:
    """ECGs in the parts of the public code's split, with patient ids as text and as numbers.

    Rows: text, number, printed (the paper's). Columns: fine_tune, test, sum. External ECGs take no part; ids
    that are no numbers are numbered in the order of the table.
    """
    patients = cohort.manifest.loc[~cohort.manifest.external, "patient_id"].astype(str)
    numbers = patients.astype(int) if patients.str.isdigit().all() else pd.Series(pd.factorize(patients)[0])
    groups = {"text": numbers.astype(str).to_numpy(), "number": numbers.to_numpy()}
    facts, rows = read_facts(), {}
    for name, ids in groups.items():
        splitter = GroupShuffleSplit(
            n_splits=1, test_size=float(facts["test_share"]), random_state=int(facts["split_seed"])
        )
        kept, held = next(splitter.split(ids, groups=ids))
        rows[name] = {"fine_tune": len(kept), "test": len(held)}
    claims = read_claims()
    rows["printed"] = {
        part: int(printed(claims, "stemi", part, "n_records")) for part in ("fine_tune", "test")
    }
    return pd.DataFrame(rows).T.assign(sum=lambda t: t["fine_tune"] + t["test"])


def split_table(cohort: Cohort) -> Table:
    """`split_counts` in words."""
    names = {"text": "patient ids as text", "number": "patient ids as numbers", "printed": "the paper prints"}
    words = {"fine_tune": "fine-tuning ECGs", "test": "test ECGs"}
    counts = split_counts(cohort).rename(index=names, columns=words)
    return Table(counts.map("{:,}".format).rename_axis("same rule, same seed"))


# --- the choice of the epoch on the test set, and the intervals ---


def expected_gain(n_looks: int, error: float, correlations: Sequence[float]) -> pd.DataFrame:
    """How far the best of k looks at one test set lies above a single look, k from 1 to `n_looks`, expected.

    `error`: standard error of one look. All epochs are equally good in truth; their errors have the same
    correlation, since all are of the same patients. One column per correlation, index k; by simulation.
    """
    noise = np.random.default_rng(SEED).standard_normal((N_SIMULATED, n_looks))
    best = np.maximum.accumulate(noise, axis=1).mean(axis=0)
    # The part that epochs have in common moves all of them alike: it can be gained by no choice.
    gains = {rho: error * np.sqrt(1 - rho) * best for rho in correlations}
    return pd.DataFrame(gains, index=pd.RangeIndex(1, n_looks + 1, name="looks"))


def gains(correlations: Sequence[float] = (0.0, 0.5, 0.9)) -> pd.DataFrame:
    """`expected_gain` for the paper's STEMI test set and its AUROC at 1 % of the labels."""
    claims = read_claims()
    n_positive, n_negative = _classes(claims, "stemi", "test")
    value = claims.set_index("id").loc[STEMI_AT_1_PERCENT, "paper_value"]
    error = float(hanley_mcneil_error(float(str(value)), n_positive, n_negative))
    return expected_gain(int(read_facts()["epochs_text"]), error, correlations)


def gain_table(expected: pd.DataFrame) -> Table:
    """The expected gain at the code's and the text's number of epochs."""
    facts = read_facts()
    looks = [int(facts["epochs_code"]), int(facts["epochs_text"])]
    names = [f"best of {n} epochs" for n in looks]
    table = expected.loc[looks].T.set_axis(names, axis=1).map("+{:.3f}".format)
    return Table(table.rename_axis("correlation between the epochs' errors"))


def _classes(claims: pd.DataFrame, outcome: str, part: str) -> tuple[float, float]:
    n, percent = (printed(claims, outcome, part, metric) for metric in ("n_records", "prevalence"))
    n_positive = np.round(n * percent / 100)
    return float(n_positive), float(n - n_positive)


def interval_widths() -> pd.DataFrame:
    """Width of each printed interval, and the width that so many patients allow.

    Columns: id, statement, metric, low, high, n, n_positive (NaN where the paper gives no prevalence),
    printed, at_most (before rounding), needed, of_mean (of the mean of the paper's bootstrap draws), bounded.
    AUROC: Hanley and McNeil; AUPRC: binomial, of the positives (Boyd, Eng and Page 2013). Where prevalence is
    not known, `needed` is the width at the prevalence that makes it least.
    """
    claims = read_claims()
    draws, wide, rows = float(read_facts()["bootstrap_draws"]), 2 * norm.ppf(0.975), []
    for claim in claims.loc[(claims["kind"] == "value") & claims["paper_low"].notna()].to_dict("records"):
        n = printed(claims, claim["outcome"], claim["part"], "n_records")
        n_positive, _ = _classes(claims, claim["outcome"], claim["part"])
        known = not np.isnan(n_positive)
        positives = np.array([n_positive]) if known else np.arange(2, n - 1)
        needed = wide * float(_error(claim["metric"], claim["paper_value"], positives, n).min())
        width = claim["paper_high"] - claim["paper_low"]
        head = {"id": claim["id"], "statement": claim["statement"], "metric": claim["metric"]}
        head |= {"low": claim["paper_low"], "high": claim["paper_high"], "n": n, "n_positive": n_positive}
        widths = {"printed": width, "at_most": width + 2 * ROUNDING, "needed": needed}
        rows.append(head | widths | {"of_mean": needed / np.sqrt(draws), "bounded": not known})
    return pd.DataFrame(rows)


def _error(metric: str, value: float, positives: np.ndarray, n: float) -> np.ndarray:
    if metric == "auroc":
        return hanley_mcneil_error(value, positives, n - positives)
    return np.sqrt(value * (1 - value) / positives)


def interval_table(widths: pd.DataFrame) -> Table:
    """`interval_widths` in words."""
    least = np.where(widths["bounded"], "at least ", "")
    columns = {
        "printed interval": [f"{a:.2f}-{b:.2f}" for a, b in zip(widths["low"], widths["high"], strict=True)],
        "n": widths["n"].map("{:,.0f}".format),
        "positives": ["not printed" if np.isnan(p) else f"{p:,.0f}" for p in widths["n_positive"]],
        "its width, before rounding": widths["at_most"].map("at most {:.3f}".format),
        "width needed": least + widths["needed"].map("{:.3f}".format),
        "width for the mean of the draws": widths["of_mean"].map("{:.4f}".format),
        "needed over printed": (widths["needed"] / widths["at_most"]).map("at least {:.1f}".format),
    }
    return Table(pd.DataFrame(columns).set_axis(pd.Index(widths["statement"], name="claim"), axis=0))


# --- the baseline, the learning rate ---


def baseline_table() -> Table:
    """What the transformer baseline is called, what is loaded for it, and how both are optimised."""
    facts = read_text_table(FACTS_FILE, ("name", "value", "source", "statement")).set_index("name")
    names = ["baseline_text", "baseline_code", "optimizer_heartbeit", "optimizer_baselines"]
    return Table(facts.loc[names, ["statement", "value", "source"]].set_index("statement"))


def normalisation_table(pixels: np.ndarray) -> Table:
    """What a network is given for an ECG image (uint8, any shape) under two normalisations."""
    rules = {
        "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
        "0.5 and 0.5, as BEiT learnt": (HALF, HALF),
    }
    rows = {}
    for name, (means, stds) in rules.items():
        for colour, mean, std in zip(("red", "green", "blue"), means, stds, strict=True):
            given = (pixels / 255 - mean) / std
            values = {
                "ink (0)": -mean / std,
                "paper (255)": (1 - mean) / std,
                "mean of this image": given.mean(),
            }
            values |= {"standard deviation": given.std()}
            rows[name, colour] = {what: f"{value:.2f}" for what, value in values.items()}
    return Table(pd.DataFrame(rows).T.rename_axis(["normalisation", "channel"]))


def learning_rates(n_steps: int = 1000) -> pd.DataFrame:
    """The learning rate at each step of the public code's schedule, by PyTorch's own scheduler.

    Columns: share (0..1 of the training), rate. The optimiser is made with the code's own rate first.
    """
    facts = read_facts()
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=float(facts["lr_code_optimizer"]))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=float(facts["lr_code_peak"]), total_steps=n_steps
    )
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < n_steps:
            schedule.step()
    return pd.DataFrame({"share": np.arange(n_steps) / (n_steps - 1), "rate": rates})


def said_rates() -> tuple[float, float]:
    """The range of learning rates that the text names."""
    facts = read_facts()
    return float(facts["lr_text_low"]), float(facts["lr_text_high"])


def learning_rate_table(rates: pd.DataFrame) -> Table:
    """Where the learning rate begins, peaks and ends, beside what is said of it, and the epochs."""
    facts = read_facts()
    said = "{:.0e} to {:.0e}".format(*said_rates())
    drawn = f"{rates.rate.iloc[0]:.0e}, then {rates.rate.max():.0e}, then {rates.rate.iloc[-1]:.0e}"
    rows = {
        "learning rate": {"text": said, "public code": drawn},
        "epochs": {"text": facts["epochs_text"], "public code": facts["epochs_code"]},
    }
    return Table(pd.DataFrame(rows).T)


# --- the distance, the maps ---


def ink_table(photographs: np.ndarray, percents: Sequence[float] = (0, 2, 5, 10)) -> Table:
    """Mean distance of photographs (uint8) to a page that is white but for a share of black pixels.

    The pixels lie anywhere: the distance does not see where. The share of the paper's ECGs is marked.
    """
    claims, ink = read_claims().set_index("id")["paper_value"], float(read_facts()["ink_percent"])
    natural, rows = histograms(photographs), {}
    for percent in percents:
        page = np.full((1, 10_000), 255, np.uint8)
        page[0, : round(100 * percent)] = 0
        mean = pairwise_wasserstein(histograms(page), natural).mean()
        ecg = f"{claims['wasserstein-ecg-natural']:g}" if percent == ink else ""
        rows[f"{percent:g} %"] = {"mean distance (grey levels)": f"{mean:.1f}", "the paper's, for ECGs": ecg}
    within = pairwise_wasserstein(natural, natural)[np.triu_indices(len(natural), 1)].mean()
    rows["photographs instead"] = {
        "mean distance (grey levels)": f"{within:.1f}",
        "the paper's, for ECGs": f"{claims['wasserstein-natural-natural']:g} (ImageNet)",
    }
    return Table(pd.DataFrame(rows).T.rename_axis("black pixels on the page"))


def map_cells() -> dict[str, int]:
    """How many cells a row of a saliency map has, by kind of network."""
    facts, kinds = read_facts(), {"HeartBEiT, ViT-B/16": "vit", "ResNet-152, EfficientNet-B4": "cnn"}
    side = float(facts["image_pixels"])
    return {name: round(side / float(facts[f"{kind}_cell_pixels"])) for name, kind in kinds.items()}


def resolution_table() -> Table:
    """What one cell of a saliency map covers, by kind of network."""
    facts, rows = read_facts(), {}
    window, leads = (float(facts[name]) for name in ("window_ms", "leads"))
    for name, n in map_cells().items():
        rows[name] = {
            "cells": f"{n} x {n}",
            "a cell lasts (ms)": f"{window / n:.0f}",
            "rows of cells for a lead": f"{n / leads:.2f}",
            "ST segment, in cells": f"{float(facts['st_segment_ms']) * n / window:.2f}",
        }
    return Table(pd.DataFrame(rows).T.rename_axis("network"))


# --- numbers that cannot all be right ---


def consistency_table() -> Table:
    """Numbers of the paper held against each other, each pair with a verdict that is computed."""
    claims = read_claims()
    rows = _sum_checks(claims) + _interval_checks(claims) + _relative_checks(claims)
    return Table(pd.DataFrame(rows).set_index("check"))


def _row(check: str, one: str, other: str, verdict: str) -> dict[str, str]:
    return {"check": check, "one number": one, "the other": other, "verdict": verdict}


def _sum_checks(claims: pd.DataFrame) -> list[dict[str, str]]:
    lvef, hcm = (printed(claims, outcome, "test", "n_records") for outcome in ("low_lvef", "hcm"))
    parts = [printed(claims, "stemi", part, "n_records") for part in ("fine_tune", "test")]
    whole = printed(claims, "stemi", "all", "n_records")
    same = "equal, though the labels come from different reports" if lvef == hcm else "they differ"
    off = sum(parts) - whole
    return [
        _row("Internal test: LVEF and HCM", f"{lvef:,.0f}", f"{hcm:,.0f}", same),
        _row("STEMI: fine-tuning and test make all",
             f"{parts[0]:,.0f} + {parts[1]:,.0f} = {sum(parts):,.0f}", f"{whole:,.0f}",
             f"cannot both be right: {off:+.0f}" if off else "agree"),
    ]  # fmt: skip


def _interval_checks(claims: pd.DataFrame) -> list[dict[str, str]]:
    """Of each printed interval wider than its rounding: does the value lie near its middle?"""
    rows = []
    for claim in claims.loc[claims["paper_high"] - claims["paper_low"] > 4 * ROUNDING].to_dict("records"):
        value, low, high = (claim[name] for name in ("paper_value", "paper_low", "paper_high"))
        place = (value - low) / (high - low)
        verdict = "not of this value" if not 0.25 <= place <= 0.75 else "agree"
        whose = f"{model_name(claim['model'])}, {outcome_name(claim['outcome'])}"
        name = f"{METRIC_NAMES[claim['metric']]} of {whose}"
        middle = f"{low:.2f}-{high:.2f}, middle {(low + high) / 2:.2f}"
        rows.append(_row(f"{name}, and its interval", f"{value:.2f}", middle, verdict))
    return rows


def _relative_checks(claims: pd.DataFrame) -> list[dict[str, str]]:
    """Relative differences for which the paper prints both scores as well."""
    keys, rows = ["outcome", "fraction", "part", "metric"], []
    values = claims.loc[claims["kind"] == "value"].set_index([*keys, "model"])["paper_value"]
    for claim in claims.loc[claims["kind"] == "relative difference"].to_dict("records"):
        pair = [(*(claim[key] for key in keys), claim[name]) for name in ("model", "reference")]
        if all(key in values.index for key in pair):
            a, b = (float(values.loc[[key]].iloc[0]) for key in pair)
            low, high = ((a - s) / (b + s) * 100 - 100 for s in (ROUNDING, -ROUNDING))
            fits = "agree" if low <= claim["paper_value"] <= high else "cannot both be right"
            name = f"{outcome_name(claim['outcome'])}: HeartBEiT over {model_name(claim['reference'])}"
            found = f"{a:.2f} / {b:.2f}: {low:.1f} to {high:.1f} %"
            rows.append(_row(name, f"{claim['paper_value']:g} %", found, fits))
    return rows
