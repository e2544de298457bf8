"""For whom a score holds: AUROC by sex, age, site and device."""

import numpy as np
import pandas as pd

from ecglib.metrics import ScoreSettings
from ecglib.resampling import class_of_one, spread_scores

AGE_BANDS = {"below 50": 50, "50-64": 65, "65-79": 80, "80 and above": np.inf}  # name -> age it ends before
UNKNOWN = "unknown"
EVERYBODY = "everybody"
DIMENSIONS = ("sex", "age", "site", "device")


def age_band(age: pd.Series) -> pd.Series:
    """Name of the band of each age in years; "unknown" where it is missing."""
    place = np.searchsorted(list(AGE_BANDS.values()), age, side="right")  # a missing age sorts last
    return pd.Series(np.array([*AGE_BANDS, UNKNOWN], object)[place], age.index, name="age")


def merge_small(names: pd.Series, least: int, plural: str) -> pd.Series:
    """Names with fewer than `least` rows become one, "other (k devices)", if there are at least two."""
    counts = names.value_counts()
    small = [name for name, count in counts.items() if count < least]
    return names.where(~names.isin(small), f"other ({len(small)} {plural})") if len(small) > 1 else names


def subgroups(manifest: pd.DataFrame, min_ecgs: int) -> pd.DataFrame:
    """The subgroup of each row of a manifest by sex, age, site and device, sites and devices by size.

    Sites and devices with fewer than `min_ecgs` rows are merged.
    """
    return pd.DataFrame(
        {
            "sex": manifest.sex,
            "age": age_band(manifest.age),
            "site": merge_small(manifest.site, min_ecgs, "sites"),
            "device": merge_small(manifest.device, min_ecgs, "devices"),
        }
    )


def score_subgroups(
    rows: pd.DataFrame, groups: pd.DataFrame, min_positives: int, settings: ScoreSettings
) -> pd.DataFrame:
    """AUROC of everybody and of each subgroup, with its interval over patients.

    rows: record_id, patient_id, y_true, y_score of one part; groups: `subgroups`, in the same order. One row
    a subgroup: dimension, group, n, n_patients, n_positive, value, low, high, estimable, reason. Fewer than
    `min_positives` records with the outcome, or without it, or one patient's alone: not estimable, no number.
    """
    members = {(EVERYBODY, EVERYBODY): np.ones(len(rows), bool)}
    for dimension in DIMENSIONS:
        for name in _in_order(groups.loc[:, dimension]):
            members[dimension, name] = (groups[dimension] == name).to_numpy()
    table = [
        {"dimension": dimension, "group": name, **_score(rows.loc[chosen], min_positives, settings)}
        for (dimension, name), chosen in members.items()
    ]
    return pd.DataFrame(table)


def _in_order(names: pd.Series) -> list[str]:
    """Ages by age, others by size; what is merged or unknown last."""
    order = [*AGE_BANDS, UNKNOWN] if names.name == "age" else [str(n) for n in names.value_counts().index]
    last = [name for name in order if name == UNKNOWN or name.startswith("other (")]
    present = set(names)
    return [name for name in (*(n for n in order if n not in last), *last) if name in present]


def _score(rows: pd.DataFrame, min_positives: int, settings: ScoreSettings) -> dict[str, object]:
    y_true, y_score = rows["y_true"].to_numpy(), rows["y_score"].to_numpy()
    n_positive = int(y_true.sum())
    n_patients = rows["patient_id"].nunique()
    counts = {"n": len(rows), "n_patients": n_patients, "n_positive": n_positive}
    for n, name in ((n_positive, "with"), (len(rows) - n_positive, "without")):
        if n < max(min_positives, 1):
            reason = f"{n} ECGs {name} the outcome"
            return counts | _not_estimable(reason)
    patients = rows["patient_id"].to_numpy()
    if lone := class_of_one(y_true, patients):
        return counts | _not_estimable(f"{lone} ECGs of one patient alone")
    scored = spread_scores(y_true, y_score, patients, settings)
    return counts | scored["auroc"] | {"estimable": True, "reason": ""}


def _not_estimable(reason: str) -> dict[str, object]:
    return {"value": np.nan, "low": np.nan, "high": np.nan, "estimable": False, "reason": reason}
