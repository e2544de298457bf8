"""Subgroups: whose AUROC is given, and whose is not."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ecglib.metrics import ScoreSettings
from ecglib.subgroups import age_band, merge_small, score_subgroups, subgroups

SETTINGS = ScoreSettings(n_draws=40, seed=0)


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    """600 ECGs; site C and D are small, device Z has no ECG with the outcome, one age is missing."""
    rng = np.random.default_rng(0)
    n = 600
    site = np.array(["A"] * 400 + ["B"] * 170 + ["C"] * 20 + ["D"] * 10)
    device = np.where(np.arange(n) < 60, "Z", "Y")
    y_true = (rng.random(n) < 0.2).astype(int)
    y_true[:60] = 0
    age = rng.uniform(20, 95, n)
    age[0] = np.nan
    return pd.DataFrame(
        {
            "record_id": [f"r{i:03d}" for i in range(n)],
            "patient_id": rng.integers(0, 400, n).astype(str),
            "sex": np.where(rng.random(n) < 0.5, "male", "female"),
            "age": age,
            "site": site,
            "device": device,
            "y_true": y_true,
            "y_score": rng.normal(y_true),
        }
    )


def test_age_bands_begin_where_their_names_say() -> None:
    ages = pd.Series([0, 49.9, 50, 64.9, 65, 79.9, 80, 104, np.nan])
    bands = ["below 50"] * 2 + ["50-64"] * 2 + ["65-79"] * 2 + ["80 and above"] * 2 + ["unknown"]
    assert list(age_band(ages)) == bands


def test_small_ones_are_merged_but_never_a_single_one() -> None:
    names = pd.Series(["a"] * 5 + ["b"] * 2 + ["c"])
    assert list(merge_small(names, 3, "sites"))[5:] == ["other (2 sites)"] * 3
    assert list(merge_small(names, 2, "sites")) == list(names)


def test_each_auroc_is_that_of_its_own_ecgs(people: pd.DataFrame) -> None:
    table = score_subgroups(people, subgroups(people, 25), 10, SETTINGS)
    known = table[table.estimable].set_index(["dimension", "group"])
    members = {
        ("everybody", "everybody"): people.sex.notna(),
        ("sex", "female"): people.sex == "female",
        ("age", "65-79"): people.age.between(65, 80, inclusive="left"),
        ("site", "A"): people.site == "A",
        ("device", "Y"): people.device == "Y",
    }
    for key, rows in members.items():
        own = people[rows]
        assert known.n[key] == len(own)
        assert known.n_positive[key] == own.y_true.sum()
        assert known.n_patients[key] == own.patient_id.nunique()
        assert known.value[key] == pytest.approx(roc_auc_score(own.y_true, own.y_score))
        assert known.low[key] <= known.value[key] <= known.high[key]


def test_too_few_of_a_class_is_not_estimable_and_has_no_number(people: pd.DataFrame) -> None:
    table = score_subgroups(people, subgroups(people, 25), 10, SETTINGS).set_index(["dimension", "group"])
    for group in [("device", "Z"), ("site", "other (2 sites)"), ("age", "unknown")]:
        assert not table.estimable[group]
        assert table.reason[group].endswith("with the outcome")
    lacking = table.loc[~table.estimable]
    assert not lacking.loc[:, ["value", "low", "high"]].notna().to_numpy().any()
    assert ((lacking.n_positive < 10) | (lacking.n - lacking.n_positive < 10)).all()
    assert (table.n_positive[table.estimable] >= 10).all()


def test_a_group_whose_positive_ecgs_are_of_one_patient_is_not_estimable(people: pd.DataFrame) -> None:
    lone = people.assign(patient_id=people.patient_id.where(people.y_true == 0, "the only one"))
    table = score_subgroups(lone, subgroups(lone, 25), 10, SETTINGS)
    assert not table.estimable.any()
    assert table.reason.iloc[0] == "positive ECGs of one patient alone"


def test_the_groups_of_a_dimension_hold_everybody_once(people: pd.DataFrame) -> None:
    table = score_subgroups(people, subgroups(people, 25), 10, SETTINGS)
    assert set(table.groupby("dimension").n.sum()) == {len(people)}
    assert list(table.group[table.dimension == "age"])[-1] == "unknown"
    assert list(table.group[table.dimension == "site"]) == ["A", "B", "other (2 sites)"]
