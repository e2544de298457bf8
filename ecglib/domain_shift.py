"""How far ECG images are from photographs by the paper's measure, and why a blank page would be as far.

The paper's distance (Results, Suppl. Fig. 12) is read as the 1-D Wasserstein distance between the pixel
intensities of two images: it reproduces the printed figures. It sees no layout: an image whose pixels are
shuffled is at distance 0 from itself. On 256 grey levels it is the sum of |F(k) - G(k)| over the cumulative
histograms F and G (Vallender 1974), so all pairs cost one city-block distance matrix, exactly.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from ecglib.errors import EcglibError

GREY_LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """How the distances are drawn and summed up (Methods: 1,000 images of each kind, all pairs)."""

    n_images: int = 1000  # ECG images drawn without replacement; all of them where there are fewer
    size: int = 224  # rows and columns of an image, in pixels
    n_draws: int = 500  # bootstrap draws of the images
    confidence: float = 0.95  # confidence of the interval of a mean distance, between 0 and 1
    seed: int = 0  # seed of the ECG images drawn and of the bootstrap

    def __post_init__(self) -> None:
        for name, least in (("n_images", 2), ("size", 1), ("n_draws", 2)):
            if getattr(self, name) < least:
                raise EcglibError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise EcglibError(f"confidence must lie between 0 and 1, got {self.confidence}")


class Photographs(NamedTuple):
    """Natural images for numbers only; see `natural_images`."""

    pixels: np.ndarray  # uint8 (n, size, size, 3)
    names: tuple[str, ...]  # "package: file"


def natural_images(size: int = 224) -> Photographs:
    """Photographs that lie in installed wheels: 20 of ImageNet in foolbox, 2 in scikit-learn.

    A stand-in for the paper's 1,000 ImageNet images, and to be named as such. Use them for numbers and
    histograms only: they are never shown, copied or written to a file. Each is cropped to its central square
    and resized to `size` x `size` (area averaging). foolbox is found by its metadata: importing it warns.
    """
    files = _photographs("foolbox", "imagenet_*.jpg") + _photographs("scikit-learn", "datasets/images/*.jpg")
    pixels = np.stack([_central_square(path, size) for _, path in files])
    return Photographs(pixels, tuple(f"{package}: {path.name}" for package, path in files))


def histograms(pixels: np.ndarray) -> np.ndarray:
    """Cumulative distribution of the intensities of each image: uint8 (n, ...) -> float64 (n, 256).

    All pixels and channels count alike, so a grey image has the same distribution as its three equal
    channels. Entry k is the share of values <= k; the last is 1.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or pixels[0:1].size == 0:
        raise EcglibError(f"images must be uint8 of shape (n, ...), got {pixels.dtype} {pixels.shape}")
    counts = np.stack([np.bincount(image.ravel(), minlength=GREY_LEVELS) for image in pixels])
    return counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)


def pairwise_wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance in grey levels of every pair: cumulative histograms (na, 256), (nb, 256) -> (na, nb)."""
    for shares in (a, b):
        if shares.ndim != 2 or shares.shape[1] != GREY_LEVELS or not np.allclose(shares[:, -1], 1):
            raise EcglibError(
                f"cumulative histograms must be (n, 256) and end at 1, got shape {shares.shape}"
            )
    return cdist(a, b, "cityblock")


def ecg_rows(rows: np.ndarray, settings: ShiftSettings) -> np.ndarray:
    """Those of `rows` whose ECG images are compared, ascending: `n_images` at random, or all if fewer."""
    rng = np.random.default_rng(settings.seed)
    return np.sort(rng.choice(rows, min(settings.n_images, len(rows)), replace=False))


def domain_shift(
    ecg_pixels: np.ndarray, natural_pixels: np.ndarray, settings: ShiftSettings
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The paper's three mean distances, and a blank white page in the place of the ECGs as a control.

    ECG images uint8 (n, ...) and photographs uint8 (m, ...). Returns a table with one row per combination
    (ecg-ecg, natural-natural, ecg-natural, blank-natural) as `summarise` makes it, and the distances of the
    pairs behind each row, for a histogram. Within one kind an image is not paired with itself.
    """
    ecg, natural = histograms(ecg_pixels), histograms(natural_pixels)
    blank = histograms(np.full((1, 1, 1), 255, dtype=np.uint8))
    pairs = {"ecg-ecg": (ecg, ecg), "natural-natural": (natural, natural)}
    pairs |= {"ecg-natural": (ecg, natural), "blank-natural": (blank, natural)}
    rows, distances = [], {}
    for name, (a, b) in pairs.items():
        matrix = pairwise_wasserstein(a, b)
        rows.append({"combination": name} | summarise(matrix, settings, within=a is b))
        distances[name] = matrix[np.triu_indices(len(a), 1)] if a is b else matrix.ravel()
    return pd.DataFrame(rows), distances


def summarise(matrix: np.ndarray, settings: ShiftSettings, *, within: bool) -> dict[str, float]:
    """Mean and spread of a matrix of distances (na, nb), and an interval of the mean over draws of images.

    `within`: both sides are the same images; then pairs of an image with itself are left out, in the draws
    too. Returns mean, sd, p5, p95 (over pairs), low, high (percentiles over bootstrap draws of the images,
    since pairs that share an image are not independent), n_a, n_b, n_pairs. In grey levels.
    """
    n_a, n_b = matrix.shape
    if within and n_a < 2:
        raise EcglibError("a mean distance within one kind needs at least 2 images, got 1: give more images")
    values = matrix[~np.eye(n_a, dtype=bool)] if within else matrix.ravel()
    means = _drawn_means(matrix, settings, within=within)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    p5, p95 = np.quantile(values, [0.05, 0.95])
    numbers = {"mean": values.mean(), "sd": values.std(), "p5": p5, "p95": p95, "low": low, "high": high}
    return {name: float(value) for name, value in numbers.items()} | {
        "n_a": n_a,
        "n_b": n_b,
        "n_pairs": len(values) // 2 if within else len(values),
    }


def _drawn_means(matrix: np.ndarray, settings: ShiftSettings, *, within: bool) -> np.ndarray:
    """Mean distance in each draw of the images; a draw of one repeated image has no pair: left out."""
    n_a, n_b = matrix.shape
    rng = np.random.default_rng(settings.seed)
    a = rng.multinomial(n_a, np.full(n_a, 1 / n_a), settings.n_draws).astype(float)
    b = a if within else rng.multinomial(n_b, np.full(n_b, 1 / n_b), settings.n_draws).astype(float)
    totals = ((a @ matrix) * b).sum(axis=1)
    n_pairs = n_a * n_b - ((a**2).sum(axis=1) if within else np.zeros(settings.n_draws))
    return totals[n_pairs > 0] / n_pairs[n_pairs > 0]


def _photographs(package: str, pattern: str) -> list[tuple[str, Path]]:
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        files = []
    found = sorted(Path(str(file.locate())) for file in files if file.match(pattern))
    if not found:
        raise EcglibError(f"the wheel {package} with its photographs is not installed: run make setup")
    return [(package, path) for path in found]


def _central_square(path: Path, size: int) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise EcglibError(f"{path.name} is no readable photograph: install its wheel again with make setup")
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    square = image[top : top + side, left : left + side]
    return cv2.cvtColor(cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
