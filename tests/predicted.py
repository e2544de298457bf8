"""Synthetic predictions for tests: studies with ties and patients of several records, cells of steps.

And the names of splits as a study has them whose encoder saw most of what `seed42` tests on.
"""

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from ecglib.style import split_name

SPLITS = {"official": split_name("official", 0.0), "seed42": split_name("seed42", 0.797)}


def study(n: int, n_positive: int, n_patients: int, *, distance: float = 1.0, digits: int = 1, seed: int = 0):
    """Labels, scores rounded so that many tie, and patient ids; some patients have several records."""
    rng = np.random.default_rng(seed)
    y_true = (rng.permutation(n) < n_positive).astype(np.int8)
    y_score = rng.normal(distance * y_true).round(digits).astype(np.float32)
    return y_true, y_score, rng.integers(0, n_patients, n).astype(str)


def cell(
    n: int = 200, *, steps=(10, 20), external=True, seed: int = 0, distance: float = 1.0
) -> pd.DataFrame:
    """Predictions of `n` records per part; from step to step only the scores change."""
    tables = []
    parts = ("validation", "test", "external") if external else ("validation", "test")
    for i, part in enumerate(parts):
        y_true, _, groups = study(n, n // 4, n // 2, seed=100 + i)
        known = {"record_id": [f"{part}{k:04d}" for k in range(n)], "patient_id": groups, "part": part}
        for step in steps:
            rng = np.random.default_rng([seed, i, step])
            score = 1 / (1 + np.exp(-rng.normal(distance * y_true)))
            tables.append(pd.DataFrame({**known, "step": step, "y_true": y_true, "y_score": score}))
    return pd.concat(tables, ignore_index=True)


@st.composite
def predictions(draw):
    """Labels with both classes, scores from a few values (ties) or many, patient ids."""
    n = draw(st.integers(2, 40))
    y_true = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
    y_score = draw(st.lists(values, min_size=n, max_size=n))
    patients = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    return np.array(y_true), np.array(y_score), np.array(patients)
