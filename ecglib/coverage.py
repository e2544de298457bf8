"""How often an interval holds the truth, by simulation: the only way to tell an honest one from a narrow one.

Scores are normal in both classes (binormal), so the true AUROC and average precision are known. Patients have
one to three ECGs with one label, whose scores go together. Every simulated study is read by each interval.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from ecglib.errors import EcglibError
from ecglib.intervals import Interval, bca, of_mean, percentile
from ecglib.metrics import METRICS, auroc, bootstrap, leave_one_patient_out, point_scores, trapezoid_auprc
from ecglib.progress import track

SIZES = {
    "large": (4352, 235),
    "small": (220, 12),
}  # records and positives; large: the paper's STEMI test part
SHARE_WITH = (0.7, 0.2, 0.1)  # of the patients one, two and three ECGs, as in the embedded cohort
INTERVALS = ("percentile", "bca", "by record", "of the mean")


@dataclass(frozen=True, kw_only=True)
class CoverageSettings:
    """How the intervals are put to the test: simulated studies in which the truth is known."""

    n_large: int = 400  # simulated studies of the size of the paper's STEMI test part: 235 of 4,352
    n_small: int = 1000  # simulated studies with few positives: 12 of 220
    auroc: float = 0.88  # true AUROC, that of the paper's STEMI at 1 % of the labels
    correlation: float = 0.7  # between the scores of two ECGs of one patient
    n_draws: int = 500  # bootstrap draws in each study
    confidence: float = 0.95  # nominal coverage, between 0 and 1
    seed: int = 0  # seed of the simulated studies and of the bootstrap

    def __post_init__(self) -> None:
        for name in ("n_large", "n_small", "n_draws"):
            if getattr(self, name) < 2:
                raise EcglibError(f"{name} must be at least 2, got {getattr(self, name)}")
        for name in ("auroc", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise EcglibError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.correlation <= 1:
            raise EcglibError(f"correlation must lie from 0 to 1, got {self.correlation}")


def simulate(
    n: int, n_positive: int, settings: CoverageSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients (n,) of one study; all ECGs of a patient have one label."""
    y_true = np.arange(n) < n_positive
    groups = np.concatenate([_patients(n_positive, rng), -1 - _patients(n - n_positive, rng)])
    owner = np.unique(groups, return_inverse=True)[1]
    shared, own = rng.normal(size=owner.max() + 1)[owner], rng.normal(size=n)
    noise = np.sqrt(settings.correlation) * shared + np.sqrt(1 - settings.correlation) * own
    return y_true.astype(np.int8), noise + _distance(settings.auroc) * y_true, owner


def truth(auroc: float, prevalence: float) -> dict[str, float]:
    """AUROC and average precision of endlessly many such patients: precision averaged over the positives."""
    z = np.linspace(-9, 9, 20001)
    sensitivity, false_alarms = norm.sf(z), norm.sf(z + _distance(auroc))
    precision = prevalence * sensitivity / (prevalence * sensitivity + (1 - prevalence) * false_alarms)
    return {"auroc": auroc, "auprc": float(np.trapezoid(precision * norm.pdf(z), z))}


def _distance(auroc: float) -> float:
    """How far apart the classes' means lie, in standard deviations."""
    return float(np.sqrt(2) * norm.ppf(auroc))


def _patients(n: int, rng: np.random.Generator) -> np.ndarray:
    """Patients of n records, numbered from 0."""
    sizes = rng.choice(np.arange(1, len(SHARE_WITH) + 1), n, p=SHARE_WITH)
    return np.repeat(np.arange(n), sizes)[:n]


def coverage(settings: CoverageSettings) -> pd.DataFrame:
    rows = []
    for size, n_studies in (("small", settings.n_small), ("large", settings.n_large)):
        for study in track(range(n_studies), f"{size} studies", unit="study"):
            rows += _read_study(size, study, settings)
    return pd.DataFrame(rows)


def _read_study(size: str, study: int, settings: CoverageSettings) -> list[dict]:
    y_true, y_score, groups = simulate(*SIZES[size], settings, np.random.default_rng([settings.seed, study]))
    values = point_scores(y_true, y_score)
    jack = leave_one_patient_out(y_true, y_score, groups)
    by_patient = bootstrap(y_true, y_score, groups, n_draws=settings.n_draws, seed=study)
    by_record = bootstrap(y_true, y_score, np.arange(len(y_true)), n_draws=settings.n_draws, seed=study)
    known = truth(settings.auroc, y_true.mean())
    out = []
    for m in METRICS:
        d = by_patient[m].to_numpy()
        for name, (low, high) in {
            "percentile": percentile(d, settings.confidence),
            "bca": bca(values[m], d, jack[m].to_numpy(), settings.confidence),
            "by record": percentile(by_record[m].to_numpy(), settings.confidence),
            "bca by record": bca(
                values[m],
                by_record[m].to_numpy(),
                leave_one_patient_out(y_true, y_score, np.arange(len(y_true)))[m].to_numpy(),
                settings.confidence,
            ),
            "of the mean": of_mean(d, settings.confidence),
        }.items():
            out.append(
                dict(
                    size=size,
                    study=study,
                    metric=m,
                    interval=name,
                    value=values[m],
                    low=low,
                    high=high,
                    truth=known[m],
                    trapezoid=trapezoid_auprc(y_true, y_score),
                )
            )
    return out
