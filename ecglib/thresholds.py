"""What a threshold on the probability does: net benefit, and sensitivity at a specificity.

Decision curves as Vickers and Elkin, Medical Decision Making 26:565 (2006). Labels (n,) in {0, 1} with both
classes, probabilities (n,); `weights` (n_draws, n) from `resampling.record_weights`.
"""

import numpy as np
import pandas as pd

from ecglib.errors import EcglibError
from ecglib.intervals import wilson
from ecglib.metrics import ScoreSettings
from ecglib.resampling import NO_INTERVAL, record_weights, spread

ODDS_RANGE = 4.0  # thresholds reach from a quarter of the prevalence's odds to four times them
ROUNDING = 1e-12  # what treating all gains at the prevalence is 0; rounding must not choose the default


def thresholds_around(prevalence: float, n: int) -> np.ndarray:
    """`n` probabilities around the prevalence (itself the middle one where n is odd), even in log odds."""
    odds = prevalence / (1 - prevalence) * np.geomspace(1 / ODDS_RANGE, ODDS_RANGE, n)
    return odds / (1 + odds)


def net_benefit(
    y_true: np.ndarray, y_score: np.ndarray, thresholds: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Net benefit (n_draws, n_thresholds) of acting on every record whose probability is at least t.

    True positives minus false positives times t / (1 - t), as a share of all records: a threshold t says
    that one true positive is worth (1 - t) / t false ones. Without weights: n_draws = 1, each record once.
    """
    y_true = np.asarray(y_true)
    weights = np.ones((1, len(y_true))) if weights is None else weights
    worth = np.where(y_true[:, None] == 1, 1.0, -thresholds / (1 - thresholds))
    acted = np.asarray(y_score)[:, None] >= thresholds
    return weights @ (worth * acted) / weights.sum(axis=1, keepdims=True)


def decision_curve(
    y_true: np.ndarray,
    y_score: np.ndarray,
    groups: np.ndarray,
    thresholds: np.ndarray,
    settings: ScoreSettings,
) -> pd.DataFrame:
    """One row a threshold: threshold, value, low, high, treat_all, gain, gain_low, gain_high, n, n_positive.

    gain: net benefit above the better of treating all and treating none, which is the same in every draw:
    the better of each draw would be too good where both are alike, at the prevalence. Intervals are
    percentiles over patients.
    """
    weights = record_weights(y_true, groups, settings)
    everyone = np.ones(len(y_true))
    value, all_value = (net_benefit(y_true, scores, thresholds)[0] for scores in (y_score, everyone))
    draws, all_draws = (net_benefit(y_true, scores, thresholds, weights) for scores in (y_score, everyone))
    treats_all = all_value > ROUNDING
    gain, gains = value - treats_all * all_value, draws - treats_all * all_draws
    counts = {"n": len(y_true), "n_positive": int(np.sum(y_true))}
    rows = []
    for place, threshold in enumerate(thresholds):
        ends, gain_ends = spread(draws[:, place], settings), spread(gains[:, place], settings)
        rows.append(
            {"threshold": threshold, "value": value[place], **ends, "treat_all": all_value[place]}
            | {"gain": gain[place], "gain_low": gain_ends["low"], "gain_high": gain_ends["high"]}
            | counts
        )
    return pd.DataFrame(rows)


def threshold_at_specificity(y_true: np.ndarray, y_score: np.ndarray, specificity: float) -> float:
    """The smallest score t of a negative record for which `y_score > t` has at least this specificity.

    No interpolation: t is a score that occurs. For labels and scores of validation.
    """
    negatives = np.sort(np.asarray(y_score)[np.asarray(y_true) == 0])
    if not len(negatives):
        raise EcglibError("a specificity needs negative records: take more patients")
    # 0.7 * 10 is a little above 7 in binary; that must not ask for an eighth record.
    spared = int(np.ceil(round(specificity * len(negatives), 9)))
    return float(negatives[max(spared, 1) - 1])


def at_threshold(
    y_true: np.ndarray,
    y_score: np.ndarray,
    groups: np.ndarray,
    threshold: float,
    least: int,
    settings: ScoreSettings,
) -> pd.DataFrame:
    """Two rows, sensitivity and specificity of `y_score > threshold`: measure, value, low, high.

    Intervals over patients, for this threshold; that it was chosen on other patients is not in them. Where
    all records of the class are right, or none, the interval is Wilson's with its patients: no draw differs.
    Empty where the class has fewer than `least` records.
    """
    y_true, flagged, groups = np.asarray(y_true), np.asarray(y_score) > threshold, np.asarray(groups)
    weights = record_weights(y_true, groups, settings)
    rows = []
    for name, of, right in (("sensitivity", y_true == 1, flagged), ("specificity", y_true == 0, ~flagged)):
        found = {"value": float("nan"), **NO_INTERVAL}
        if of.sum() >= least:
            found = {
                "value": float(right[of].mean()),
                **spread(weights @ (of & right) / (weights @ of), settings),
            }
        if found["value"] in (0, 1):
            low, high = wilson(found["value"], len(np.unique(groups[of])), settings.confidence)
            found |= {"low": float(low), "high": float(high)}
        rows.append({"measure": name, **found})
    return pd.DataFrame(rows)
