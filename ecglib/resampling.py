"""The bootstrap over patients for any score: how often each draw takes each record.

The draws are those of `metrics.bootstrap` for the same seed, labels and patients, so that all scores of a
page are resampled alike.
"""

import numpy as np

from ecglib.intervals import percentile
from ecglib.metrics import ScoreSettings, patient_draws


def record_weights(y_true: np.ndarray, groups: np.ndarray, settings: ScoreSettings) -> np.ndarray:
    """How often each draw takes each record (n_draws, n); labels and patient ids (n,), both classes there.

    A weighted mean over records is then `weights @ x / weights.sum(axis=1)`, for all draws at once.
    """
    rng = np.random.default_rng(settings.seed)
    codes, weights, _ = patient_draws(y_true, groups, settings.n_draws, rng)
    return weights.astype(np.float64)[:, codes]


def spread(values: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    """Ends `low` and `high` of the interval of draws (n_draws,), by percentiles.

    Empty where a draw has no number: an interval of those that have one would be too narrow.
    """
    if not np.isfinite(values).all():
        return {"low": float("nan"), "high": float("nan")}
    low, high = percentile(values, settings.confidence)
    return {"low": low, "high": high}
