"""How often an interval holds the truth, by simulation: the way to tell an honest interval from a narrow one.

Two models score each simulated study. Their scores are normal in both classes (binormal), so that true AUROC
and average precision are known. Patients have one to three ECGs of one label, whose scores go together.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from ecglib.comparisons import delong
from ecglib.errors import EcglibError
from ecglib.intervals import Interval, bca, of_mean, percentile
from ecglib.metrics import (
    METRICS,
    ScoreSettings,
    auprc,
    auroc,
    bootstrap_steps,
    leave_one_patient_out,
    trapezoid_auprc,
)
from ecglib.progress import track
from ecglib.resampling import mean_over_runs

# Records, positives, and the shares of the patients with one, two and three ECGs. "large" is the paper's
# STEMI test part with PTB-XL's shares; "small" has those of the embedded cohort.
SIZES = {"large": (4352, 235, (0.88, 0.09, 0.03)), "small": (220, 12, (0.7, 0.2, 0.1))}
STATISTICS = ("score", "difference")
STEP = 0.5  # of scores that are rounded, in standard deviations
RUNS = (2, 3, 5, 20)  # trained networks in a mean
# Standard deviations of a lead in AUROC: over patients, and from run to run. Fine-tuned cells at 1 % of
# PTB-XL's STEMI labels have about these.
RUN_SPREADS = (0.02, 0.06)


@dataclass(frozen=True, kw_only=True)
class CoverageSettings:
    """How the intervals are put to the test: simulated studies in which the truth is known."""

    n_large: int = 400  # simulated studies of the size of the paper's STEMI test part, 235 positives of 4,352
    n_small: int = 1000  # simulated studies with few positives, 12 of 220
    auroc: float = 0.88  # true AUROC of the first model; the paper's for STEMI at 1 % of the labels
    other_auroc: float = 0.82  # true AUROC of the second model
    likeness: float = 0.6  # correlation of the two models' scores of an ECG, within a class
    correlation: float = 0.7  # of a model's scores of two ECGs of one patient, within a class
    n_draws: int = 500  # bootstrap draws in each study
    confidence: float = 0.95  # nominal coverage of the intervals, between 0 and 1
    seed: int = 0  # seed of the studies and of the bootstrap

    def __post_init__(self) -> None:
        for name, least in {"n_large": 2, "n_small": 2, "n_draws": 2, "seed": 0}.items():
            if getattr(self, name) < least:
                raise EcglibError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("auroc", "other_auroc", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise EcglibError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("likeness", "correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise EcglibError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")

    def n_studies(self, size: str) -> int:
        """How many studies of a size are simulated."""
        return self.n_large if size == "large" else self.n_small


def simulate(
    size: str, study: int, settings: CoverageSettings, *, one_ecg_each: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), scores of both models (2, n) and patients (n,); the same number gives the same study."""
    rng = np.random.default_rng([settings.seed, list(SIZES).index(size), study])
    n, n_positive, shares = SIZES[size]
    shares = (1.0,) if one_ecg_each else shares
    ill, well = (_patients(count, shares, rng) for count in (n_positive, n - n_positive))
    patients = np.concatenate([ill, ill[-1] + 1 + well])
    noise = _blend(
        settings.correlation, rng.normal(size=(2, patients[-1] + 1))[:, patients], rng.normal(size=(2, n))
    )
    noise[1] = settings.likeness * noise[0] + np.sqrt(1 - settings.likeness**2) * noise[1]
    y_true = (np.arange(n) < n_positive).astype(np.int8)
    distances = [[_distance(settings.auroc)], [_distance(settings.other_auroc)]]
    return y_true, noise + distances * y_true, patients


