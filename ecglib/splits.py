"""Patient-disjoint splits and label fractions.

The paper splits by patient with scikit-learn's GroupShuffleSplit at a fixed seed; its public code has no
validation set, ours takes one out of the training patients.
"""

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from ecglib.errors import EcglibError

EXCLUDED = "excluded"  # ECGs that cannot be drawn: never trained on, never scored
PARTS = ("train", "validation", "test", "external", EXCLUDED)
SPLITS = ("seed42", "official")
TEST_SHARE = 0.2  # GroupShuffleSplit's default, of the patients
VALIDATION_SHARE = 0.1  # of the training patients
_SEED = 42
# The paper's public code draws records, so the paper's split does; records of one patient are alike.
DRAWN_BY = {"seed42": "record_id", "official": "patient_id"}


def assign(manifest: pd.DataFrame, split: str) -> pd.Series:
    """Name the part of every row: train, validation, test, external or excluded; no patient is in two.

    `seed42`: GroupShuffleSplit on patient ids as text, as the paper's counts imply, then a tenth of the
    training patients for validation. `official`: strat_fold 1-8, 9, 10. External rows are external in both.
    Rows that are not `usable`, where the manifest has that column, are excluded; that moves no other row.
    Raises EcglibError for an unknown split, a fold outside 1..10, too few patients, a patient in two parts.
    """
    makers = {"seed42": _seed42, "official": _official}
    if split not in makers:
        raise EcglibError(f"split must be one of {', '.join(makers)}, not {split!r}")
    external = manifest.external.to_numpy(dtype=bool)
    parts = pd.Series("external", index=manifest.index, name="part", dtype=object)
    parts[~external] = makers[split](manifest.loc[~external])
    n_parts = parts.groupby(manifest.patient_id).nunique()
    if (n_parts > 1).any():
        raise EcglibError(f"patient {n_parts.idxmax()} is in two parts of split {split}; mend the table")
    if "usable" in manifest:
        parts[~manifest.usable.to_numpy(dtype=bool)] = EXCLUDED
    return parts


def _seed42(manifest: pd.DataFrame) -> np.ndarray:
    patients = manifest.patient_id.to_numpy(dtype=str)
    n_patients = len(np.unique(patients))
    if n_patients < 3:
        raise EcglibError(f"split seed42 needs at least 3 patients that are not external, not {n_patients}")
    parts = np.full(len(manifest), "train", dtype=object)
    rows = np.arange(len(manifest))
    for part, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=_SEED)
        kept, held = next(splitter.split(rows, groups=patients[rows]))
        parts[rows[held]] = part
        rows = rows[kept]
    return parts


def _official(manifest: pd.DataFrame) -> np.ndarray:
    folds = manifest.strat_fold.to_numpy()
    outside = (folds < 1) | (folds > 10)
    if outside.any():
        raise EcglibError(f"strat_fold must be 1..10 for split official, not {folds[outside][0]}")
    return np.select([folds <= 8, folds == 9], ["train", "validation"], "test")


def label_fraction_rows(
    manifest: pd.DataFrame, part: pd.Series, outcome: str, fraction: float, draw: int, by: str = "patient_id"
) -> np.ndarray | None:
    """Positions of the training records of a random `fraction` (0..1] of the training patients.

    Drawn by patient, or by record where `by` is record_id, within those with and without the outcome, at the
    nearest whole number of each; a smaller fraction of the same `draw` lies within a larger one. None (not
    estimable) where one class has nobody.
    """
    if not 0 < fraction <= 1:
        raise EcglibError(f"label fraction must be above 0 and at most 1, not {fraction}")
    train = (part == "train").to_numpy()
    has_outcome = manifest.loc[train].groupby(by, sort=True)[outcome].max()
    ids, labels = has_outcome.index.to_numpy(), has_outcome.to_numpy()
    chosen: list[str] = []
    for label in (0, 1):
        units = ids[labels == label]
        n_chosen = int(np.floor(fraction * len(units) + 0.5))
        if n_chosen == 0:
            return None
        chosen += list(np.random.default_rng([draw, label]).permutation(units)[:n_chosen])
    return np.flatnonzero(train & manifest[by].isin(chosen).to_numpy())  # numpy compares text one by one
