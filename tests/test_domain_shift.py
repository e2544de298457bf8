"""Distances between distributions of pixel intensities: against scipy, by hand, by the laws of a metric."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_sample_image

from ecglib.domain_shift import (
    ShiftSettings,
    domain_shift,
    ecg_rows,
    histograms,
    natural_images,
    pairwise_wasserstein,
    summarise,
)
from ecglib.errors import EcglibError

FEW = ShiftSettings(n_draws=50)
small_images = arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 255))


def random_images(n: int, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.uniform(40, 215, (n, 1, 1))
    return rng.normal(means, 40, (n, size, size)).clip(0, 255).astype(np.uint8)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return pairwise_wasserstein(histograms(a), histograms(b))


@settings(max_examples=80)
@given(small_images, small_images)
def test_every_pair_equals_scipy(a, b):
    expected = [[wasserstein_distance(x.ravel(), y.ravel()) for y in b] for x in a]
    np.testing.assert_allclose(distances(a, b), expected, rtol=0, atol=1e-9)


def test_a_thousand_by_a_thousand_images_equal_scipy():
    base = random_images(100, 224, 0)
    a = np.concatenate([base + np.uint8(shift) for shift in range(10)])  # wraps round: all differ
    b = a[::-1].transpose(0, 2, 1)
    found = distances(a, b)
    for i, j in np.random.default_rng(1).integers(0, 1000, (12, 2)):
        assert found[i, j] == pytest.approx(wasserstein_distance(a[i].ravel(), b[j].ravel()), abs=1e-9)


def test_distances_worked_by_hand():
    black, white = np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 255, np.uint8)
    half = np.array([[[0, 255], [0, 255]]], np.uint8)
    assert distances(black, white).item() == 255
    assert distances(half, white).item() == 127.5
    assert distances(np.full((1, 2, 2), 7, np.uint8), np.full((1, 3, 3), 10, np.uint8)).item() == 3


@settings(max_examples=40)
@given(small_images, st.integers(0, 2**32 - 1))
def test_shuffling_the_pixels_of_an_image_changes_nothing(images, seed):
    """The measure sees no layout: this is why it cannot tell an ECG from any page with as much ink."""
    shuffled = np.random.default_rng(seed).permuted(images.reshape(3, -1), axis=1).reshape(images.shape)
    np.testing.assert_array_equal(histograms(shuffled), histograms(images))
    assert np.diag(distances(images, shuffled)).tolist() == [0, 0, 0]


@settings(max_examples=40)
@given(small_images)
def test_distances_are_symmetric_and_obey_the_triangle_inequality(images):
    matrix = distances(images, images)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert matrix[0, 2] <= matrix[0, 1] + matrix[1, 2] + 1e-9


def test_a_grey_image_equals_its_three_equal_channels():
    grey = random_images(4, 16, 0)
    np.testing.assert_array_equal(histograms(grey), histograms(np.repeat(grey[..., None], 3, axis=-1)))
    coloured = np.stack([grey[0], grey[1], grey[2]], axis=-1)[None]
    expected = wasserstein_distance(coloured.ravel(), grey[3].ravel())
    assert distances(coloured, grey[3:]).item() == pytest.approx(expected, abs=1e-9)


def test_means_within_one_kind_leave_out_the_image_itself():
    levels = np.array([0, 10, 40], np.uint8)[:, None, None]
    matrix = distances(levels, levels)
    row = summarise(matrix, FEW, within=True)
    assert row["mean"] == pytest.approx((10 + 40 + 30) / 3)
    assert (row["n_a"], row["n_b"], row["n_pairs"]) == (3, 3, 3)
    assert summarise(matrix, FEW, within=False)["mean"] == pytest.approx(2 * (10 + 40 + 30) / 9)


def test_two_images_have_one_distance_and_no_spread():
    """Draws that repeat an image must not bring its distance 0 to itself into the mean."""
    levels = np.array([0, 10], np.uint8)[:, None, None]
    row = summarise(distances(levels, levels), FEW, within=True)
    assert (row["mean"], row["low"], row["high"], row["sd"]) == (10, 10, 10, 0)


def test_the_interval_covers_the_mean_of_the_population_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        levels = rng.normal(100, 20, 30)
        matrix = np.abs(levels[:, None] - levels[None])
        row = summarise(matrix, ShiftSettings(n_draws=200), within=True)
        covered += row["low"] <= 2 * 20 / np.sqrt(np.pi) <= row["high"]
    assert 0.87 <= covered / 200 <= 0.99


def test_a_blank_page_is_as_far_from_photographs_as_a_page_with_five_percent_ink():
    rng = np.random.default_rng(0)
    pages = np.where(rng.random((30, 64, 64)) < 0.05, 0, 255).astype(np.uint8)
    photographs = natural_images(64).pixels
    table, pairs = domain_shift(pages, photographs, FEW)
    mean = table.set_index("combination")["mean"]
    assert mean.index.tolist() == ["ecg-ecg", "natural-natural", "ecg-natural", "blank-natural"]
    assert mean["ecg-ecg"] < mean["natural-natural"] < mean["ecg-natural"] < mean["blank-natural"]
    assert mean["blank-natural"] == pytest.approx((255 - photographs.astype(float)).mean(), abs=1e-9)
    assert {name: len(values) for name, values in pairs.items()} == dict(
        zip(table["combination"], table["n_pairs"], strict=True)
    )
    for name, values in pairs.items():
        assert values.mean() == pytest.approx(mean[name])


def test_the_same_seed_gives_the_same_table_and_rows():
    a, b = random_images(10, 8, 0), random_images(6, 8, 1)
    assert domain_shift(a, b, FEW)[0].equals(domain_shift(a, b, FEW)[0])
    records = np.arange(5000)
    rows = ecg_rows(records, ShiftSettings(seed=1))
    assert len(np.unique(rows)) == 1000
    assert (
        rows.tolist() == ecg_rows(records, ShiftSettings(seed=1)).tolist() != ecg_rows(records, FEW).tolist()
    )
    assert ecg_rows(records[3:10], FEW).tolist() == list(range(3, 10))


def test_natural_images_are_the_photographs_of_two_wheels():
    pixels, names = natural_images(427)
    assert pixels.shape == (22, 427, 427, 3)
    assert pixels.dtype == np.uint8
    assert sum(name.startswith("foolbox: imagenet_") for name in names) == 20
    # scikit-learn's photograph is 427 x 640: its central square needs no resizing.
    flower = load_sample_image("flower.jpg")[:, 106:533].astype(int)
    assert np.abs(pixels[names.index("scikit-learn: flower.jpg")] - flower).mean() < 1
    assert natural_images(32).pixels.shape == (22, 32, 32, 3)


def test_a_missing_wheel_or_photograph_gives_one_clear_line(monkeypatch, tmp_path):
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("ecglib.domain_shift.distribution", absent)
    with pytest.raises(
        EcglibError, match="wheel foolbox with its photographs is not installed: run make setup"
    ):
        natural_images()
    broken = tmp_path / "imagenet_00_243.jpg"
    broken.write_bytes(b"no picture")
    file = SimpleNamespace(match=lambda pattern: True, locate=lambda: broken)
    monkeypatch.setattr("ecglib.domain_shift.distribution", lambda name: SimpleNamespace(files=[file]))
    with pytest.raises(EcglibError, match=r"imagenet_00_243\.jpg is no readable photograph"):
        natural_images()


def test_wrong_input_gives_one_clear_line():
    with pytest.raises(EcglibError, match="must be uint8"):
        histograms(np.zeros((2, 4, 4)))
    with pytest.raises(EcglibError, match="must be uint8"):
        histograms(np.zeros((0, 4, 4), np.uint8))
    with pytest.raises(EcglibError, match="end at 1"):
        pairwise_wasserstein(np.zeros((2, 256)), np.ones((2, 256)))
    with pytest.raises(EcglibError, match="at least 2 images"):
        summarise(np.zeros((1, 1)), FEW, within=True)
    with pytest.raises(EcglibError, match="n_images must be at least 2, got 1"):
        ShiftSettings(n_images=1)
    with pytest.raises(EcglibError, match="confidence"):
        ShiftSettings(confidence=1)
