"""The bootstrap over patients for any score: how often each draw takes each record.

The draws are those of `metrics.bootstrap` for the same seed, labels and patients, so that all scores of a
page are resampled alike.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student_t

from ecglib.intervals import percentile
from ecglib.metrics import METRICS, ScoreSettings, bootstrap, bootstrap_steps, patient_draws, point_scores

NO_INTERVAL = {"low": float("nan"), "high": float("nan")}


def record_weights(y_true: np.ndarray, groups: np.ndarray, settings: ScoreSettings) -> np.ndarray:
    """How often each draw takes each record (n_draws, n); labels and patient ids (n,), both classes there.

    A weighted mean over records is then `weights @ x / weights.sum(axis=1)`, for all draws at once.
    """
    rng = np.random.default_rng(settings.seed)
    codes, weights, _ = patient_draws(y_true, groups, settings.n_draws, rng)
    return weights.astype(np.float64)[:, codes]


def spread_scores(
    y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, settings: ScoreSettings
) -> dict[str, dict[str, float]]:
    """AUROC and average precision, by name, each with value, low and high over the patients `groups`.

    No interval where the scores part the classes: every draw is parted as well, and shows no spread.
    """
    values = point_scores(y_true, y_score)
    if values["auroc"] in (0, 1):
        return {m: {"value": values[m], **NO_INTERVAL} for m in METRICS}
    draws = bootstrap(y_true, y_score, groups, n_draws=settings.n_draws, seed=settings.seed)
    return {m: {"value": values[m], **spread(draws[m].to_numpy(), settings)} for m in METRICS}


def class_of_one(y_true: np.ndarray, groups: np.ndarray) -> str:
    """Which class is one patient's alone, positive or negative; empty where none is.

    Such a patient is in every draw that has both classes, so no bootstrap tells how much hangs on him.
    """
    for label, name in ((1, "positive"), (0, "negative")):
        patients = groups[y_true == label]
        if len(patients) and (patients == patients[0]).all():
            return name
    return ""


def auroc_draws(
    y_true: np.ndarray, scores: Sequence[np.ndarray], groups: np.ndarray, settings: ScoreSettings
) -> np.ndarray:
    """AUROC (n_runs, n_draws) of several runs' scores (n,) of the same records, for each draw of patients."""
    rng = np.random.default_rng(settings.seed)
    auroc, _ = bootstrap_steps(y_true, np.stack(scores), groups, settings.n_draws, rng)
    return auroc[:, 1:]


def mean_over_runs(values: np.ndarray, draws: np.ndarray, settings: ScoreSettings) -> tuple[float, float]:
    """Interval of a mean over a few runs, over patients and over the runs that might have been made instead.

    values: of each run (n_runs,); draws: the same for each draw of the patients (n_runs, n_draws). To each
    draw's mean over the runs is added how far a mean of so few may be off, in its own standard errors: even
    quantiles of Student's t with n_runs - 1 degrees of freedom, in random order. Drawing the runs with
    replacement instead is too narrow for a few (`coverage.intervals_of_run_means`). Of a single run the
    interval is over patients alone.
    """
    means, n_runs = draws.mean(axis=0), len(values)
    if n_runs > 1:
        even = (np.arange(len(means)) + 0.5) / len(means)
        quantiles = np.random.default_rng(settings.seed).permutation(student_t.ppf(even, n_runs - 1))
        means = means + quantiles * values.std(ddof=1) / np.sqrt(n_runs)
    return percentile(means, settings.confidence)


def spread(values: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    """Ends `low` and `high` of the interval of draws (n_draws,), by percentiles.

    Empty where a draw has no number: an interval of those that have one would be too narrow.
    """
    if not np.isfinite(values).all():
        return NO_INTERVAL
    low, high = percentile(values, settings.confidence)
    return {"low": low, "high": high}
