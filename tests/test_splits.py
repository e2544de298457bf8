"""Splits: patients never cross, the paper's counts come out, fractions are nested and by patient."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit

from ecglib import signs, synthetic
from ecglib.cohort import make_folds
from ecglib.datasets import REMOVED_IN_1_0_3
from ecglib.errors import EcglibError
from ecglib.splits import EXCLUDED, PARTS, SPLITS, assign, label_fraction_rows


@st.composite
def manifests(draw: st.DrawFn, min_patients: int = 20, max_patients: int = 80) -> pd.DataFrame:
    """Patients with one to four records in mixed order, some external, each in one fold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_patients = draw(st.integers(min_patients, max_patients))
    folds = np.arange(n_patients) % 10 + 1
    external = rng.random(n_patients) < draw(st.sampled_from([0.0, 0.2]))
    external[:10] = False
    owner = rng.permutation(np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients)))
    return pd.DataFrame(
        {
            "patient_id": owner.astype(str),
            "external": external[owner],
            "strat_fold": np.where(external, 0, folds)[owner],
            "stemi": (rng.random(len(owner)) < draw(st.sampled_from([0.0, 0.1, 0.5]))).astype(np.int8),
        }
    )


@settings(max_examples=25)
@given(manifests(), st.sampled_from(SPLITS))
def test_patients_never_cross_and_every_record_has_a_part(manifest: pd.DataFrame, split: str) -> None:
    parts = assign(manifest, split)
    assert set(parts) <= set(PARTS)
    assert parts.groupby(manifest.patient_id).nunique().max() == 1
    assert ((parts == "external") == manifest.external).all()
    assert {"train", "validation", "test"} <= set(parts)
    pd.testing.assert_series_equal(parts, assign(manifest, split))


@settings(max_examples=25)
@given(manifests(), st.sampled_from(SPLITS), st.integers(0, 2**32 - 1))
def test_unusable_rows_are_excluded_and_move_no_other(manifest: pd.DataFrame, split: str, seed: int) -> None:
    usable = np.random.default_rng(seed).random(len(manifest)) < 0.8
    parts, without = assign(manifest.assign(usable=usable), split), assign(manifest, split)
    np.testing.assert_array_equal(parts == EXCLUDED, ~usable)
    pd.testing.assert_series_equal(parts.loc[usable], without.loc[usable])
    chosen = label_fraction_rows(manifest, parts, "stemi", 1.0, 0)
    assert chosen is None or usable[chosen].all()


def drawn_fractions(
    manifest: pd.DataFrame, parts: pd.Series, label: pd.Series, fractions: Sequence[float], draw: int, by: str
) -> Iterator[tuple[np.ndarray, dict[int, int]]]:
    """Rows of each fraction and how many units of each class it must hold; nested, of the training part."""
    smaller: set[int] = set()
    for fraction in fractions:
        rows = label_fraction_rows(manifest, parts, "stemi", fraction, draw, by)
        expected = {k: round_half_up(fraction * (label == k).sum()) for k in (0, 1)}
        if 0 in expected.values():
            assert rows is None
            continue
        assert rows is not None
        assert (parts.iloc[rows] == "train").all()
        assert smaller <= set(rows)
        smaller = set(rows)
        yield rows, expected


@settings(max_examples=25)
@given(manifests(), st.integers(0, 5))
def test_fractions_by_record_are_nested_and_stratified(manifest: pd.DataFrame, draw: int) -> None:
    manifest = manifest.assign(record_id=[f"r{row}" for row in range(len(manifest))])
    parts = assign(manifest, "seed42")
    label = manifest.stemi[parts == "train"]
    for rows, expected in drawn_fractions(manifest, parts, label, (0.01, 0.1, 0.5, 1.0), draw, "record_id"):
        assert {k: int((manifest.stemi.iloc[rows] == k).sum()) for k in (0, 1)} == expected


