"""Drawing: positions to the pixel, order of the leads, the maps, and agreement of sizes and of rates."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecglib.errors import EcglibError
from ecglib.filtering import preprocess
from ecglib.image import (
    ImageSettings,
    draw,
    evidence_to_pixels,
    lead_rows,
    lead_time_to_pixel,
    paper_png,
    pixel_to_lead_time,
    sample_columns,
    write_paper_png,
)
from ecglib.records import LEADS_8, read_wfdb

DEFAULT = ImageSettings()
SIZES = (224, 1000)


def beats(seed: int = 0, n_samples: int = 2500) -> np.ndarray:
    """Eight leads of sharp and round waves with heights of their own, mV."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(n_samples) / 500
    phase = (seconds + rng.uniform(0, 0.8)) % 0.8
    qrs, wave = np.exp(-(((phase - 0.3) / 0.015) ** 2)), np.exp(-(((phase - 0.6) / 0.05) ** 2))
    return (rng.uniform(-1, 1.2, (8, 1)) * qrs + rng.uniform(0, 0.4, (8, 1)) * wave).astype(np.float32)


def flat(level_mv: float = 0.0, n_samples: int = 2500) -> np.ndarray:
    return np.full((8, n_samples), level_mv, dtype=np.float32)


def ink(pixels: np.ndarray) -> np.ndarray:
    return 1 - pixels.astype(float) / 255


