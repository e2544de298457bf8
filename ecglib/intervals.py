"""Intervals of a score: two honest ones from draws of the patients, the paper's, and two from formulas.

`honest_interval` gives the one that stands in tables and the other beside it; the coverage study decides
which (`ecglib.coverage`, page 09). A statistic comes as its value, its bootstrap draws and its jackknife.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

Interval = tuple[float, float]


def percentile(draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """Quantiles of bootstrap draws (n_draws,) that leave out the same share on both sides."""
    low, high = np.quantile(draws, _tails(confidence))
    return float(low), float(high)


def bca(value: float, draws: np.ndarray, jackknife: np.ndarray, confidence: float = 0.95) -> Interval:
    """Bias-corrected and accelerated interval (Efron, 1987): quantiles of the draws (n_draws,), moved.

    They are moved by the share of draws below `value` (ties count half) and by the skewness of the
    `jackknife` (n_patients,). Jackknife values that are not numbers, for the other patients lacked a class,
    are left out; without spread there is no acceleration. Where all draws lie on one side of `value`, half a
    draw is taken to lie on the other.
    """
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    edge = 0.5 / len(draws)
    bias = norm.ppf(np.clip(below, edge, 1 - edge))
    pulls = jackknife[np.isfinite(jackknife)]
    pulls = pulls.mean() - pulls if pulls.size else np.zeros(1)
    spread = (pulls**2).sum() ** 1.5
    acceleration = (pulls**3).sum() / (6 * spread) if spread > 0 else 0.0
    z = bias + norm.ppf(_tails(confidence))
    low, high = np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def of_mean(draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of the bootstrap mean, mean +- z sd / sqrt(n_draws): what the paper's intervals look like.

    It shrinks with the number of draws: it says how well the bootstrap was run, not how well the score is
    known. It need not even hold the score.
    """
    half = norm.ppf(_tails(confidence)[1]) * draws.std(ddof=1) / np.sqrt(len(draws))
    return float(draws.mean() - half), float(draws.mean() + half)


def honest_interval(
    value: float, draws: np.ndarray, jackknife: np.ndarray, confidence: float = 0.95
) -> dict[str, float]:
    """The interval that is used, percentiles (low, high), and BCa beside it (other_low, other_high)."""
    low, high = percentile(draws, confidence)
    other_low, other_high = bca(value, draws, jackknife, confidence)
    return {"low": low, "high": high, "other_low": other_low, "other_high": other_high}


def hanley_mcneil(auroc: float, n_positive: int, n_negative: int, confidence: float = 0.95) -> Interval:
    """Interval of an AUROC from its size and the classes alone (see `hanley_mcneil_error`)."""
    half = norm.ppf(_tails(confidence)[1]) * float(hanley_mcneil_error(auroc, n_positive, n_negative))
    return float(auroc - half), float(auroc + half)


def hanley_mcneil_error(auroc: float, n_positive: ArrayLike, n_negative: ArrayLike) -> np.ndarray:
    """Standard error of an AUROC (Hanley and McNeil, 1982, eq. 1), for any numbers of both classes."""
    positive, negative = np.asarray(n_positive, float), np.asarray(n_negative, float)
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (positive - 1) * (q1 - auroc**2) + (negative - 1) * (q2 - auroc**2)
    return np.sqrt(variance / (positive * negative))


def wilson(share: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's interval (1927) of shares seen in `n`; of 0 and of 1 too it has a width."""
    share, n, z = np.asarray(share, float), np.asarray(n, float), norm.ppf(_tails(confidence)[1])
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def _tails(confidence: float) -> np.ndarray:
    return np.array([(1 - confidence) / 2, (1 + confidence) / 2])
