"""How much of a label is known before anyone looks at the ECG: from site, device, age and sex alone.

A network can read a device off an image (its noise, its filters). Where the device says much about the
label, part of a high AUROC may be that.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from ecglib.cohort import Cohort
from ecglib.datasets import read_ptbxl_rows, read_scp_statements
from ecglib.labels import stemi_labels
from ecglib.metrics import ScoreSettings
from ecglib.resampling import spread_scores

KNOWN = {
    "sex": ("sex",),
    "age": ("age",),
    "site": ("site",),
    "device": ("device",),
    "site and device": ("site", "device"),
    "all four": ("sex", "age", "site", "device"),
}


def known_beforehand(manifest: pd.DataFrame) -> pd.DataFrame:
    """Sex, age in decades, site and device of each row, as text."""
    decade = manifest["age"] // 10 * 10
    age = decade.map("{:.0f}".format).where(decade.notna(), "unknown")
    return manifest[["sex", "site", "device"]].astype(str).assign(age=age)


def labels_by_name(cohort: Cohort, data_dir: Path | None) -> dict[str, np.ndarray]:
    """0, 1 or -1 (nobody said) for each row, by name: the outcomes, and of PTB-XL each definition of STEMI.

    `data_dir` is the folder of PTB-XL, None for another source.
    """
    outcomes = {name: cohort.manifest[name].to_numpy() for name in cohort.outcomes}
    if data_dir is None:
        return outcomes
    rows, statements = read_ptbxl_rows(data_dir, cohort.manifest), read_scp_statements(data_dir)
    return outcomes | {name: label.to_numpy() for name, label in stemi_labels(rows, statements).items()}


def score_shortcuts(
    manifest: pd.DataFrame,
    labels: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray] | None,
    min_positives: int,
    settings: ScoreSettings,
) -> pd.DataFrame:
    """AUROC on test of each label from what is known beforehand, by logistic regression on train.

    labels: `labels_by_name`; rows: `study.rows` of the networks that stand beside it, so that both learn from
    the same ECGs and are judged on the same; None: no such ECGs, so nothing is estimable. One row for each
    label and entry of KNOWN: label, known, n, n_positive, value, low, high, estimable, reason. Each value
    of a column is an input of its own (one-hot); one that train did not have says nothing. Fewer than
    `min_positives` test records of a class: not estimable.
    """
    columns = known_beforehand(manifest)
    table = []
    for label, y_true in labels.items():
        train, test = (_labelled(rows, part, y_true) for part in ("train", "test"))
        y_test = y_true[test]
        counts = {"label": label, "n": len(y_test), "n_positive": int(y_test.sum())}
        reason = "" if len(set(y_true[train])) == 2 else "train lacks a class"
        if min(y_test.sum(), (1 - y_test).sum()) < min_positives:
            reason = f"test has fewer than {min_positives} ECGs of one class"
        for known, names in KNOWN.items():
            row = counts | {"known": known, "estimable": not reason, "reason": reason}
            row |= dict.fromkeys(("value", "low", "high"), np.nan)
            if not reason:
                y_score = _predict(columns.loc[:, list(names)], y_true, train, test)
                patients = manifest["patient_id"].to_numpy()[test]
                row |= spread_scores(y_test, y_score, patients, settings)["auroc"]
            table.append(row)
    return pd.DataFrame(table)


def _labelled(rows: Mapping[str, np.ndarray] | None, part: str, y_true: np.ndarray) -> np.ndarray:
    own = (rows or {}).get(part, np.empty(0, np.int64))
    return own[y_true[own] >= 0]


def _predict(columns: pd.DataFrame, y_true: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(max_iter=1000))
    model.fit(columns.iloc[train], y_true[train])
    return model.predict_proba(columns.iloc[test])[:, 1]