def centre_of_ink(pixels: np.ndarray) -> float:
    """Mean row of the ink."""
    rows = ink(pixels).sum(axis=1)
    return float(rows @ np.arange(len(rows)) / rows.sum())


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in grey levels of 255."""
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("size", SIZES)
def test_zero_millivolts_lie_on_each_leads_baseline(size: int) -> None:
    pixels = draw(flat(), replace(DEFAULT, size=size))
    assert (pixels.shape, pixels.dtype, int(pixels.max())) == ((size, size), np.uint8, 255)
    for lead, (top, bottom) in enumerate(lead_rows(size)):
        expected = (lead + 0.625) * size / 8 - 0.5
        assert top + centre_of_ink(pixels[top:bottom]) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("mv_per_row", "step"), [(2.0, 14), (1.0, 28), (4.0, 7)])
def test_one_millivolt_moves_the_trace_by_the_stated_pixels(mv_per_row: float, step: int) -> None:
    settings = ImageSettings(mv_per_row=mv_per_row)
    assert settings.pixels_per_mv == step
    low, high = draw(flat(-0.25), settings), draw(flat(0.75), settings)
    np.testing.assert_array_equal(high[: 224 - step], low[step:])


def test_the_gain_is_the_same_for_small_and_large_ecgs() -> None:
    small, large = beats() * 0.1, beats() * 0.1
    large[7] = 3 * beats()[7]
    bottom_of_lead_v2 = lead_rows(224)[3, 1]
    np.testing.assert_array_equal(draw(small)[:bottom_of_lead_v2], draw(large)[:bottom_of_lead_v2])


@pytest.mark.parametrize("lead", range(8))
def test_leads_lie_in_order_in_rows_of_equal_height(lead: int) -> None:
    waveform = flat()
    waveform[lead] = beats()[lead].clip(-0.5, 0.9)
    rows = np.flatnonzero((draw(waveform) != draw(flat())).any(axis=1))
    top, bottom = lead_rows(224)[lead]
    assert bottom - top == 28
    assert rows.min() >= top
    assert rows.max() < bottom


def test_a_tall_trace_runs_into_its_neighbours_rows() -> None:
    waveform = flat()
    waveform[4, 1240:1260] = 3.0
    changed = np.flatnonzero((draw(waveform) != draw(flat())).any(axis=1))
    top, _ = lead_rows(224)[4]
    assert changed.min() < top - 15


def test_a_trace_beyond_the_picture_is_cut_off() -> None:
    waveform = flat()
    waveform[0] = 1e9
    expected = draw(flat())
    expected[: lead_rows(224)[0, 1]] = 255
    np.testing.assert_array_equal(draw(waveform), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sample", [20, 1000, 2479])
def test_a_pulse_stands_in_its_samples_column(size: int, sample: int) -> None:
    waveform = flat()
    waveform[2, sample - 5 : sample + 6] = 0.8
    changed = ink(draw(waveform, replace(DEFAULT, size=size))) - ink(
        draw(flat(), replace(DEFAULT, size=size))
    )
    columns = changed.clip(0).sum(axis=0)
    expected = sample_columns(2500, size)[sample]
    assert columns @ np.arange(size) / columns.sum() == pytest.approx(expected, abs=0.3)


def test_ink_reaches_both_edges_of_the_picture_evenly() -> None:
    columns = ink(draw(flat(0.1))).sum(axis=0)
    np.testing.assert_allclose(columns, columns[112], rtol=0.2)


@pytest.mark.parametrize("size", SIZES)
def test_lead_rows_are_the_bands_of_pixel_to_lead_time(size: int) -> None:
    leads, _ = pixel_to_lead_time(np.arange(size), 0, size)
    for lead, (top, bottom) in enumerate(lead_rows(size)):
        np.testing.assert_array_equal(np.flatnonzero(leads == lead), np.arange(top, bottom))


@given(
    lead=st.integers(0, 7),
    moment=st.floats(0, 1),
    size=st.sampled_from([112, 224, 1000]),
    amplitude=st.floats(-0.7, 1.2),
)
def test_lead_and_time_survive_the_way_to_the_pixel_and_back(
    lead: int, moment: float, size: int, amplitude: float
) -> None:
    row, column = lead_time_to_pixel(lead, moment, ImageSettings(size=size), amplitude)
    lead_again, moment_again = pixel_to_lead_time(row, column, size)
    assert lead_again == lead
    assert moment_again == pytest.approx(moment, abs=1e-9)


def test_sample_columns_are_the_samples_times() -> None:
    _, columns = lead_time_to_pixel(0, (np.arange(2500) + 0.5) / 2500, DEFAULT)
    np.testing.assert_allclose(sample_columns(2500, 224), columns)
    assert sample_columns(224, 224).tolist() == list(range(224))


@pytest.mark.parametrize("seed", range(4))
def test_the_paper_picture_made_small_is_the_small_picture(seed: int) -> None:
    waveform = beats(seed)
    reduced = cv2.resize(paper_png(waveform)[:, :, 0], (224, 224), interpolation=cv2.INTER_AREA)
    assert_sizes_agree(draw(waveform), reduced)


def assert_sizes_agree(small: np.ndarray, reduced: np.ndarray) -> None:
    """The tolerance of the two resolutions: correlation .98, 6 of 255 grey levels, ink within a tenth."""
    assert correlation(small, reduced) > 0.98
    assert mean_difference(small, reduced) < 6
    assert ink(small).sum() == pytest.approx(ink(reduced).sum(), rel=0.1)


@pytest.fixture(scope="module")
def both_rates(shared_data: Path) -> dict[int, np.ndarray]:
    """The 20 records that are there at 500 and at 100 Hz, prepared: rate -> float (20, 8, 2500) mV."""
    folder = shared_data / "ptb-xl-500hz"
    names = [header.name[:5] for header in sorted(folder.rglob("*_hr.hea"))]
    assert len(names) == 20
    return {
        rate: np.stack(
            [
                preprocess(read_wfdb(next(folder.rglob(f"{name}_{copy}.hea"))).select(LEADS_8), rate)
                for name in names
            ]
        )
        for copy, rate in (("hr", 500), ("lr", 100))
    }


def test_sizes_agree_on_real_records(both_rates: dict[int, np.ndarray]) -> None:
    for waveform in both_rates[500]:
        reduced = cv2.resize(paper_png(waveform)[:, :, 0], (224, 224), interpolation=cv2.INTER_AREA)
        assert_sizes_agree(draw(waveform), reduced)


def test_both_rates_give_the_same_picture(both_rates: dict[int, np.ndarray]) -> None:
    """Tolerance of the two rates: 2 of 255 grey levels, 0.3 % of the pixels by more than 32, correlation .99.

    Two records differ by eight times as much at least, and by 25 times as much in the mean. PTB-XL's copies
    at 100 Hz lie 1.25 ms, 0.06 pixel, before those at 500 Hz.
    """
    fast, slow = (np.stack([draw(w) for w in both_rates[rate]]).astype(float) for rate in (500, 100))
    apart = np.abs(fast[:, None] - slow).reshape(20, 20, -1)
    differences, shares = apart.mean(axis=2), (apart > 32).mean(axis=2)
    same = np.eye(20, 20) == 1
    assert differences[same].max() < 2
    assert shares[same].max() < 0.003
    assert differences[~same].min() > 15
    assert shares[~same].min() > 0.1
    assert min(correlation(a, b) for a, b in zip(fast, slow, strict=True)) > 0.99


def test_every_second_sample_has_all_the_peaks(shared_data: Path) -> None:
    for header in sorted((shared_data / "ptb-xl-500hz").rglob("*.hea")):
        record = read_wfdb(header)
        waveform = preprocess(record.select(LEADS_8), record.sampling_rate)
        for extreme in (np.max, np.min):
            assert np.abs(extreme(waveform, axis=1) - extreme(waveform[:, ::2], axis=1)).max() < 0.01  # mV


def test_the_same_waveform_gives_the_same_bytes_and_stays_as_it_was() -> None:
    waveform = beats()
    before = waveform.copy()
    threads = cv2.getNumThreads()
    assert draw(waveform).tobytes() == draw(np.asfortranarray(waveform)).tobytes()
    np.testing.assert_array_equal(waveform, before)
    assert cv2.getNumThreads() == threads


def test_the_paper_png_is_a_thousand_pixels_square_in_three_channels(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "a.png", tmp_path / "b.png"
    write_paper_png(first, beats())
    write_paper_png(second, beats())
    with Image.open(first) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (1000, 1000))
        pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels, paper_png(beats()))
    np.testing.assert_array_equal(pixels.min(axis=2), pixels.max(axis=2))
    assert first.read_bytes() == second.read_bytes()


def test_evidence_everywhere_is_all_the_ink() -> None:
    waveform = beats()
    everywhere = evidence_to_pixels(np.ones(waveform.shape, bool), waveform)
    np.testing.assert_array_equal(everywhere, draw(waveform) < 255)


def test_no_evidence_is_no_pixel() -> None:
    assert not evidence_to_pixels(np.zeros((8, 2500), bool), beats()).any()


@given(lead=st.integers(0, 7), start=st.integers(0, 2499), length=st.integers(1, 400))
def test_evidence_lies_on_its_leads_trace_at_its_time(lead: int, start: int, length: int) -> None:
    waveform = beats().clip(-0.5, 0.9)
    evidence = np.zeros(waveform.shape, bool)
    evidence[lead, start : start + length] = True
    found = np.argwhere(evidence_to_pixels(evidence, waveform))
    columns = sample_columns(2500, 224)[evidence[lead]]
    top, bottom = lead_rows(224)[lead]
    assert len(found) > 0
    assert top <= found[:, 0].min() <= found[:, 0].max() < bottom
    assert columns[0] - 2.5 <= found[:, 1].min() <= columns[0] + 1
    assert columns[-1] - 1 <= found[:, 1].max() <= columns[-1] + 2.5


def test_evidence_of_another_shape_is_refused() -> None:
    with pytest.raises(EcglibError, match=r"\(8, 5000\)"):
        evidence_to_pixels(np.zeros((8, 5000), bool), beats())


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((12, 2500)), r"shape \(12, 2500\).*V6"),
        (np.zeros(2500), r"shape"),
        (np.zeros((8, 1)), r"shape"),
        (np.full((8, 2500), np.nan), r"NaN"),
        (np.full((8, 2500), -np.inf), r"infinite"),
    ],
)
def test_waveforms_that_cannot_be_drawn_are_refused(waveform: np.ndarray, message: str) -> None:
    with pytest.raises(EcglibError, match=message):
        draw(waveform)


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 225}, {"mv_per_row": 0.0}, {"mv_per_row": float("nan")}, {"line_width": -1.0},
     {"baseline": 1.5}],
)  # fmt: skip
def test_settings_that_make_no_picture_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(EcglibError, match=next(iter(change))):
        replace(DEFAULT, **change)
