"""What is known before the ECG: found where it decides, chance where it does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ecglib.datasets import CohortSettings, open_cohort
from ecglib.labels import STEMI_DEFINITIONS
from ecglib.metrics import ScoreSettings
from ecglib.shortcuts import KNOWN, known_beforehand, labels_by_name, score_shortcuts

Rows = dict[str, np.ndarray]
SETTINGS = ScoreSettings(n_draws=40, seed=0)


@pytest.fixture(scope="module")
def manifest() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 1000
    return pd.DataFrame(
        {
            "patient_id": np.arange(n).astype(str),
            "sex": rng.choice(["male", "female"], n),
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.uniform(20, 90, n)),
            "site": rng.choice(["A", "B", "C"], n),
            "device": rng.choice(["Y", "Z"], n),
        }
    )


@pytest.fixture(scope="module")
def rows() -> Rows:
    return {"train": np.arange(500), "validation": np.arange(500, 600), "test": np.arange(600, 1000)}


def scored(manifest: pd.DataFrame, rows: Rows | None, labels: np.ndarray) -> pd.DataFrame:
    return score_shortcuts(manifest, {"stemi": labels}, rows, 10, SETTINGS).set_index("known")


def test_a_device_that_decides_the_label_is_found(manifest: pd.DataFrame, rows: Rows) -> None:
    table = scored(manifest, rows, (manifest.device == "Z").to_numpy(int))
    for known in ("device", "site and device", "all four"):
        assert table.value[known] == 1
    for known in ("sex", "age", "site"):
        assert abs(table.value[known] - 0.5) < 0.1
        assert table.low[known] < 0.5 < table.high[known] or abs(table.value[known] - 0.5) < 0.06


def test_a_device_that_training_never_saw_says_nothing(manifest: pd.DataFrame, rows: Rows) -> None:
    tested = np.isin(np.arange(len(manifest)), rows["test"])
    new = manifest.assign(device=np.where(tested, manifest.device + " new", manifest.device))
    assert scored(new, rows, (manifest.device == "Z").to_numpy(int)).value["device"] == 0.5


def test_the_clerk_learns_from_the_given_ecgs_alone(manifest: pd.DataFrame, rows: Rows) -> None:
    """In the first 50 training ECGs the device says what it says in test, in all others the opposite."""
    labels = (manifest.device == "Z").to_numpy(int)
    labels[50:500] = 1 - labels[50:500]
    assert scored(manifest, rows | {"train": np.arange(50)}, labels).value["device"] == 1
    assert scored(manifest, rows, labels).value["device"] == 0
    nothing = scored(manifest, None, labels)
    assert not nothing.estimable.any()
    assert (nothing.n == 0).all()


def test_labels_that_nobody_gave_are_left_out(manifest: pd.DataFrame, rows: Rows) -> None:
    labels = np.where(np.arange(len(manifest)) % 2, -1, (manifest.sex == "male").to_numpy(int))
    table = scored(manifest, rows, labels)
    assert (table.n == 200).all()
    assert table.value["sex"] == 1


def test_too_few_of_a_class_is_not_estimable(manifest: pd.DataFrame, rows: Rows) -> None:
    rare = (np.arange(len(manifest)) % 100 == 0).astype(int)  # 4 of them in test
    table = scored(manifest, rows, rare)
    assert not table.estimable.any()
    assert not table[["value", "low", "high"]].notna().to_numpy().any()
    rare[rows["train"]] = 0
    nowhere = scored(manifest, rows, rare)
    assert list(nowhere.index) == list(KNOWN)


def test_age_counts_in_decades_and_may_be_missing(manifest: pd.DataFrame) -> None:
    known = known_beforehand(manifest)
    assert set(known.age[manifest.age.isna()]) == {"unknown"}
    assert set(known.age[manifest.age.between(40, 50, inclusive="left")]) == {"40"}


def test_the_embedded_cohort_has_its_own_outcomes() -> None:
    cohort = open_cohort(CohortSettings(n_patients=60))
    labels = labels_by_name(cohort, None)
    assert tuple(labels) == cohort.outcomes
    assert (labels["hcm"] == cohort.manifest.hcm).all()


def test_ptbxl_has_every_definition_of_stemi(ptbxl_subset: Path) -> None:
    settings = CohortSettings(source="ptbxl", stemi_definition="acute_clinical")
    cohort = open_cohort(settings, ptbxl_subset)
    labels = labels_by_name(cohort, ptbxl_subset)
    assert set(labels) == {"stemi", "mi_any", "acute_stemi", *STEMI_DEFINITIONS}
    assert (labels["stemi"] == labels["acute_clinical"]).all()
    assert (labels["acute_stemi"] == labels["acute_clinical"]).all()
    for definition in ("acute_strict", "paper_prevalence"):
        other = open_cohort(CohortSettings(source="ptbxl", stemi_definition=definition), ptbxl_subset)
        assert (labels[definition] == other.manifest.stemi).all()
