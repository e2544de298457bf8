"""From waveform to pixels in one call, and the fingerprint by which weights know the images they learnt from.

Weights that meet images drawn otherwise give numbers all the same, only worse ones: so files of weights carry
a fingerprint of their images, and it is compared before they are used.
"""

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ecglib.errors import EcglibError
from ecglib.filtering import SUPPORT_S, FilterSettings, preprocess
from ecglib.image import ImageSettings, draw
from ecglib.records import LEADS_8

TEST_RATES_HZ = (100, 500)  # PTB-XL's two: with and without resampling


def waveform_to_pixels(
    waveform: np.ndarray, sampling_rate: float, filters: FilterSettings, image: ImageSettings
) -> np.ndarray:
    """Waveform (8, samples) in mV, leads as LEADS_8, at `sampling_rate` Hz -> uint8 (size, size)."""
    return draw(preprocess(waveform, sampling_rate, filters), image)


def fingerprint(filters: FilterSettings | None = None, image: ImageSettings | None = None) -> dict[str, Any]:
    """What decides how an image looks: all settings, and a digest of how they draw two test waveforms.

    The digest decides, so that code may be tidied and a setting that changes no pixel may change; the
    settings are there to say why two digests differ.
    """
    filters, image = filters or FilterSettings(), image or ImageSettings()
    return {"digest": _drawn(filters, image), "filter": asdict(filters), "image": asdict(image)}


@functools.cache
def _drawn(filters: FilterSettings, image: ImageSettings) -> str:
    total = hashlib.sha256()
    duration_s = filters.n_samples / filters.sampling_rate + SUPPORT_S
    for rate in TEST_RATES_HZ:
        total.update(waveform_to_pixels(_test_waveform(duration_s, rate), rate, filters, image).tobytes())
    return total.hexdigest()[:16]


def _test_waveform(duration_s: float, sampling_rate: int) -> np.ndarray:
    """Wander, beats, hum and single spikes, other ones in each lead: float64 (8, samples), mV."""
    time = np.arange(math.ceil(duration_s * sampling_rate)) / sampling_rate
    lead = np.arange(1, len(LEADS_8) + 1)[:, None]
    beats = (-1.0) ** lead * np.exp(-((((time * (0.9 + 0.1 * lead)) % 1 - 0.4) / 0.03) ** 2))
    waves = sum(a * np.sin(2 * np.pi * f * time + lead) for f, a in ((0.2, 0.3), (0.6, 0.2), (37, 0.1)))
    spikes = 0.6 * (np.arange(len(time)) % 89 == 7 * lead)
    return beats + waves + spikes


def require_same(
    theirs: Mapping[str, Any] | None, ours: Mapping[str, Any], path: Path, *, allow_unknown: bool = False
) -> None:
    """Raise EcglibError, saying what differs, where the weights at `path` learnt from images drawn otherwise.

    theirs: the file's fingerprint; None, where it has none, passes only with `allow_unknown`.
    """
    if theirs is None:
        if allow_unknown:
            return
        raise EcglibError(
            f"{path} does not say how its images were drawn: if as yours, allow_unknown_preprocessing"
        )
    if not theirs.keys() >= {"digest", "filter", "image"}:
        raise EcglibError(f"{path} has a fingerprint of its images that is incomplete: fetch it again")
    if theirs["digest"] == ours["digest"]:
        return
    changes = [
        f"{name} {theirs[part][name]} there, {value} here"
        for part in ("filter", "image")
        for name, value in ours[part].items()
        if theirs[part].get(name, value) != value
    ]
    reason = ", ".join(changes) or "the same settings draw otherwise, with other code or other libraries"
    raise EcglibError(f"{path} learnt from images drawn otherwise: {reason}; draw yours alike or train again")
