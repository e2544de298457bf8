"""Trees on classical measurements are scikit-learn's, are scored as networks are, and see no test label."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from ecglib.classical import FEATURES, TreeSettings, fit_trees, measure_cohort
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.measurements import MEASUREMENTS, measure
from ecglib.metrics import ScoreSettings
from ecglib.protocols import score_cell
from ecglib.records import Record
from ecglib.synthetic import Rows

N = 400
ROWS = {
    "train": np.arange(0, 200),
    "validation": np.arange(200, 300),
    "test": np.arange(300, 380),
    "external": np.arange(380, N),
}
FEW = TreeSettings(tree_rounds=(2, 20))


class Store:
    """The manifest of a store of images; trees ask for nothing else."""

    manifest = pd.DataFrame(
        {"record_id": [f"r{i}" for i in range(N)], "patient_id": [f"p{i}" for i in range(N)]}
    )

    def __len__(self) -> int:
        return N

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("trees look at no image")


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return open_cohort(CohortSettings(n_patients=50))


def features(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Noise of which one measurement tells, a tenth of it missing; labels."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(N, len(FEATURES))), columns=pd.Index(FEATURES))
    labels = (rng.random(N) < 0.3).astype(np.int8)
    table["st_anterior_mv"] += 1.5 * labels
    return table.mask(rng.random(table.shape) < 0.1), labels


def test_what_is_measured_is_what_is_drawn(cohort: Cohort) -> None:
    filters, rows = FilterSettings(), np.array([1, 4])
    table = measure_cohort(cohort, rows, filters)
    assert tuple(table.columns) == FEATURES
    assert len(table) == len(cohort)
    record = cohort.read(4)
    wanted = measure(preprocess(record.waveform, record.sampling_rate, filters), filters.sampling_rate)
    assert table.loc[4, list(MEASUREMENTS)].to_dict() == pytest.approx(wanted, nan_ok=True)
    assert table.loc[0, list(MEASUREMENTS)].isna().all(), "not asked for"
    assert table.age.tolist() == cohort.manifest.age.tolist()
    assert table.female.tolist() == (cohort.manifest.sex == "female").astype(float).tolist()


def test_an_ecg_without_beats_is_empty_but_for_age_and_sex(cohort: Cohort) -> None:
    class Flat:
        def read_many(self, rows: Rows) -> list[Record]:
            records = cohort.read_many(rows)
            for record in records:
                record.waveform[:] = 0
            return records

        def evidence(self, rows: Rows) -> None:
            return None

    flat = Cohort(cohort.name, cohort.manifest, cohort.outcomes, True, False, "flat", Flat())
    row = measure_cohort(flat, np.array([0]), FilterSettings()).iloc[0]
    assert row[list(MEASUREMENTS)].isna().all()
    assert row[["age", "female"]].notna().all()


def test_predictions_are_scikit_learns_at_each_round() -> None:
    table, labels = features()
    cell = fit_trees(table, Store(), ROWS, labels, FEW)
    assert set(cell.step) == {2, 20}
    for rounds in (2, 20):
        model = HistGradientBoostingClassifier(
            max_iter=rounds,
            learning_rate=0.05,
            min_samples_leaf=10,
            early_stopping=False,  # type: ignore[arg-type]
            random_state=0,
        )
        model.fit(table.to_numpy()[ROWS["train"]], labels[ROWS["train"]])
        found = cell.loc[(cell.step == rounds) & (cell.part == "test")]
        assert found.record_id.tolist() == [f"r{i}" for i in ROWS["test"]]
        wanted = model.predict_proba(table.to_numpy()[ROWS["test"]])[:, 1]
        np.testing.assert_allclose(found.y_score, wanted, rtol=1e-6)


def test_a_table_of_trees_is_scored_as_a_cell_and_finds_what_tells() -> None:
    table, labels = features()
    scores = score_cell(fit_trees(table, Store(), ROWS, labels, FEW), "honest", ScoreSettings(n_draws=50))
    assert set(scores.part) == {"test", "external"}
    assert scores.loc[(scores.part == "test") & (scores.metric == "auroc"), "low"].item() > 0.6


def test_the_same_call_gives_the_same_table_and_labels_of_the_test_part_change_no_score() -> None:
    table, labels = features()
    cell = fit_trees(table, Store(), ROWS, labels, FEW)
    assert fit_trees(table, Store(), ROWS, labels, FEW).equals(cell)
    other = labels.copy()
    other[ROWS["test"]] = 1 - other[ROWS["test"]]
    assert fit_trees(table, Store(), ROWS, other, FEW).y_score.equals(cell.y_score)


def test_training_without_a_class_is_refused() -> None:
    table, labels = features()
    with pytest.raises(EcglibError, match="both labels 0 and 1"):
        fit_trees(table, Store(), ROWS, 0 * labels, FEW)


@pytest.mark.parametrize(
    "wrong",
    [{"tree_rounds": ()}, {"tree_rounds": (3, 2)}, {"tree_learning_rate": 0.0}, {"tree_leaf_records": 0}],
)
def test_settings_that_cannot_be_fitted_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(EcglibError, match=next(iter(wrong))):
        TreeSettings(**wrong)
