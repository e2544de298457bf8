"""Heads on frozen features equal scikit-learn's pipeline, and sit in a classifier as they were fitted."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ecglib import beit
from ecglib.classifiers import Classifier, make_classifier
from ecglib.errors import EcglibError
from ecglib.finetune import predict
from ecglib.probe import ProbeSettings, cache_features, features_by_layer, fit_head, two_neurons

N, SIZE = 300, 12
ROWS = {
    "train": np.arange(0, 120),
    "validation": np.arange(120, 180),
    "test": np.arange(180, 240),
    "external": np.arange(240, 300),
}
LABELS = (np.random.default_rng(1).random(N) < 0.4).astype(np.int8)
PATH = ProbeSettings(head_c=(1e-3, 1e-1, 10.0))


class Images:
    """Noise, a little darker in one corner where the label is 1."""

    def __init__(self) -> None:
        self.manifest = pd.DataFrame({"record_id": [f"r{i}" for i in range(N)], "patient_id": "p"})
        self.images = np.random.default_rng(0).integers(100, 256, (N, SIZE, SIZE)).astype(np.uint8)
        self.images[LABELS == 1, :5, :5] -= 25

    def __len__(self) -> int:
        return N

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def tiny(width: int = 6) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, width, 5), nn.BatchNorm2d(width), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        )
        head, half = nn.Linear(width, 2), (0.5, 0.5, 0.5)
    return Classifier("tiny", backbone, head, mean=half, std=half, cam_layer="1")


def made_features() -> np.ndarray:
    """Features of very different scales, one of them constant, two of them telling."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(N, 8)) * 10.0 ** np.arange(-3, 5) + 5
    features[:, 2] += LABELS * 0.1
    features[:, 5] += LABELS * 60
    features[:, 0] = 7.0
    return features.astype(np.float32)


def test_features_are_those_of_the_classifier_in_evaluation_and_are_computed_once(tmp_path: Path) -> None:
    classifier, store, path = tiny(), Images(), tmp_path / "features.npy"
    features = cache_features(classifier.train(), store, path)
    assert isinstance(features, np.memmap)
    assert (features.shape, features.dtype) == ((N, 6), np.float32)
    with torch.inference_mode():
        expected = classifier.eval().features(torch.from_numpy(store.images))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    store.images = np.zeros_like(store.images)
    np.testing.assert_array_equal(cache_features(classifier, store, path), features)


