"""Whether a predicted probability is one: reliability curve, ECE, Brier score, intercept, slope, temperature.

Intercept and slope as Van Calster et al., BMC Medicine 17:230 (2019), define them; temperature scaling after
Guo et al., On calibration of modern neural networks (2017). All functions take labels (n,) in {0, 1} with
both classes, and probabilities (n,) of class 1.
"""

import numpy as np
import pandas as pd
from scipy.optimize import root_scalar
from scipy.optimize.elementwise import find_root
from scipy.special import expit, logit

from ecglib.errors import EcglibError
from ecglib.intervals import wilson
from ecglib.metrics import ScoreSettings
from ecglib.resampling import NO_INTERVAL, record_weights, spread

MEASURES = ("ece", "brier", "brier_skill", "intercept", "slope")
# Scores are stored as float32. A 0 or 1 there means nearer to it than float32 can say: half its last step.
SMALLEST = float(np.finfo(np.float32).smallest_subnormal) / 2
LARGEST = 1 - 2.0**-25
TEMPERATURES = (0.01, 100.0)  # a temperature at either end was not found: the logits say nothing, or all
_STEPS, _LONGEST_STEP, _CLOSE = 100, 2.0, 1e-8  # of Newton's method, on standardised logits


def logits(y_score: np.ndarray) -> np.ndarray:
    """Difference of the two neurons' logits (n,) float64, from the probability; finite at 0 and 1 too."""
    probabilities = np.asarray(y_score, np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise EcglibError("a probability must lie between 0 and 1: give the scores of ecglib.finetune")
    return logit(probabilities.clip(SMALLEST, LARGEST))


def fit_temperature(y_true: np.ndarray, y_score: np.ndarray) -> float:
    """The T for which sigmoid(logits / T) has the least cross-entropy: a scalar, to be fitted on validation.

    At an end of TEMPERATURES where the minimum lies beyond it.
    """
    z = logits(y_score)

    def slope(inverse: float) -> float:  # of the cross-entropy, which is convex in 1 / T
        return float((expit(inverse * z) - y_true) @ z)

    coldest, hottest = TEMPERATURES
    if slope(1 / hottest) >= 0:
        return hottest
    if slope(1 / coldest) <= 0:
        return coldest
    return 1 / root_scalar(slope, bracket=(1 / hottest, 1 / coldest), xtol=1e-12).root


def temperature_scaled(y_score: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n,) after division of the logits; their order stays, and so does every AUROC."""
    return expit(logits(y_score) / temperature)


def bin_codes(y_score: np.ndarray, n_bins: int) -> np.ndarray:
    """Bin 0, 1, ... of each record: equally many in each, as far as equal scores, which share one, allow.

    The edges are scikit-learn's (`calibration_curve`, strategy "quantile"); empty bins are left out.
    """
    edges = np.percentile(y_score, np.linspace(0, 1, n_bins + 1) * 100)  # of quantiles, some round otherwise
    return np.unique(np.searchsorted(edges[1:-1], y_score), return_inverse=True)[1]


def reliability_curve(
    y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, n_bins: int, confidence: float = 0.95
) -> pd.DataFrame:
    """One row a bin: n, n_patients, n_positive, predicted (mean probability), observed (share), low, high.

    The interval is Wilson's, with patients (`groups`) in the place of records: a bootstrap of a bin without
    a positive would give 0 to 0.
    """
    rows = pd.DataFrame({"y": y_true, "p": y_score, "patient": groups, "bin": bin_codes(y_score, n_bins)})
    bins = rows.groupby("bin")
    curve = bins.agg(
        n=("y", "size"),
        n_patients=("patient", "nunique"),
        n_positive=("y", "sum"),
        predicted=("p", "mean"),
        observed=("y", "mean"),
    )
    low, high = wilson(curve.observed.to_numpy(), curve.n_patients.to_numpy(), confidence)
    return curve.assign(low=low, high=high).reset_index()


def measure(
    y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, n_bins: int, settings: ScoreSettings
) -> pd.DataFrame:
    """One row for each of MEASURES: measure, value, low, high; empty where there is no such number.

    ece: mean distance of observed and predicted share over the bins, without an interval, since chance makes
    it too high, and a bootstrap once more (`ece_by_chance` says by how much); brier: mean squared error;
    brier_skill: 1 minus its ratio to that of the prevalence; intercept: what must be added to the logits
    (slope 1) for the mean probability to be right; slope: of the logistic regression of the label on the
    logits. No slope where the scores are all equal or part the classes.
    """
    values = weighted_measures(y_true, y_score, np.ones((1, len(y_true))), n_bins)
    draws = weighted_measures(y_true, y_score, record_weights(y_true, groups, settings), n_bins)
    intervals = {name: spread(draws[name], settings) for name in MEASURES} | {"ece": NO_INTERVAL}
    rows = [{"measure": name, "value": float(values[name][0]), **intervals[name]} for name in MEASURES]
    return pd.DataFrame(rows)


def weighted_measures(
    y_true: np.ndarray, y_score: np.ndarray, weights: np.ndarray, n_bins: int
) -> dict[str, np.ndarray]:
    """Each of MEASURES (n_draws,) with record i counted weights[:, i] times; NaN where it does not exist."""
    y_true, y_score = np.asarray(y_true, np.float64), np.asarray(y_score, np.float64)
    total, z = weights.sum(axis=1), logits(y_score)
    codes = bin_codes(y_score, n_bins)
    gaps = weights @ ((y_true - y_score)[:, None] * (codes[:, None] == np.arange(codes.max() + 1)))
    brier, prevalence = weights @ (y_true - y_score) ** 2 / total, weights @ y_true / total
    return {
        "ece": np.abs(gaps).sum(axis=1) / total,
        "brier": brier,
        "brier_skill": 1 - brier / (prevalence * (1 - prevalence)),
        "intercept": _intercepts(y_true, z, weights),
        "slope": _slopes(y_true, z, weights),
    }


def ece_by_chance(
    y_score: np.ndarray, groups: np.ndarray, n_bins: int, settings: ScoreSettings
) -> np.ndarray:
    """ECE (n_draws,) that these probabilities have where every one is true: so few patients give no better.

    Labels are drawn from the probabilities. A patient (`groups`) is lucky or not in all records at once, as
    most have one label; drawn by record, chance would look smaller than it is.
    """
    rng, codes = np.random.default_rng(settings.seed), bin_codes(y_score, n_bins)
    patients = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    drawn = rng.random((settings.n_draws, patients.max() + 1))[:, patients] < y_score
    gaps = (drawn - y_score) @ (codes[:, None] == np.arange(codes.max() + 1))
    return np.abs(gaps).sum(axis=1) / len(y_score)


def _intercepts(y_true: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of sum w (y - sigmoid(a + z)) for each row of weights; each holds both classes."""

    def excess(a: np.ndarray, draw: np.ndarray) -> np.ndarray:
        rows = weights[draw.astype(int)]
        return (rows * (y_true - expit(a[:, None] + z))).sum(axis=1)

    margin = np.log(weights.sum(axis=1).max()) + 1  # there a single record of one class outweighs all others
    found = find_root(excess, (-z.max() - margin, -z.min() + margin), args=(np.arange(len(weights)),))
    return np.where(found.success, found.x, np.nan)


def _slopes(y_true: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of the logistic regression of y on z for each row of weights; NaN where classes are parted."""
    slopes = np.full(len(weights), np.nan)
    if z.std() > 0:
        x = (z - z.mean()) / z.std()
        exist = _overlap(y_true, x, weights)
        slopes[exist] = _steepness(y_true, x, weights[exist]) / z.std()
    return slopes


def _steepness(y_true: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope on x (n_draws,) by Newton's method, NaN where it is not reached.

    The likelihood has one hill: a step that would lead down from it is halved until it does not.
    """
    a, b = logit(weights @ y_true / weights.sum(axis=1)), np.zeros(len(weights))
    step, reached = np.zeros((2, len(weights))), np.full(len(weights), -np.inf)
    done = np.zeros(len(weights), bool)
    for _ in range(_STEPS):
        tried = np.array([a, b]) + step
        eta = tried[0][:, None] + tried[1][:, None] * x
        likelihood = (weights * (y_true * eta - np.logaddexp(0, eta))).sum(axis=1)
        higher = likelihood >= reached
        a, b, reached = np.where(higher, [*tried, likelihood], [a, b, reached])
        step = np.where(higher, _newton_step(y_true, eta, x, weights), step / 2)
        done |= (np.abs(step) <= _CLOSE).all(axis=0)
        if done.all():
            break
        step[:, done] = 0  # at the top rounding would have it walk about
    return np.where(done, b, np.nan)


def _newton_step(y_true: np.ndarray, eta: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Steps (2, n_draws) of intercept and slope from log odds eta (n_draws, n)."""
    probability = expit(eta)
    residual, curve = weights * (y_true - probability), weights * probability * (1 - probability)
    g0, g1 = residual.sum(axis=1), residual @ x
    h00, h01, h11 = curve.sum(axis=1), curve @ x, curve @ x**2
    step = np.array([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / (h00 * h11 - h01**2)
    return step.clip(-_LONGEST_STEP, _LONGEST_STEP)


def _overlap(y_true: np.ndarray, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether the drawn classes overlap in x, so that a slope exists (Albert and Anderson, 1984)."""
    drawn = weights > 0

    def ends(label: int) -> tuple[np.ndarray, np.ndarray]:
        own = drawn & (y_true == label)
        return np.where(own, x, np.inf).min(axis=1), np.where(own, x, -np.inf).max(axis=1)

    (low_0, high_0), (low_1, high_1) = ends(0), ends(1)
    return (low_1 < high_0) & (low_0 < high_1)