def _blend(share: float, common: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Noise of variance 1, of which a share is common."""
    return np.sqrt(share) * common + np.sqrt(1 - share) * own


def truth(true_auroc: float, prevalence: float) -> dict[str, float]:
    """AUROC and average precision in endlessly many records: precision in the mean over the positives."""
    z = np.linspace(-9, 9, 20001)
    hits, false_alarms = prevalence * norm.sf(z), (1 - prevalence) * norm.sf(z + _distance(true_auroc))
    return {"auroc": true_auroc, "auprc": float(np.trapezoid(hits / (hits + false_alarms) * norm.pdf(z), z))}


def rounded_truth(true_auroc: float, prevalence: float) -> float:
    """Average precision in endlessly many records, if their scores are rounded to STEP."""
    distance = _distance(true_auroc)
    edges = np.arange(-9, 9 + distance, STEP) - STEP / 2  # a score at or above an edge is rounded up
    found, alarms = norm.sf(edges - distance), norm.sf(edges)
    precision = prevalence * found / (prevalence * found + (1 - prevalence) * alarms)
    return float(-np.diff(found, append=0) @ precision)


def _distance(true_auroc: float) -> float:
    """How far apart the means of the classes lie, in standard deviations."""
    return float(np.sqrt(2) * norm.ppf(true_auroc))


def _patients(n: int, shares: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Patients, numbered from 0, of n records in order."""
    return np.repeat(np.arange(n), rng.choice(np.arange(len(shares)) + 1, n, p=shares))[:n]


def simulated_intervals(settings: CoverageSettings) -> pd.DataFrame:
    """Intervals of the first model's scores, and of the differences to the second, in each simulated study.

    One row per study, statistic (score, difference), metric and interval (percentile, bca, by_record:
    percentiles of a bootstrap of ECGs, of_mean, delong: +- 1.96 standard errors of the test, for AUROC):
    size, study, statistic, metric, interval, value, low, high, truth.
    """
    rows: list[dict[str, Any]] = []
    for size, (n, n_positive, _) in SIZES.items():
        first, second = (truth(a, n_positive / n) for a in (settings.auroc, settings.other_auroc))
        true = {"score": first, "difference": {m: first[m] - second[m] for m in METRICS}}
        for study in track(range(settings.n_studies(size)), f"{size} simulated studies", unit="study"):
            for row in _intervals(*simulate(size, study, settings), settings, study):
                known = {"size": size, "study": study, "truth": true[row["statistic"]][row["metric"]]}
                rows.append(known | row)
    return pd.DataFrame(rows)


def _intervals(
    y_true: np.ndarray, y_scores: np.ndarray, patients: np.ndarray, settings: CoverageSettings, study: int
) -> Iterator[dict[str, Any]]:
    seed = [settings.seed, study]
    of_models = bootstrap_steps(y_true, y_scores, patients, settings.n_draws, np.random.default_rng(seed))
    records = np.arange(len(y_true))
    of_records = bootstrap_steps(y_true, y_scores[:1], records, settings.n_draws, np.random.default_rng(seed))
    by_patient = _with_difference(of_models)
    left_out = [leave_one_patient_out(y_true, score, patients).to_numpy().T for score in y_scores]
    jackknife = _with_difference(np.stack(left_out, axis=1))
    test = delong(y_true, y_scores[0], y_scores[1], patients)
    half = float(norm.ppf((1 + settings.confidence) / 2)) * test.error
    for (i, metric), (j, statistic) in itertools.product(enumerate(METRICS), enumerate(STATISTICS)):
        value, draws = float(by_patient[i, j, 0]), by_patient[i, j, 1:]
        limits = {
            "percentile": percentile(draws, settings.confidence),
            "bca": bca(value, draws, jackknife[i, j], settings.confidence),
            "of_mean": of_mean(draws, settings.confidence),
        }
        if statistic == "score":
            limits["by_record"] = percentile(of_records[i, 0, 1:], settings.confidence)
        elif metric == "auroc":
            limits["delong"] = (value - half, value + half)
        head = {"statistic": statistic, "metric": metric, "value": value}
        yield from (
            head | {"interval": name, "low": low, "high": high} for name, (low, high) in limits.items()
        )


def _with_difference(of_models: np.ndarray) -> np.ndarray:
    """Numbers (2 metrics, 2 models, ...) of the first model, and the first less the second."""
    return np.stack([of_models[:, 0], of_models[:, 0] - of_models[:, 1]], axis=1)


def intervals_of_run_means(settings: CoverageSettings) -> pd.DataFrame:
    """Intervals of a lead in the mean over runs of which each was trained on its own draw of the labels.

    The luck of the patients is common to all runs, that of a run is its own (RUN_SPREADS). One row per
    simulated study and interval, as `simulated_intervals`; `size` is the number of runs. Intervals: patients
    (percentiles of their bootstrap), redrawn (runs are drawn with replacement, too), runs (`mean_over_runs`).
    """
    of_patients, of_runs = RUN_SPREADS
    rows: list[dict[str, Any]] = []
    for n_runs, study in itertools.product(RUNS, range(settings.n_small)):
        rng = np.random.default_rng([settings.seed, n_runs, study])
        values = of_patients * rng.normal() + of_runs * rng.normal(size=n_runs)
        draws = values[:, None] + of_patients * rng.normal(size=settings.n_draws)
        redrawn = np.take_along_axis(draws, rng.integers(n_runs, size=draws.shape), axis=0)
        own = ScoreSettings(n_draws=settings.n_draws, confidence=settings.confidence, seed=study)
        limits = {
            "patients": percentile(draws.mean(axis=0), settings.confidence),
            "redrawn": percentile(redrawn.mean(axis=0), settings.confidence),
            "runs": mean_over_runs(values, draws, own),
        }
        head = {"size": n_runs, "study": study, "statistic": "lead", "metric": "auroc", "truth": 0.0}
        rows += [head | {"interval": name, "low": low, "high": high} for name, (low, high) in limits.items()]
    return pd.DataFrame(rows)


def coverage(intervals: pd.DataFrame) -> pd.DataFrame:
    """How often each interval held the truth.

    `intervals` as `simulated_intervals` or `intervals_of_run_means` gives them. Returns a row for each size,
    statistic, metric and interval: these, coverage, error (Monte-Carlo standard error), below, above (shares
    of the studies whose truth lies under or over the interval), width (mean), n_studies.
    """
    judged = intervals.assign(
        below=intervals.truth < intervals.low,
        above=intervals.truth > intervals.high,
        width=intervals.high - intervals.low,
    )
    by = judged.groupby(["size", "statistic", "metric", "interval"], sort=False)
    table = by[["below", "above", "width"]].mean().assign(n_studies=by.size())
    table["coverage"] = 1 - table.below - table.above
    # Of a share in n studies, with two more hits and misses (Agresti and Coull, 1998): never 0.
    share = (table.coverage * table.n_studies + 2) / (table.n_studies + 4)
    table["error"] = np.sqrt(share * (1 - share) / (table.n_studies + 4))
    return table.reset_index()


def spread_of_auroc(settings: CoverageSettings, *, one_ecg_each: bool) -> Interval:
    """Where the first model's AUROC falls in that share of the large studies which `confidence` names."""
    values = []
    for study in range(settings.n_large):
        y_true, (y_score, _), _ = simulate("large", study, settings, one_ecg_each=one_ecg_each)
        values.append(auroc(y_true, y_score))
    return percentile(np.array(values), settings.confidence)


def precision_of_rules(settings: CoverageSettings) -> pd.DataFrame:
    """Average precision and the trapezoid rule of simulated studies, with fine scores and with rounded ones.

    One row per size and scores (fine, rounded to STEP, which ties many records), in the mean over studies:
    size, scores, average_precision, trapezoid, gap (their difference), error (its standard error), truth
    (average precision in endlessly many such records).
    """
    rows = []
    for size, (n, n_positive, _) in SIZES.items():
        prevalence = n_positive / n
        true = {"fine": truth(settings.auroc, prevalence)["auprc"]}
        true["rounded"] = rounded_truth(settings.auroc, prevalence)
        for scores in ("fine", "rounded"):
            found = np.array(
                [_rules(size, study, scores, settings) for study in range(settings.n_studies(size))]
            )
            gap = found[:, 1] - found[:, 0]
            row = {"size": size, "scores": scores, "average_precision": found[:, 0].mean()}
            row |= {"trapezoid": found[:, 1].mean(), "gap": gap.mean()}
            row |= {"error": gap.std(ddof=1) / np.sqrt(len(gap))}
            rows.append(row | {"truth": true[scores]})
    return pd.DataFrame(rows)


def _rules(size: str, study: int, scores: str, settings: CoverageSettings) -> tuple[float, float]:
    y_true, (y_score, _), _ = simulate(size, study, settings)
    y_score = y_score if scores == "fine" else np.round(y_score / STEP) * STEP
    return auprc(y_true, y_score), trapezoid_auprc(y_true, y_score)
