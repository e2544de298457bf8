"""The fingerprint changes with what decides how an image looks, and says what differs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from ecglib import preprocessing
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.image import ImageSettings, draw
from ecglib.preprocessing import fingerprint, require_same, waveform_to_pixels

PATH = Path("encoder.safetensors")
FILTERS = {
    "sampling_rate": 400, "n_samples": 2400, "low_hz": 0.3, "high_hz": 38.0, "order": 3, "median_samples": 5,
}  # fmt: skip
IMAGE = {"size": 232, "mv_per_row": 2.1, "baseline": 0.6, "line_width": 3.0}


def test_pixels_are_those_of_filter_and_drawing() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.3, (8, 1000))
    expected = draw(preprocess(waveform, 100))
    given = waveform_to_pixels(waveform, 100, FilterSettings(), ImageSettings())
    np.testing.assert_array_equal(given, expected)


def test_fingerprint_holds_every_setting_and_is_plain_json() -> None:
    found = json.loads(json.dumps(fingerprint()))
    assert found == fingerprint()
    assert found["filter"] == asdict(FilterSettings())
    assert found["image"] == asdict(ImageSettings())
    assert FILTERS.keys() == found["filter"].keys()
    assert IMAGE.keys() == found["image"].keys()


@pytest.mark.parametrize("name", [*FILTERS, *IMAGE])
def test_every_setting_changes_the_digest_and_is_named(name: str) -> None:
    filters = replace(FilterSettings(), **{name: FILTERS[name]}) if name in FILTERS else FilterSettings()
    image = replace(ImageSettings(), **{name: IMAGE[name]}) if name in IMAGE else ImageSettings()
    other = fingerprint(filters, image)
    before = {**asdict(FilterSettings()), **asdict(ImageSettings())}[name]
    with pytest.raises(EcglibError) as caught:
        require_same(fingerprint(), other, PATH)
    assert str(caught.value) == (
        f"{PATH} learnt from images drawn otherwise: {name} {before} there, {(FILTERS | IMAGE)[name]} here; "
        "draw yours alike or train again"
    )


def test_a_setting_that_moves_no_pixel_is_no_difference() -> None:
    other = fingerprint(image=ImageSettings(line_width=1.5))  # OpenCV's thinnest line, as 1.4
    assert other["image"] != fingerprint()["image"]
    require_same(fingerprint(), other, PATH)


def test_code_that_draws_otherwise_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    monkeypatch.setattr(preprocessing, "draw", lambda waveform, settings: 255 - draw(waveform, settings))
    preprocessing._drawn.cache_clear()
    try:
        with pytest.raises(EcglibError, match="the same settings draw otherwise, with other code"):
            require_same(before, fingerprint(), PATH)
    finally:
        preprocessing._drawn.cache_clear()


def test_unknown_images_pass_only_when_told_so() -> None:
    with pytest.raises(EcglibError, match="does not say how its images were drawn"):
        require_same(None, fingerprint(), PATH)
    require_same(None, fingerprint(), PATH, allow_unknown=True)
    with pytest.raises(EcglibError, match="incomplete"):
        require_same({"digest": "0"}, fingerprint(), PATH, allow_unknown=True)
