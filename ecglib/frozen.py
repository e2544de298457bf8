"""What frozen features know: linear probes of public weights on PTB-XL, beside random and ImageNet weights.

Heads learn from few labels (1 % of the training patients, several draws) and from all, and are scored on
fold 9; fold 10 is left for the experiment. A network of random weights is the control that counts: it is
strong on ECGs, and what lies above it was learnt in pretraining.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ecglib import labels
from ecglib.classifiers import Classifier, make_classifier
from ecglib.datasets import read_ptbxl_rows, read_scp_statements
from ecglib.errors import EcglibError
from ecglib.intervals import percentile
from ecglib.metrics import ScoreSettings, auroc
from ecglib.probe import cache_features, draws_of_scores, features_by_layer
from ecglib.progress import track
from ecglib.provenance import atomic_path, commit, digest, machine
from ecglib.published import LAYERS, PROBES, Pretrained, load
from ecglib.recipes import draw_corpus
from ecglib.resampling import mean_auroc_draws
from ecglib.shards import ImageStore
from ecglib.splits import assign, label_fraction_rows

CONTROLS = ("random", "efficientnet_lite2", "mobilenetv2")
BY_LAYER = "mi_any"  # the outcome that is asked of each layer
FRACTIONS = {0.01: 20, 1.0: 1}  # of the training patients, and how many draws of each


@dataclass(frozen=True)
class Probes:
    """The images of PTB-XL with three outcomes, and heads that are fitted on what a network makes of them."""

    images: ImageStore
    outcomes: Mapping[str, np.ndarray]  # 0 or 1 for each image
    folder: Path  # where features are kept

    @classmethod
    def of_ptbxl(cls, images: ImageStore, data: Path, folder: Path) -> "Probes":
        """Outcomes by PTB-XL's tables in `data`: any infarction, a normal ECG, and the paper's prevalence."""
        table, statements = read_ptbxl_rows(data, images.manifest), read_scp_statements(data)
        found = {
            "mi_any": labels.mi_any(table, statements),
            "normal": labels.normal(table),
            "paper_prevalence": labels.stemi_label(table, statements, "paper_prevalence"),
        }
        return cls(images, {name: label.to_numpy() for name, label in found.items()}, folder)

    def compare(self, model: Pretrained, settings: ScoreSettings | None = None) -> pd.DataFrame:
        """Score the heads of a pretrained network and of the controls.

        One row for each outcome, fraction and model: n_labels and auroc (means over the draws), draws, sd
        (over the draws), low, high (bootstrap over the patients of fold 9, of that mean), difference,
        difference_low, difference_high (to random weights, paired), n, n_positive.
        """
        settings = settings or ScoreSettings()
        networks = {"heartbeit": model.classifier()}
        networks |= {name: make_classifier(name, size=model.model.size) for name in CONTROLS}
        features = {name: self._features(network, model) for name, network in networks.items()}
        cases = [(outcome, fraction) for outcome in self.outcomes for fraction in FRACTIONS]
        tables = [self._case(*case, features, settings) for case in track(cases, "probes", unit="case")]
        return pd.concat(tables, ignore_index=True)

    def by_layer(self, model: Pretrained, settings: ScoreSettings | None = None) -> pd.DataFrame:
        """Heads that learn any infarction from few labels, on what each block of the network leaves.

        One row for each model (heartbeit, random) and layer from 1: auroc (mean over the draws), sd, low,
        high. The last layers of a network that named tokens need not be those that know most.
        """
        settings = settings or ScoreSettings()
        part = assign(self.images.manifest, "official")
        scored, fraction = np.flatnonzero(part == "validation"), min(FRACTIONS)
        draws = self._draws(BY_LAYER, fraction, part)
        rows = np.unique(np.concatenate([scored, *draws]))
        y, patients = self.outcomes[BY_LAYER][rows], self.images.manifest.patient_id.to_numpy()[rows]
        scored, *draws = (np.searchsorted(rows, some) for some in (scored, *draws))
        networks = {"heartbeit": model.classifier()}
        networks["random"] = make_classifier("random", size=model.model.size)
        layers = {name: features_by_layer(network, self.images, rows) for name, network in networks.items()}
        cases = [(name, layer) for name, of_layers in layers.items() for layer in range(len(of_layers))]
        found = []
        for name, layer in track(cases, "layers", unit="layer"):
            scores = draws_of_scores(layers[name][layer], y, patients, draws, scored)
            points = np.array([auroc(y[scored], score) for score in scores])
            resampled = mean_auroc_draws(y[scored], scores, patients[scored], settings)
            found.append({"model": name, "layer": layer + 1, **_spread(points, resampled, settings)})
        return pd.DataFrame(found)

    def _features(self, network: Classifier, model: Pretrained) -> np.ndarray:
        """Features (n images, d), kept under a hash of the network's weights and the images."""
        weights = model.metadata["weights_sha256"] if network.name == "heartbeit" else model.model.size
        key = digest([network.name, weights, self.images.data_hash])
        return cache_features(network, self.images, self.folder / f"{key}.npy")

    def _case(
        self, outcome: str, fraction: float, features: Mapping[str, np.ndarray], settings: ScoreSettings
    ) -> pd.DataFrame:
        part = assign(self.images.manifest, "official")
        scored = np.flatnonzero(part == "validation")
        draws = self._draws(outcome, fraction, part)
        y, patients = self.outcomes[outcome], self.images.manifest.patient_id.to_numpy()
        points, resampled = {}, {}
        for name, x in features.items():
            scores = draws_of_scores(x, y, patients, draws, scored)
            points[name] = np.array([auroc(y[scored], score) for score in scores])
            resampled[name] = mean_auroc_draws(y[scored], scores, patients[scored], settings)
        head = {"outcome": outcome, "fraction": fraction, "n_labels": np.mean([len(rows) for rows in draws])}
        tail = {"draws": len(draws), "n": len(scored), "n_positive": int(y[scored].sum())}
        return pd.DataFrame(
            {**head, "model": name, **_numbers(name, points, resampled, settings), **tail}
            for name in features
        )

    def _draws(self, outcome: str, fraction: float, part: pd.Series) -> list[np.ndarray]:
        manifest = self.images.manifest.assign(**{outcome: self.outcomes[outcome]})
        draws = range(FRACTIONS[fraction])
        found = [label_fraction_rows(manifest, part, outcome, fraction, draw) for draw in draws]
        known = [rows for rows in found if rows is not None]
        if len(known) < len(found):
            raise EcglibError(f"{outcome}: {fraction:.0%} of the patients lack a class; take more ECGs")
        return known


