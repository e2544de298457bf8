"""Where an ECG shows an outcome: the samples and the pixels that carry its sign, where that is known.

It is known for the embedded cohort, whose signs were put in by code; of a recording nobody knows it. It
follows the truth and not the label: an ECG that is labelled with an outcome by mistake, or shows it too
faintly, has no marked sample, and whoever averages over signs leaves it out.
"""

from collections.abc import Sequence

import numpy as np

from ecglib.cohort import Cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.image import ImageSettings, evidence_to_pixels
from ecglib.records import LEADS_8


def sign_samples(cohort: Cohort, rows: Sequence[int], outcome: str) -> np.ndarray | None:
    """Samples that carry an outcome's sign, bool (n, 8, samples) at the records' rate; None if unknown."""
    if outcome not in cohort.outcomes:
        raise EcglibError(f"outcome {outcome!r}: {cohort.name} has {', '.join(cohort.outcomes)}")
    bits = cohort.evidence(rows)
    return None if bits is None else (bits >> cohort.outcomes.index(outcome)) % 2 == 1


def sign_pixels(
    cohort: Cohort, rows: Sequence[int], outcome: str, filters: FilterSettings, settings: ImageSettings
) -> np.ndarray | None:
    """Pixels inked by the samples that carry an outcome's sign, bool (n, size, size); None if unknown."""
    marked = sign_samples(cohort, rows, outcome)
    if marked is None:
        return None
    pixels = np.zeros((len(rows), settings.size, settings.size), bool)
    for image, record, samples in zip(pixels, cohort.read_many(rows), marked, strict=True):
        waveform = preprocess(record.select(LEADS_8), record.sampling_rate, filters)
        # The prepared waveform starts with the record and has its own rate: take the nearest sample's mark.
        nearest = np.rint(np.arange(filters.n_samples) * record.sampling_rate / filters.sampling_rate)
        nearest = np.minimum(nearest.astype(int), samples.shape[1] - 1)
        image[:] = evidence_to_pixels(samples[:, nearest], waveform, settings)
    return pixels
