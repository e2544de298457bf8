"""Preparing waveforms: the analytic filter as oracle, edges, rates, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, band_pass, preprocess, resample
from ecglib.records import LEADS_8, read_wfdb

DEFAULT = FilterSettings()
NO_MEDIAN = FilterSettings(median_samples=1)


def seconds(duration: float, rate: float) -> np.ndarray:
    return np.arange(round(duration * rate)) / rate


def sine(frequency: float, duration: float, rate: float, phase: float = 0.3) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * seconds(duration, rate) + phase)[None]


def butterworth_power(frequency: float, low: float, high: float, order: int, rate: float) -> float:
    """|H|^2 of a Butterworth band-pass made by the bilinear transform, in closed form."""
    f, low, high = (np.tan(np.pi * value / rate) for value in (frequency, low, high))
    return 1 / (1 + ((f**2 - low * high) / (f * (high - low))) ** (2 * order))


@pytest.mark.parametrize("frequency", [0.2, 0.5, 1, 2, 5, 20, 40, 60, 100, 150])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_sines_pass_with_the_squared_butterworth_gain_and_no_delay(frequency: float, order: int) -> None:
    filtered = band_pass(sine(frequency, 20, 500), replace(NO_MEDIAN, order=order))[0]
    middle = slice(4000, 6000)  # edges apart
    basis = np.stack([sine(frequency, 20, 500)[0], sine(frequency, 20, 500, 0.3 + np.pi / 2)[0]], axis=1)
    in_phase, delayed = np.linalg.lstsq(basis[middle], filtered[middle], rcond=None)[0]
    assert in_phase == pytest.approx(butterworth_power(frequency, 0.5, 40, order, 500), abs=1e-3)
    assert delayed == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("rate", [100, 250, 257, 400, 500, 1000])
def test_a_sine_inside_the_band_is_the_same_from_every_rate(rate: int) -> None:
    prepared = preprocess(sine(5, 10, rate), rate)
    assert (prepared.shape, prepared.dtype) == ((1, 2500), np.float32)
    # Near the left edge the high-pass knows one side only.
    np.testing.assert_allclose(prepared[0, 750:], sine(5, 5, 500)[0, 750:], atol=0.005)
    np.testing.assert_allclose(prepared, sine(5, 5, 500), atol=0.12)


@pytest.mark.parametrize("rate", [100, 500])
@given(level=st.floats(-5, 5))
@settings(max_examples=10)
def test_a_constant_becomes_zero(rate: int, level: float) -> None:
    np.testing.assert_allclose(preprocess(np.full((2, 10 * rate), level), rate), 0, atol=1e-3 * abs(level))


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(-3, 3), offset=st.floats(-3, 3))
@settings(max_examples=10)
def test_scaling_and_shifting_the_voltage(seed: int, factor: float, offset: float) -> None:
    waveform = np.random.default_rng(seed).normal(size=(3, 3000)).cumsum(axis=1) / 30
    expected = factor * preprocess(waveform, 500)
    np.testing.assert_allclose(preprocess(factor * waveform + offset, 500), expected, atol=1e-5)


def test_time_reversed_in_is_time_reversed_out() -> None:
    waveform = np.random.default_rng(1).normal(size=(2, 10_000)).cumsum(axis=1) / 30
    forwards = band_pass(waveform, DEFAULT)
    backwards = band_pass(waveform[:, ::-1], DEFAULT)[:, ::-1]
    np.testing.assert_allclose(forwards[:, 3000:-3000], backwards[:, 3000:-3000], atol=1e-3)


def test_a_beat_stays_where_it_is() -> None:
    for rate in (100, 500):
        beat = np.exp(-(((seconds(10, rate) - 2.5) / 0.02) ** 2))[None]
        prepared = preprocess(beat, rate)[0]
        assert abs(int(np.argmax(prepared)) - 1250) <= 1  # the median makes a plateau of three samples
        np.testing.assert_allclose(prepared[1251:1300], prepared[1200:1250][:0:-1], atol=0.01)


def test_leads_do_not_mix() -> None:
    waveform = np.random.default_rng(2).normal(size=(8, 1000))
    together = preprocess(waveform, 100)
    for lead in range(8):
        np.testing.assert_array_equal(preprocess(waveform[lead : lead + 1], 100)[0], together[lead])


@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_the_median_filter_is_the_running_median_of_the_filtered_wave(kernel: int) -> None:
    waveform = np.random.default_rng(3).normal(size=(2, 3500))
    filtered = band_pass(waveform, DEFAULT)
    expected = signal.medfilt(filtered, (1, kernel))[:, 50:2500]
    prepared = preprocess(waveform, 500, replace(DEFAULT, median_samples=kernel))[:, 50:]
    np.testing.assert_allclose(prepared, expected, atol=1e-6)


def test_the_chosen_median_kernel_costs_the_tallest_waves_little(shared_data: Path) -> None:
    for header in sorted((shared_data / "ptb-xl-500hz").rglob("*_hr.hea")):
        waveform = read_wfdb(header).select(LEADS_8)
        tallest = np.abs(preprocess(waveform, 500, NO_MEDIAN)).max(axis=1)
        assert (tallest - np.abs(preprocess(waveform, 500)).max(axis=1)).max() < 0.05  # mV


def test_the_cut_at_five_seconds_is_no_edge(shared_data: Path) -> None:
    header = sorted((shared_data / "ptb-xl-500hz").rglob("*_hr.hea"))[0]
    waveform = read_wfdb(header).select(LEADS_8)
    whole = band_pass(waveform, NO_MEDIAN)[:, :2500]
    np.testing.assert_allclose(preprocess(waveform, 500, NO_MEDIAN), whole, atol=0.002)


def test_the_padding_beats_scipys_default_at_the_end_of_a_short_recording(shared_data: Path) -> None:
    sections = signal.butter(2, (0.5, 40), "bandpass", fs=500, output="sos")
    errors = []
    for header in sorted((shared_data / "ptb-xl-500hz").rglob("*_hr.hea")):
        waveform = read_wfdb(header).select(LEADS_8)
        truth = band_pass(waveform, NO_MEDIAN)[:, 2000:2500]
        short = waveform[:, :2500]
        ours = preprocess(short, 500, NO_MEDIAN)[:, 2000:] - truth
        default = np.asarray(signal.sosfiltfilt(sections, short))[:, 2000:] - truth
        errors.append([np.abs(ours).mean(), np.abs(default).mean()])
    ours, default = np.mean(errors, axis=0)
    assert ours < 0.5 * default
    assert ours < 0.02  # mV


@pytest.mark.parametrize(("rate", "target"), [(100, 500), (500, 100), (250, 500), (360, 500)])
def test_resampling_keeps_levels_up_to_the_edges(rate: int, target: int) -> None:
    resampled = resample(np.full((1, 4 * rate), 2.0), rate, target)
    assert resampled.shape == (1, 4 * target)
    np.testing.assert_allclose(resampled, 2.0, atol=0.01)


def test_resampling_keeps_time() -> None:
    resampled = resample(sine(7, 4, 100), 100, 500)
    np.testing.assert_allclose(resampled[:, 250:-250], sine(7, 4, 500)[:, 250:-250], atol=0.005)


@pytest.mark.parametrize(("rate", "target"), [(100, 500), (500, 100), (360, 500)])
def test_resampling_is_scipys(rate: int, target: int) -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    up, down = target // np.gcd(rate, target), rate // np.gcd(rate, target)
    expected = signal.resample_poly(waveform, up, down, axis=1, padtype="reflect")
    np.testing.assert_array_equal(resample(waveform, rate, target), expected)


def test_the_same_rate_is_left_alone() -> None:
    waveform = np.random.default_rng(0).normal(size=(2, 30))
    np.testing.assert_array_equal(resample(waveform, 500, 500), waveform)


def test_the_input_is_not_changed() -> None:
    waveform = np.random.default_rng(0).normal(size=(2, 2500)).astype(np.float32)
    before = waveform.copy()
    preprocess(waveform, 500)
    np.testing.assert_array_equal(waveform, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_missing_sample_is_refused(bad: float) -> None:
    waveform = np.zeros((8, 5000), np.float32)
    waveform[3, 4999] = bad
    with pytest.raises(EcglibError, match=r"missing .* lead row 3"):
        preprocess(waveform, 500)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros((8, 2499)), 500, r"lasts 4.998 s: must be at least 5 s"),
        (np.zeros((8, 499)), 100, r"lasts 4.99 s"),
        (np.zeros(5000), 500, r"\(leads, samples\)"),
        (np.zeros((0, 5000)), 500, r"not empty"),
        (np.zeros((8, 5000)), 0, r"sampling rate 0"),
        (np.zeros((8, 5000)), 499.99, r"ratio of small numbers"),
    ],
)
def test_waveforms_that_cannot_be_prepared_are_refused(
    waveform: np.ndarray, rate: float, message: str
) -> None:
    with pytest.raises(EcglibError, match=message):
        preprocess(waveform, rate)


@pytest.mark.parametrize(
    "change",
    [{"low_hz": 0.0}, {"low_hz": 50.0}, {"high_hz": 250.0}, {"high_hz": float("nan")}, {"median_samples": 4},
     {"median_samples": 0}, {"order": 0}, {"n_samples": 0}],
)  # fmt: skip
def test_settings_that_make_no_filter_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(EcglibError, match=next(iter(change))):
        replace(DEFAULT, **change)
