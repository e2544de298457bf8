"""A cohort: one manifest, whatever the source of the ECGs, and their waveforms, read when asked for."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from ecglib.errors import EcglibError
from ecglib.records import Record
from ecglib.synthetic import Rows

N_FOLDS = 10


class Waveforms(Protocol):
    """Where a cohort's waveforms come from; rows are positions in its manifest."""

    def read_many(self, rows: Rows) -> list[Record]:
        """Waveforms in the order of `rows`."""
        ...

    def evidence(self, rows: Rows) -> np.ndarray | None:
        """Where the outcomes' signs are: uint8 (n, 8, samples), bit k = outcome k; None where not known."""
        ...


@dataclass(frozen=True)
class Cohort:
    """A source of ECGs with one row per record.

    manifest: record_id, patient_id, site (str), external (bool), strat_fold (1..10, 0 where external), age
    (years, float, may be missing), sex ("male", "female", "unknown"), device (str) and one int8 column per
    outcome: 1, 0, or -1 where nobody said.
    comparable: False for made or partial data, whose scores must not be set beside the paper's.
    fingerprint: changes when the data change.
    other_patients: True for a hospital's own, whose counts and scores are not the paper's to reproduce.
    origins: where each outcome's labels come from, in words. notes: how the cohort came about, sentences.
    drawn: the embedded cohort's table from `synthetic.draw_cohort`, row for row: who is truly ill, and how
    strongly each condition shows; None for recordings.
    """

    name: str
    manifest: pd.DataFrame
    outcomes: tuple[str, ...]
    synthetic: bool
    comparable: bool
    fingerprint: str
    waveforms: Waveforms
    other_patients: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    drawn: pd.DataFrame | None = None

    def __len__(self) -> int:
        """Count the records."""
        return len(self.manifest)

    def read(self, row: int) -> Record:
        """Read the record at this position of the manifest."""
        return self.waveforms.read_many([row])[0]

    def read_many(self, rows: Rows) -> list[Record]:
        """Read the records at these positions, in this order; faster than one by one where they are made."""
        return self.waveforms.read_many(rows)

    def evidence(self, rows: Rows) -> np.ndarray | None:
        """Where the outcomes' signs were put: uint8 (n, 8, samples), bit k = outcome k.

        At the record's own sampling rate; None where nobody knows (real recordings). It follows the truth: an
        ECG labelled by mistake has none.
        """
        return self.waveforms.evidence(rows)


def known_labels(manifest: pd.DataFrame, outcome: str) -> pd.Series:
    """The labels, 0 or 1, of the records for which somebody gave one."""
    return manifest.loc[manifest[outcome] >= 0, outcome]


def make_folds(manifest: pd.DataFrame, outcomes: Sequence[str], seed: int) -> np.ndarray:
    """Ten folds of internal patients, alike in size and in the labels of every outcome; external rows 0.

    Each record is dealt once for each outcome, so that the folds even out outcome by outcome: rare
    combinations of them would otherwise weigh as much. Raises EcglibError for fewer patients than folds.
    """
    internal = np.flatnonzero(~manifest.external)
    rows = manifest.iloc[internal]
    if rows.patient_id.nunique() < N_FOLDS:
        raise EcglibError(
            f"only {rows.patient_id.nunique()} patients are not external; {N_FOLDS} folds need {N_FOLDS}"
        )
    classes = rows[list(outcomes)].to_numpy(np.int64) + 3 * np.arange(len(outcomes))  # a label is -1, 0 or 1
    if np.unique(classes, return_counts=True)[1].max() < N_FOLDS:  # scikit-learn would refuse
        classes = np.zeros_like(classes)
    dealt = np.repeat(internal, len(outcomes))
    folds = np.zeros(len(manifest), np.int64)
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a rare outcome
        splits = splitter.split(dealt, classes.ravel(), manifest.patient_id.iloc[dealt])
        for fold, (_, held) in enumerate(splits, start=1):
            folds[dealt[held]] = fold
    return folds


def ordered(manifest: pd.DataFrame, outcomes: Sequence[str]) -> pd.DataFrame:
    """Bring every source's manifest into the same columns and types."""
    types: dict[str, type] = {"external": bool, "strat_fold": np.int64, "age": np.float64}
    columns = ["record_id", "patient_id", "site", *types, "sex", "device", *outcomes]
    types |= dict.fromkeys(outcomes, np.int8)
    return manifest.loc[:, columns].astype(types).reset_index(drop=True)