@settings(max_examples=25)
@given(manifests(), st.sampled_from(SPLITS), st.integers(0, 5))
def test_fractions_are_nested_by_patient_and_stratified(
    manifest: pd.DataFrame, split: str, draw: int
) -> None:
    parts = assign(manifest, split)
    train = manifest[parts == "train"]
    label = train.groupby("patient_id").stemi.max()
    fractions = (0.01, 0.1, 0.25, 0.5, 1.0)
    for rows, expected in drawn_fractions(manifest, parts, label, fractions, draw, "patient_id"):
        patients = set(manifest.patient_id.iloc[rows])
        assert len(rows) == train.patient_id.isin(patients).sum(), "all records of a chosen patient"
        chosen = label[list(patients)]
        assert {k: (chosen == k).sum() for k in (0, 1)} == expected


def round_half_up(number: float) -> int:
    return int(number + 0.5)


def test_draws_differ_and_repeat() -> None:
    manifest = pd.DataFrame({"patient_id": np.arange(100).astype(str), "stemi": np.arange(100) % 4 == 0})
    part = pd.Series("train", index=manifest.index)
    first, again, other = (label_fraction_rows(manifest, part, "stemi", 0.25, draw) for draw in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_draw_does_not_depend_on_the_order_of_the_table() -> None:
    manifest = pd.DataFrame({"patient_id": np.arange(100).astype(str), "stemi": np.arange(100) % 4 == 0})
    shuffled = manifest.sample(frac=1, random_state=0)
    part = pd.Series("train", index=manifest.index)
    rows = label_fraction_rows(manifest, part, "stemi", 0.25, 0)
    others = label_fraction_rows(shuffled, part.loc[shuffled.index], "stemi", 0.25, 0)
    assert set(manifest.patient_id.iloc[rows]) == set(shuffled.patient_id.iloc[others])


def test_fraction_without_one_class_is_not_estimable() -> None:
    manifest = pd.DataFrame({"patient_id": np.arange(50).astype(str), "stemi": [1] + [0] * 49})
    part = pd.Series("train", index=manifest.index)
    assert label_fraction_rows(manifest, part, "stemi", 0.25, 0) is None  # a quarter of one patient is none
    rows = label_fraction_rows(manifest, part, "stemi", 0.5, 0)
    assert rows is not None
    assert 0 in rows
    assert label_fraction_rows(manifest.assign(stemi=1), part, "stemi", 1.0, 0) is None


def test_official_split_reads_the_folds() -> None:
    manifest = pd.DataFrame(
        {
            "patient_id": [str(k) for k in range(11)],
            "external": [True] + [False] * 10,
            "strat_fold": range(11),
        }
    )
    assert list(assign(manifest, "official")) == ["external"] + ["train"] * 8 + ["validation", "test"]


def test_papers_counts_on_ptbxl(ptbxl_table: pd.DataFrame) -> None:
    table = ptbxl_table[~ptbxl_table.index.isin(REMOVED_IN_1_0_3)]
    manifest = pd.DataFrame({"patient_id": table.patient_id, "external": False})
    counts = assign(manifest, "seed42").value_counts()
    assert counts["train"] + counts["validation"] == 17_447
    assert counts["test"] == 4_352

    whole_numbers = table.patient_id.astype(int)
    splitter = GroupShuffleSplit(n_splits=1, random_state=42)
    train, test = next(splitter.split(table, groups=whole_numbers))
    assert (len(train), len(test)) == (17_423, 4_376), "ids as numbers sort differently"


def test_a_tenth_of_the_papers_training_patients_is_validation() -> None:
    owner = np.repeat(np.arange(1000), 1 + np.arange(1000) % 3)  # patients of one to three ECGs
    manifest = pd.DataFrame({"patient_id": owner.astype(str), "external": False})
    of_patient = assign(manifest, "seed42").groupby(manifest.patient_id).first()
    assert of_patient.value_counts().to_dict() == {"train": 720, "validation": 80, "test": 200}


def test_official_folds_of_ptbxl_keep_patients_apart(ptbxl_table: pd.DataFrame) -> None:
    manifest = ptbxl_table[["patient_id", "strat_fold"]].assign(external=False)
    assert assign(manifest, "official").value_counts()["test"] == (manifest.strat_fold == 10).sum()


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({}, "seed43", "must be one of seed42, official"),
        ({"strat_fold": 0}, "official", "strat_fold must be 1..10"),
        ({"patient_id": "1"}, "seed42", "at least 3 patients"),
        ({"patient_id": ["1", "2"] * 10}, "official", "patient 1 is in two parts"),
    ],
)
def test_wrong_input_is_refused(change: dict, split: str, message: str) -> None:
    manifest = pd.DataFrame({"patient_id": np.arange(20).astype(str), "external": False})
    manifest["strat_fold"] = [1, 1] * 9 + [10, 10]
    with pytest.raises(EcglibError, match=message):
        assign(manifest.assign(**change), split)