def test_layers_are_the_mean_patches_after_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (12, 3, 2))
    classifier, rows = make_classifier("random", size="minute", seed=1).eval(), np.array([4, 0, 2])
    pixels = np.random.default_rng(2).integers(0, 256, (5, 224, 224), dtype=np.uint8)
    store: Any = Mock(pixels=lambda rows: pixels[rows])
    layers = features_by_layer(classifier, store, rows)
    backbone: Any = classifier.backbone
    images = (torch.from_numpy(pixels[rows]).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    oracle = backbone.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")
    assert len(layers) == len(oracle) == 3
    for ours, theirs in zip(layers, oracle, strict=True):
        np.testing.assert_allclose(ours, theirs.mean(1).detach(), atol=1e-5)


def test_an_interrupted_computation_leaves_no_features(tmp_path: Path) -> None:
    class Breaking(Images):
        def pixels(self, rows: np.ndarray) -> np.ndarray:
            if rows[0] > 0:
                raise KeyboardInterrupt
            return super().pixels(rows)

    with pytest.raises(KeyboardInterrupt):
        cache_features(tiny(), Breaking(), tmp_path / "features.npy")
    assert list(tmp_path.iterdir()) == []


def test_features_of_another_network_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    cache_features(tiny(), Images(), path)
    with pytest.raises(EcglibError, match="another network; delete it"):
        cache_features(tiny(width=7), Images(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EcglibError, match="cut short"):
        cache_features(tiny(), Images(), path)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_predictions_equal_scikit_learn_s_scaler_and_logistic_regression(step: int) -> None:
    features = made_features()
    table = fit_head(features, Images(), ROWS, LABELS, PATH)
    model = LogisticRegression(C=PATH.head_c[step], tol=1e-10, max_iter=10_000)
    oracle = make_pipeline(StandardScaler(), model).fit(
        features[ROWS["train"]].astype(np.float64), LABELS[ROWS["train"]]
    )
    for part in ("validation", "test", "external"):
        rows = table[(table["part"] == part) & (table["step"] == step)]
        assert rows["record_id"].tolist() == [f"r{i}" for i in ROWS[part]]
        assert rows["y_true"].tolist() == LABELS[ROWS[part]].tolist()
        expected = oracle.predict_proba(features[ROWS[part]].astype(np.float64))[:, 1]
        np.testing.assert_allclose(rows["y_score"], expected, atol=1e-3)


def test_the_table_has_the_form_of_fine_tuning_s() -> None:
    table = fit_head(made_features(), Images(), ROWS, LABELS, PATH)
    assert list(table) == ["record_id", "patient_id", "part", "step", "y_true", "y_score"]
    assert (table["y_true"].dtype, table["y_score"].dtype) == (np.int8, np.float32)
    assert sorted(table["step"].unique()) == [0, 1, 2]
    assert len(table) == 3 * 180


def test_shifting_and_scaling_a_feature_changes_nothing() -> None:
    features = made_features()
    moved = features.astype(np.float64) * np.array([2.0, 0.1, 100, 1, 1, 0.5, 1, 3]) + np.arange(8)
    first = fit_head(features, Images(), ROWS, LABELS, PATH)["y_score"]
    np.testing.assert_allclose(fit_head(moved, Images(), ROWS, LABELS, PATH)["y_score"], first, atol=1e-4)


def test_the_saved_head_in_its_classifier_predicts_what_the_best_validation_step_says(tmp_path: Path) -> None:
    classifier, store, weights = tiny(), Images(), tmp_path / "weights.safetensors"
    features = cache_features(classifier, store, tmp_path / "features.npy")
    table = fit_head(features, store, ROWS, LABELS, PATH, weights)
    scores = [
        roc_auc_score(rows["y_true"], rows["y_score"])
        for _, rows in table[table["part"] == "validation"].groupby("step")
    ]
    assert max(scores) > 0.6
    rows = table[(table["part"] == "test") & (table["step"] == int(np.argmax(scores)))]
    fresh = tiny()
    fresh.load_trained(weights)
    np.testing.assert_allclose(predict(fresh, store, ROWS["test"], "32-true"), rows["y_score"], atol=1e-5)


def test_the_two_neurons_softmax_to_the_logistic_function_of_the_score() -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=5), 0.3, rng.normal(size=(20, 5))
    head = nn.Linear(5, 2)
    head.load_state_dict({k.removeprefix("head."): v for k, v in two_neurons(weight, bias).items()})
    probability = head(torch.from_numpy(x).float()).softmax(dim=1)[:, 1].detach().numpy()
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-(x @ weight + bias))), atol=1e-6)


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    tables = [fit_head(made_features(), Images(), ROWS, LABELS, PATH, tmp_path / name) for name in "ab"]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parts_that_are_absent_are_left_out_and_one_class_is_refused() -> None:
    features = made_features()
    rows = {"train": ROWS["train"], "test": ROWS["test"]}
    assert set(fit_head(features, Images(), rows, LABELS, PATH)["part"]) == {"test"}
    with pytest.raises(EcglibError, match="both labels 0 and 1 are needed"):
        fit_head(features, Images(), {**rows, "train": np.flatnonzero(LABELS == 1)}, LABELS, PATH)


@pytest.mark.parametrize("strengths", [(), (0.0, 1.0), (1.0, 0.1), (1.0, 1.0)])
def test_strengths_that_are_no_rising_path_are_refused(strengths: tuple[float, ...]) -> None:
    with pytest.raises(EcglibError, match="head_c="):
        ProbeSettings(head_c=strengths)
    with pytest.raises(EcglibError, match="head_iterations=0"):
        ProbeSettings(head_iterations=0)
