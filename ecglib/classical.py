"""The classical measurements as a baseline: gradient-boosted trees on intervals, voltages, age and sex.

What a cardiologist would measure, on the very seconds that the networks see drawn. Rounds of boosting stand
in for the scored steps of fine-tuning, so that one table, one way of choosing and one way of scoring serve
networks and trees. A network that does not beat this has learnt less than can be measured with a ruler.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier

from ecglib.cohort import Cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.finetune import SCORED_PARTS, Images, check_rows, prediction_table
from ecglib.measurements import MEASUREMENTS, measure
from ecglib.progress import track
from ecglib.records import LEADS_8

MODEL = "measurements"
FEATURES = (*MEASUREMENTS, "age", "female")
RECORDS_AT_ONCE = 64
SEED = 0


@dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How boosted trees learn from the measurements (scikit-learn's defaults where nothing is said)."""

    tree_rounds: tuple[int, ...] = (10, 30, 100, 300)  # rounds of boosting after which predictions are made
    tree_learning_rate: float = 0.05  # how much each round adds
    tree_leaf_records: int = 10  # fewest training records in a leaf

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted, by name."""
        rounds = self.tree_rounds
        if not rounds or min(rounds) < 1 or list(rounds) != sorted(set(rounds)):
            raise EcglibError(f"tree_rounds={rounds}: rounds must be at least 1 and rise; mend the list")
        if not self.tree_learning_rate > 0:
            raise EcglibError(f"tree_learning_rate={self.tree_learning_rate}: must be above 0; raise it")
        if self.tree_leaf_records < 1:
            raise EcglibError(f"tree_leaf_records={self.tree_leaf_records}: at least 1 is needed; raise it")


def measure_cohort(cohort: Cohort, rows: np.ndarray, filters: FilterSettings) -> pd.DataFrame:
    """FEATURES of every record of a cohort (one row each); those measured at `rows`, empty (NaN) elsewhere.

    `rows`: those that can be drawn; measured are the seconds that are drawn, filtered. No beats found: empty
    too, but for age and sex. `female` is 0 or 1, empty where the sex is not known.
    """
    values = np.full((len(cohort), len(MEASUREMENTS)), np.nan)
    for start in track(range(0, len(rows), RECORDS_AT_ONCE), "measurements", unit="batch"):
        chunk = rows[start : start + RECORDS_AT_ONCE]
        for row, record in zip(chunk, cohort.read_many(chunk), strict=True):
            waveform = preprocess(record.select(LEADS_8), record.sampling_rate, filters)
            values[row] = _measured(waveform, filters.sampling_rate)
    table = pd.DataFrame(values, columns=pd.Index(MEASUREMENTS))
    sex = cohort.manifest.sex.map({"female": 1.0, "male": 0.0}).to_numpy(dtype=np.float64)
    return table.assign(age=cohort.manifest.age.to_numpy(), female=sex)


def _measured(waveform: np.ndarray, sampling_rate: float) -> list[float]:
    try:
        return list(measure(waveform, sampling_rate).values())
    except EcglibError:  # no two beats in these seconds
        return [np.nan] * len(MEASUREMENTS)


def fit_trees(
    features: pd.DataFrame,
    store: Images,
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    settings: TreeSettings,
) -> pd.DataFrame:
    """Fit trees on `train`; predict validation, test and external after each of `settings.tree_rounds`.

    features: FEATURES (n records); rows: part -> positions; labels: (n,) 0/1. Returns the table of
    `finetune.finetune`, whose `step` is the number of rounds. Empty features are sent the way that serves
    best, as scikit-learn does. The same call gives the same table. Raises EcglibError where training lacks a
    class.
    """
    check_rows(rows, labels)
    x = features.loc[:, list(FEATURES)].to_numpy()
    model = HistGradientBoostingClassifier(
        max_iter=settings.tree_rounds[-1],
        learning_rate=settings.tree_learning_rate,
        min_samples_leaf=settings.tree_leaf_records,
        # The round is chosen on the patients of the validation part. The stubs know only the text "auto".
        early_stopping=False,  # type: ignore[arg-type]
        random_state=SEED,
    ).fit(x[rows["train"]], labels[rows["train"]])
    tables = []
    for part in SCORED_PARTS:
        if len(rows.get(part, ())):
            staged = enumerate(model.staged_predict_proba(x[rows[part]]), start=1)
            tables += [
                prediction_table(store, part, rows[part], labels, step, probability[:, 1])
                for step, probability in staged
                if step in settings.tree_rounds
            ]
    return pd.concat(tables, ignore_index=True)