def test_impossible_fraction_is_refused() -> None:
    manifest = pd.DataFrame({"patient_id": ["1"], "stemi": [1]})
    with pytest.raises(EcglibError, match="above 0 and at most 1"):
        label_fraction_rows(manifest, pd.Series(["train"]), "stemi", 1.5, 0)


@pytest.fixture(scope="module")
def drawn() -> list[pd.DataFrame]:
    """The embedded cohort's table at its default size, drawn with 20 seeds."""
    manifests = []
    for seed in range(20):
        table = synthetic.draw_cohort(2150, seed)
        table = table.assign(external=table.site == synthetic.EXTERNAL_SITE)
        manifests.append(table.assign(strat_fold=make_folds(table, signs.OUTCOMES, seed)))
    return manifests


def deviations(drawn: list[pd.DataFrame], split: str) -> pd.DataFrame:
    """Percentage points between each part's prevalence and that of all internal ECGs, by seed and part."""
    found = {}
    for seed, manifest in enumerate(drawn):
        internal = manifest.loc[~manifest.external, list(signs.OUTCOMES)]
        found[seed] = 100 * (internal.groupby(assign(manifest, split)).mean() - internal.mean())
    return pd.concat(found)


def test_no_patient_is_in_two_parts_of_any_split_of_any_draw(drawn: list[pd.DataFrame]) -> None:
    for manifest in drawn:
        for split in SPLITS:
            parts = assign(manifest, split)
            assert parts.groupby(manifest.patient_id).nunique().max() == 1
            assert set(parts) == {"train", "validation", "test", "external"}


def test_made_folds_keep_every_prevalence_within_half_a_point(drawn: list[pd.DataFrame]) -> None:
    assert deviations(drawn, "official").abs().to_numpy().max() < 0.5
    for manifest in drawn:
        share = manifest.strat_fold[~manifest.external].value_counts(normalize=True)
        assert share.between(0.095, 0.105).all()


def test_the_papers_split_cannot_keep_them_and_strays_as_chance_does(drawn: list[pd.DataFrame]) -> None:
    """GroupShuffleSplit draws patients blindly: the spread is that of a random fifth of them."""
    strayed = deviations(drawn, "seed42").xs("test", level=1)
    assert (strayed.abs().max() > 0.5).all()
    z = strayed.to_numpy() / [[100 * by_chance(m, o) for o in signs.OUTCOMES] for m in drawn]
    assert np.abs(z).max() < 4.5
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6


def by_chance(manifest: pd.DataFrame, outcome: str, share: float = 0.2) -> float:
    """Standard error of the prevalence in a random `share` of patients (ratio estimator, Cochran 1977)."""
    internal = manifest[~manifest.external]
    of_patient = internal.groupby("patient_id")[outcome].agg(["sum", "size"])
    residual = of_patient["sum"] - internal[outcome].mean() * of_patient["size"]
    return float(np.sqrt((1 - share) / share * (residual**2).sum()) / len(internal))


@settings(max_examples=25)
@given(manifests(), st.integers(0, 100))
def test_made_folds_keep_patients_whole_and_labels_that_nobody_gave_apart(
    manifest: pd.DataFrame, seed: int
) -> None:
    manifest["hcm"] = np.where(np.arange(len(manifest)) % 3, -1, manifest.stemi)
    folds = make_folds(manifest, ["stemi", "hcm"], seed)
    assert ((folds == 0) == manifest.external).all()
    assert set(folds) >= set(range(1, 11))
    assert pd.Series(folds).groupby(manifest.patient_id).nunique().max() == 1
    assert np.array_equal(folds, make_folds(manifest, ["stemi", "hcm"], seed))