def _numbers(
    name: str,
    points: Mapping[str, np.ndarray],
    resampled: Mapping[str, np.ndarray],
    settings: ScoreSettings,
) -> dict[str, float]:
    gain = percentile(resampled[name] - resampled["random"], settings.confidence)
    return _spread(points[name], resampled[name], settings) | {
        "difference": points[name].mean() - points["random"].mean(),
        "difference_low": gain[0],
        "difference_high": gain[1],
    }


def _spread(points: np.ndarray, resampled: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    low, high = percentile(resampled, settings.confidence)
    sd = points.std(ddof=1) if len(points) > 1 else float("nan")
    return {"auroc": points.mean(), "sd": sd, "low": low, "high": high}


def probe_weights(name: str, data: Path, runs: Path, weights: Path | None = None) -> pd.DataFrame:
    """Compare the public weights `name` with the controls, and keep the tables beside them (PROBES, LAYERS).

    data: PTB-XL's folder. runs: where `ecglib pretrain` works; its images are used, or drawn there.
    """
    started = time.time()
    model = load(name, weights)
    images = draw_corpus(data, runs / "images").sources[0].images
    probes = Probes.of_ptbxl(images, data, runs / "features")
    table, layers = probes.compare(model), probes.by_layer(model)
    made = {"data_hash": images.data_hash, "commit": commit(), "machine": machine()}
    made |= {"seconds": round(time.time() - started), "weights_sha256": model.metadata["weights_sha256"]}
    for name, kept in {PROBES: table, LAYERS: layers}.items():
        with atomic_path(model.folder / name) as path:
            kept.to_parquet(path, index=False)
    with atomic_path(model.folder / "probes.json") as path:
        path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return table
