"""Wasserstein distances of 1,000 x 1,000 images at 224 x 224 against scipy on sampled pairs.

Prints one ratio: scipy's time for a pair, times a million, over our time for all pairs, histograms included.
Run: python benchmarks/wasserstein.py
"""

import time

import numpy as np
from scipy.stats import wasserstein_distance

from ecglib.domain_shift import histograms, pairwise_wasserstein

N_IMAGES, SIZE, SAMPLED = 1000, 224, 100


def images(seed: int) -> np.ndarray:
    """uint8 (N_IMAGES, SIZE, SIZE): normal intensities whose mean and spread differ from image to image."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((N_IMAGES, SIZE, SIZE), dtype=np.float32)
    mean, spread = rng.uniform(30, 220, (2, N_IMAGES, 1, 1))
    return (mean + spread / 4 * noise).clip(0, 255).astype(np.uint8)


def main() -> None:
    """Time both, check that they agree, print the ratio."""
    a, b = images(0), images(1)
    start = time.perf_counter()
    distances = pairwise_wasserstein(histograms(a), histograms(b))
    ours = time.perf_counter() - start
    pairs = np.random.default_rng(2).integers(0, N_IMAGES, (SAMPLED, 2))
    start = time.perf_counter()
    expected = [wasserstein_distance(a[i].ravel(), b[j].ravel()) for i, j in pairs]
    theirs = (time.perf_counter() - start) / SAMPLED * N_IMAGES**2
    difference = np.abs(distances[pairs[:, 0], pairs[:, 1]] - expected).max()
    print(
        f"ecglib {ours:.2f} s for {N_IMAGES**2:,} pairs, scipy {theirs / 3600:.1f} h ({SAMPLED} pairs timed)"
    )
    print(f"largest difference of a sampled pair {difference:.1e} grey levels")
    print(f"ratio {theirs / ours:.0f}")


if __name__ == "__main__":
    main()
