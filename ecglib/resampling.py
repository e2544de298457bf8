"""The bootstrap over patients for any score: how often each draw takes each record.

The draws are those of `metrics.bootstrap` for the same seed, labels and patients, so that all scores of a
page are resampled alike.
"""

import numpy as np

from ecglib.metrics import ScoreSettings, draw_patients, interval


def record_weights(y_true: np.ndarray, groups: np.ndarray, settings: ScoreSettings) -> np.ndarray:
    """How often each draw takes each record (n_draws, n); labels and patient ids (n,), both classes there.

    A weighted mean over records is then `weights @ x / weights.sum(axis=1)`, for all draws at once.
    """
    patients, codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    records_of_class = np.array([np.bincount(codes, y_true == label, len(patients)) for label in (0, 1)])
    weights, _ = draw_patients(records_of_class, settings.n_draws, np.random.default_rng(settings.seed))
    return weights[:, codes]


def spread(values: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    """Ends `low` and `high` of the interval of draws (n_draws,), by percentiles.

    Empty where a draw has no number: an interval of those that have one would be too narrow.
    """
    if not np.isfinite(values).all():
        return {"low": float("nan"), "high": float("nan")}
    low, high = interval(values, "honest", settings.confidence)
    return {"low": low, "high": high}
