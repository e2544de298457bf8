"""Linear probes of public weights: the same heads for every network, scored on fold 9 with intervals."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from ecglib import frozen, labels
from ecglib.classifiers import Classifier
from ecglib.errors import EcglibError
from ecglib.frozen import Probes
from ecglib.metrics import ScoreSettings
from ecglib.probe import ProbeSettings, cross_validated_scores
from ecglib.splits import assign, label_fraction_rows

N, D = 900, 6
RNG = np.random.default_rng(5)
Y = (RNG.random(N) < 0.3).astype(np.int8)
FEATURES = {
    "heartbeit": (RNG.normal(size=(N, D)) + 1.2 * Y[:, None] * (np.arange(D) < 2)).astype(np.float32),
    "random": RNG.normal(size=(N, D)).astype(np.float32),
}
MANIFEST = pd.DataFrame(
    {
        "record_id": np.arange(N).astype(str),
        "patient_id": (np.arange(N) // 2).astype(str),  # two ECGs each
        "strat_fold": 1 + np.arange(N) // 2 % 10,
        "external": False,
    }
)

KEPT_FEATURES = Probes._features  # which most tests replace


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "CONTROLS", ("random",))
    monkeypatch.setattr(frozen, "FRACTIONS", {0.2: 3, 1.0: 1})
    monkeypatch.setattr(Probes, "_features", lambda self, network: FEATURES[network.name])
    monkeypatch.setattr(frozen, "make_classifier", lambda name, size: named(name))


def named(name: str) -> Any:
    classifier = Mock()
    classifier.name = name
    return classifier


def compare(y: np.ndarray = Y) -> pd.DataFrame:
    probes = Probes(Mock(manifest=MANIFEST), {"ill": y}, Path("nowhere"))
    model = Mock(classifier=lambda: named("heartbeit"))
    return probes.compare(model, ScoreSettings(n_draws=200))


def test_table_has_a_row_for_each_model_and_fraction_with_its_counts() -> None:
    table = compare()
    assert table[["fraction", "model", "draws"]].to_numpy().tolist() == [
        [0.2, "heartbeit", 3], [0.2, "random", 3], [1.0, "heartbeit", 1], [1.0, "random", 1],
    ]  # fmt: skip
    fold_9 = MANIFEST.strat_fold == 9
    assert (table.n == fold_9.sum()).all()
    assert (table.n_positive == Y[fold_9].sum()).all()
    assert table.n_labels.iloc[2] == (MANIFEST.strat_fold <= 8).sum()
    assert ((table.low < table.auroc) & (table.auroc < table.high)).all()


def test_each_layer_is_scored_by_the_same_heads_on_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    def layers(network: Any, images: Any, rows: np.ndarray) -> np.ndarray:
        return np.stack([FEATURES["random"][rows], FEATURES[network.name][rows]])

    monkeypatch.setattr(frozen, "BY_LAYER", "ill")
    monkeypatch.setattr(frozen, "features_by_layer", layers)
    settings, model = ScoreSettings(n_draws=200), Mock(classifier=lambda: named("heartbeit"))
    found = Probes(Mock(manifest=MANIFEST), {"ill": Y}, Path("nowhere")).by_layer(model, settings)
    assert found[["model", "layer"]].to_numpy().tolist() == [
        ["heartbeit", 1], ["heartbeit", 2], ["random", 1], ["random", 2],
    ]  # fmt: skip
    known = compare().query("fraction == 0.2").set_index("model")
    for columns in ("auroc", "sd", "low", "high"):
        assert found[columns].tolist()[1::2] == pytest.approx(known[columns].tolist())
    assert found.auroc[0] == found.auroc[2] == found.auroc[3], "layers of equal features"


def test_signal_is_told_from_noise_and_random_weights_from_themselves_by_nothing() -> None:
    ours, control = compare().query("fraction == 1").to_dict("records")
    assert ours["auroc"] > 0.8
    assert ours["difference_low"] > 0.1
    assert [control[f"difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    assert ours["difference"] == pytest.approx(ours["auroc"] - control["auroc"])


def test_auroc_is_the_mean_over_the_draws_of_what_scikit_learn_scores() -> None:
    part = assign(MANIFEST, "official")
    scored, x = np.flatnonzero(part == "validation"), FEATURES["heartbeit"]
    patients = MANIFEST.patient_id.to_numpy()
    found = []
    for draw in range(3):
        rows = label_fraction_rows(MANIFEST.assign(ill=Y), part, "ill", 0.2, draw)
        scores = cross_validated_scores(x[rows], Y[rows], patients[rows], x[scored], ProbeSettings())
        found.append(roc_auc_score(Y[scored], scores))
    ours = compare().iloc[0]
    assert ours.auroc == pytest.approx(np.mean(found), abs=1e-12)
    assert ours.sd == pytest.approx(np.std(found, ddof=1), abs=1e-12)


def test_too_few_patients_of_a_class_are_refused() -> None:
    with pytest.raises(EcglibError, match="ill: 20% of the patients lack a class"):
        compare((np.arange(N) < 2).astype(np.int8))


@pytest.mark.parametrize(("ill", "well"), [(1, 30), (30, 1), (0, 30), (4, 4)])
def test_too_few_patients_for_folds_are_refused(ill: int, well: int) -> None:
    y, patients = np.repeat([1, 0], [2 * ill, 2 * well]), np.repeat(np.arange(ill + well), 2)
    x = np.random.default_rng(0).normal(size=(len(y), 3))
    with pytest.raises(EcglibError, match=f"^{ill} patients with and {well} without the outcome"):
        cross_validated_scores(x, y, patients, x, ProbeSettings())


def test_strength_of_a_head_is_chosen_as_by_scikit_learn_on_folds_of_whole_patients() -> None:
    train = np.arange(0, 400)
    groups, x = MANIFEST.patient_id.to_numpy()[train], FEATURES["heartbeit"]
    settings = ProbeSettings(head_c=(1e-4, 1e-2, 1.0))
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x[train], Y[train], groups))
    assert all(not set(groups[fit]) & set(groups[held]) for fit, held in folds)
    scaled = StandardScaler().fit(x[train])
    options: dict[str, Any] = {"Cs": settings.head_c, "l1_ratios": (0,), "use_legacy_attributes": False}
    head = LogisticRegressionCV(cv=folds, scoring="neg_log_loss", max_iter=1000, **options)
    oracle = make_pipeline(scaled, head).fit(x[train], Y[train])
    ours = cross_validated_scores(x[train], Y[train], groups, x[400:], settings)
    assert ours == pytest.approx(oracle.predict_proba(x[400:])[:, 1], abs=2e-3)


def test_normal_is_the_code_for_a_normal_ecg() -> None:
    table = pd.DataFrame({"scp_codes": ["{'NORM': 100.0, 'SR': 0.0}", "{'IMI': 80.0}", "{'NORM': 0.0}"]})
    assert labels.normal(table).tolist() == [1, 0, 1]


def blank(brightness: float) -> Classifier:
    """A network of the same name whatever its weights, whose features are all `brightness`."""
    half, look = (0.5, 0.5, 0.5), nn.Conv2d(3, 2, 4)
    look.load_state_dict({"weight": torch.zeros(2, 3, 4, 4), "bias": torch.full((2,), brightness)})
    return Classifier(
        "random", nn.Sequential(look, nn.Flatten()), nn.Linear(2, 2), mean=half, std=half, cam_layer="0"
    )


class White:
    data_hash = "white"

    def __len__(self) -> int:
        return 3

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 4, 4), 255, np.uint8)


def test_features_are_computed_anew_for_other_weights_or_code_under_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: Any = White()
    probes = Probes(images, {}, tmp_path)
    for brightness in (1.0, 2.0, 1.0):
        assert (KEPT_FEATURES(probes, blank(brightness)) == brightness).all()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(frozen, "code_hash", lambda module: f"another {module}")
    KEPT_FEATURES(probes, blank(1.0))
    assert len(list(tmp_path.iterdir())) == 3
