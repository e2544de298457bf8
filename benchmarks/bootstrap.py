"""Patient-level bootstrap against a loop over scikit-learn: same draws, same numbers, how much faster.

Prints both times, the largest difference and the ratio; exit code 1 where a draw differs by more than 1e-12
or the ratio is below 20. The size is the paper's STEMI test part: 4,352 records, 235 positives, 500 draws.
Both sides draw the patients themselves. Run: python benchmarks/bootstrap.py
"""

import sys
import time

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ecglib.metrics import bootstrap, draw_patients

N_RECORDS, N_POSITIVE, N_PATIENTS, N_DRAWS = 4352, 235, 3774, 500
LEAST_RATIO, MOST_DIFFERENCE = 20, 1e-12


def study(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, float32 scores with ties, and patient ids of one simulated test part; AUROC near .88."""
    rng = np.random.default_rng(seed)
    y_true = (rng.permutation(N_RECORDS) < N_POSITIVE).astype(np.int8)
    y_score = rng.normal(1.66 * y_true).round(3).astype(np.float32)
    patients = np.concatenate([np.arange(N_PATIENTS), rng.integers(0, N_PATIENTS, N_RECORDS - N_PATIENTS)])
    return y_true, y_score, rng.permutation(patients).astype(str)


def loop(y_true: np.ndarray, y_score: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """AUROC and average precision (n_draws, 2) by scikit-learn on the records of each draw."""
    patients, codes = np.unique(groups, return_inverse=True)
    labels = np.array([np.bincount(codes, y_true == label, len(patients)) for label in (0, 1)])
    weights, _ = draw_patients(labels, N_DRAWS, np.random.default_rng(seed))
    scores = []
    for weight in weights.astype(int):
        rows = np.repeat(np.arange(len(y_true)), weight[codes])
        drawn = y_true[rows], y_score[rows]
        scores.append((roc_auc_score(*drawn), average_precision_score(*drawn)))
    return np.array(scores)


def main() -> int:
    """Time both and print the figures; the exit code, 1 where one is not as promised."""
    data = study(seed=0)
    bootstrap(*data, n_draws=N_DRAWS, seed=0)  # another seed: the draws of the last are remembered
    start = time.perf_counter()
    ours = bootstrap(*data, n_draws=N_DRAWS, seed=1)
    middle = time.perf_counter()
    theirs = loop(*data, seed=1)
    end = time.perf_counter()
    difference = np.abs(ours[["auroc", "auprc"]].to_numpy() - theirs).max()
    ratio = (end - middle) / (middle - start)
    print(f"ecglib {middle - start:.3f} s, loop over scikit-learn {end - middle:.2f} s, {N_DRAWS} draws")
    print(f"largest difference of a draw {difference:.1e}")
    print(f"ratio {ratio:.1f}")
    return int(not (ratio >= LEAST_RATIO and difference <= MOST_DIFFERENCE))


if __name__ == "__main__":
    sys.exit(main())
