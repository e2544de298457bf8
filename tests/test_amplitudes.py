"""Amplitudes read off pictures are those of the waveforms, and a copy's loss of them is seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecglib.amplitudes import compare_ranges, read_ranges
from ecglib.image import ImageSettings, draw
from ecglib.patchbook import brightness

IMAGE = ImageSettings()


def beats(heights_mv: np.ndarray, depths_mv: np.ndarray) -> np.ndarray:
    """Eight leads of five beats, R waves and S waves of these sizes (8,), mV."""
    phase = np.arange(0, 5, 0.002) % 1
    r, s = (np.exp(-(((phase - place) / 0.015) ** 2)) for place in (0.4, 0.46))
    return (heights_mv[:, None] * r - depths_mv[:, None] * s).astype(np.float32)


def picture(waveform: np.ndarray, image: ImageSettings = IMAGE) -> np.ndarray:
    """A drawn ECG as the tokenizer sees it: brightness (1, 112, 112)."""
    return brightness(draw(waveform, image)[None])[:, 0].numpy()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_ranges_are_those_of_the_waveform(seed: int) -> None:
    rng = np.random.default_rng(seed)
    waveform = beats(rng.uniform(0.1, 1.1, 8), rng.uniform(0, 0.6, 8))
    # A row of the copy is 0.14 mV.
    assert read_ranges(picture(waveform), IMAGE)[0] == pytest.approx(np.ptp(waveform, axis=1), abs=0.1)


@pytest.mark.parametrize("mv_per_row", [1.5, 2.0, 4.0])
def test_ranges_follow_the_gain_of_the_image(mv_per_row: float) -> None:
    image = ImageSettings(mv_per_row=mv_per_row)
    waveform = beats(np.full(8, 0.7), np.full(8, 0.1))
    read = read_ranges(picture(waveform, image), image)
    assert read == pytest.approx(np.ptp(waveform, axis=1)[None], abs=0.05 * mv_per_row)


def test_a_tall_trace_is_cut_off_at_its_band() -> None:
    heights = np.zeros(8)
    heights[4] = 2.2
    read = read_ranges(picture(beats(heights, np.zeros(8))), IMAGE)[0]
    assert read[4] == pytest.approx(1.25, abs=0.15)  # of 2.2 mV
    assert read[3] > 0.7  # the neighbour above is given what reaches into its band
    assert read[[0, 1, 2, 5, 6, 7]] == pytest.approx(np.zeros(6), abs=0.15)


def test_white_paper_and_pale_copies_count_as_flat() -> None:
    assert read_ranges(np.ones((2, 112, 112)), IMAGE).tolist() == [[0.0] * 8] * 2
    waveform = beats(np.ones(8), np.zeros(8))
    assert not read_ranges(1 - 0.4 * (1 - picture(waveform)), IMAGE).any()


def test_a_black_page_fills_each_band() -> None:
    read = read_ranges(np.zeros((1, 112, 112)), IMAGE)
    assert read == pytest.approx(np.full((1, 8), 2.0), abs=0.01)


def test_what_a_copy_loses_is_told_lead_by_lead() -> None:
    rng = np.random.default_rng(0)
    waveforms = [beats(rng.uniform(0.3, 1.1, 8), np.zeros(8)) for _ in range(30)]
    halved = [w * np.array([[1]] * 7 + [[0.5]], np.float32) for w in waveforms]
    pixels = np.stack([draw(w) for w in waveforms])
    copies = np.concatenate([picture(w) for w in halved])
    table = compare_ranges(pixels, copies, IMAGE).set_index("lead")
    assert list(table.index) == ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6", "all"]
    assert (table.error_mv.iloc[:7] == 0).all()
    assert table.correlation.iloc[:7].to_numpy() == pytest.approx(np.ones(7))
    truth = np.median([np.ptp(w[7]) for w in waveforms])
    assert table.copy_mv["V6"] == pytest.approx(truth / 2, abs=0.05)
    assert table.error_mv["V6"] == pytest.approx(truth / 2, abs=0.05)
    assert table.correlation["V6"] > 0.97  # a constant loss is no loss of order
    flat = compare_ranges(pixels, np.ones_like(copies), IMAGE)
    assert flat.correlation.isna().all()
    assert (flat.copy_mv == 0).all()
