"""The bootstrap over patients for any score: how often each draw takes each record.

The draws are those of `metrics.bootstrap` for the same seed, labels and patients, so that all scores of a
page are resampled alike.
"""

from collections.abc import Sequence

import numpy as np

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


def auroc_draws(
    y_true: np.ndarray, scores: Sequence[np.ndarray], groups: np.ndarray, settings: ScoreSettings
) -> np.ndarray:
    """AUROC (n_runs, n_draws) of several runs' scores (n,) of the same records, for each draw of patients."""
    rng = np.random.default_rng(settings.seed)
    auroc, _ = bootstrap_steps(y_true, np.stack(scores), groups, settings.n_draws, rng)
    return auroc[:, 1:]


def mean_of_drawn_runs(draws: np.ndarray, seed: int) -> np.ndarray:
    """Mean (n_draws,) of as many runs, drawn with replacement, of (n_runs, n_draws): each draw its own.

    Over both patients and runs, then: how far the mean over runs is known, not those runs alone. The same
    seed draws the same runs, so that two models that were run on the same labels stay paired.
    """
    drawn = np.random.default_rng(seed).integers(len(draws), size=draws.shape)
    return np.take_along_axis(draws, drawn, axis=0).mean(axis=0)


def spread(values: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    """Ends `low` and `high` of the interval of draws (n_draws,), by percentiles.

    Empty where a draw has no number: an interval of those that have one would be too narrow.
    """
    if not np.isfinite(values).all():
        return NO_INTERVAL
    low, high = percentile(values, settings.confidence)
    return {"low": low, "high": high}
