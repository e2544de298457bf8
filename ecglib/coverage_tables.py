"""Tables of simulated studies: which intervals hold the truth, what .88 of 235 positives allows, ties."""

import numpy as np
import pandas as pd

from ecglib.claims import STEMI_AT_1_PERCENT, read_claims
from ecglib.coverage import (
    RUN_SPREADS,
    SIZES,
    STEP,
    CoverageSettings,
    coverage,
    intervals_of_run_means,
    precision_of_rules,
    spread_of_auroc,
)
from ecglib.intervals import hanley_mcneil
from ecglib.metrics import METRICS
from ecglib.score_tables import in_order
from ecglib.style import INTERVAL_NAMES, METRIC_NAMES, Table


def coverage_table(intervals: pd.DataFrame, statistic: str = "score") -> Table:
    """How often each interval held the truth, with Monte-Carlo standard errors: of scores, or of differences.

    `intervals` is `coverage.simulated_intervals`.
    """
    found = coverage(intervals).query("statistic == @statistic")
    sizes = [_size_text(size, n) for size, n in zip(found["size"], found.n_studies, strict=True)]
    table = pd.DataFrame(
        {
            "positive, studies": pd.Categorical(sizes, list(dict.fromkeys(sizes)), ordered=True),
            "interval": in_order(found.interval, INTERVAL_NAMES.get, INTERVAL_NAMES),
            "metric": found["metric"],
            "holds the truth (%)": _with_errors(100 * found.coverage, 100 * found.error, 1),
            "truth below / above it (%)": [
                f"{100 * b:.1f} / {100 * a:.1f}" for b, a in zip(found.below, found.above, strict=True)
            ],
            "mean width": found.width.map("{:.3f}".format),
        }
    )
    wide = table.pivot(index=["positive, studies", "interval"], columns="metric").sort_index()
    names = {
        (metric, name): f"{METRIC_NAMES[metric]} {name}" for metric in METRICS for name in table.columns[3:]
    }
    columns = {text: wide[name][metric] for (metric, name), text in names.items()}
    return Table(pd.DataFrame(columns).fillna("-"))


def _size_text(size: str, n_studies: int) -> str:
    n, n_positive, _ = SIZES[size]
    return f"{n_positive} of {n:,}, {n_studies:,} studies"


def _with_errors(values: pd.Series, errors: pd.Series, digits: int) -> list[str]:
    return [f"{value:.{digits}f} ± {error:.{digits}f}" for value, error in zip(values, errors, strict=True)]


def coverage_sentence(intervals: pd.DataFrame) -> str:
    """Whether the interval that is used holds the truth as often as it says, and whether the paper's does."""
    found = coverage(intervals).query("statistic == 'score' and metric == 'auroc' and size == 'large'")
    used, papers = (found.loc[found.interval == name].iloc[0] for name in ("percentile", "of_mean"))
    return (
        f"With {SIZES['large'][1]} positives the interval that is used holds the true AUROC in "
        f"**{100 * used.coverage:.1f} %** of {used.n_studies:,} studies, the interval of the bootstrap mean "
        f"in **{100 * papers.coverage:.1f} %**."
    )


def run_mean_table(settings: CoverageSettings) -> Table:
    """How often each interval of a mean over a few trained networks held the truth."""
    found = coverage(intervals_of_run_means(settings))
    of_patients, of_runs = RUN_SPREADS
    names = {
        "patients": f"patients alone (SD {of_patients:g})",
        "redrawn": f"runs (SD {of_runs:g}) drawn with replacement, too",
        "runs": "runs by Student's t (used)",
    }
    table = pd.DataFrame(
        {
            "networks, studies": [
                f"{s}, {n:,} studies" for s, n in zip(found["size"], found.n_studies, strict=True)
            ],
            "interval over": found.interval.map(names),
            "holds the truth (%)": _with_errors(100 * found.coverage, 100 * found.error, 1),
            "mean width": found.width.map("{:.3f}".format),
        }
    )
    return Table(table.set_index(["networks, studies", "interval over"]))


def printed_interval_table(intervals: pd.DataFrame, settings: CoverageSettings) -> Table:
    """The paper's interval of its AUROC for STEMI at 1 % of the labels, beside what its numbers allow."""
    claims = read_claims().set_index("id")
    paper = claims.loc[STEMI_AT_1_PERCENT, ["paper_low", "paper_high"]].to_numpy(float)
    half_a_digit = 0.5 * 10.0 ** -claims.loc[STEMI_AT_1_PERCENT, "decimals"]
    n, n_positive, _ = SIZES["large"]
    chosen = intervals.query("size == 'large' and statistic == 'score' and metric == 'auroc'")
    mean = chosen.groupby("interval")[["low", "high"]].mean()
    rows = {
        "printed in the paper": paper,
        "the widest that is printed so": paper + np.array([-half_a_digit, half_a_digit]),
        "Hanley and McNeil's formula": hanley_mcneil(
            settings.auroc, n_positive, n - n_positive, settings.confidence
        ),
        "simulated studies, one ECG a patient": spread_of_auroc(settings, one_ecg_each=True),
        "simulated studies, patients with up to three": spread_of_auroc(settings, one_ecg_each=False),
        "bootstrap percentiles, mean over the studies": mean.loc["percentile"].to_numpy(),
        "interval of the bootstrap mean, likewise": mean.loc["of_mean"].to_numpy(),
    }
    numbers = pd.DataFrame(rows, index=pd.Index(["low", "high"])).T
    width = numbers.high - numbers.low
    numbers = numbers.map("{:.3f}".format)
    numbers.loc["printed in the paper"] = [f"{limit:.2f}" for limit in paper]
    return Table(
        numbers.assign(
            width=width.map("{:.3f}".format), **{"times the printed": (width / width.iloc[0]).round(1)}
        )
    )


def precision_table(settings: CoverageSettings) -> Table:
    """Average precision beside the trapezoid rule, in the mean over simulated studies."""
    found = precision_of_rules(settings)
    table = pd.DataFrame(
        {
            "positive, studies": [_size_text(size, settings.n_studies(size)) for size in found["size"]],
            "scores": found.scores.map({"fine": "as they are", "rounded": f"in steps of {STEP:g} SD"}),
            "truth": found.truth.map("{:.3f}".format),
            "average precision": found.average_precision.map("{:.3f}".format),
            "trapezoid rule": found.trapezoid.map("{:.3f}".format),
            "trapezoid minus average precision": _with_errors(found.gap, found.error, 4),
        }
    )
    return Table(table.set_index(["positive, studies", "scores"]))
