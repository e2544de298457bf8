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
from typing import Any

import numpy as np
import pandas as pd

from ecglib import labels
from ecglib.classifiers import Classifier, make_classifier
from ecglib.datasets import read_ptbxl_rows, read_scp_statements
from ecglib.errors import EcglibError
from ecglib.intervals import percentile
from ecglib.metrics import ScoreSettings
from ecglib.probe import Heads, cache_features, features_by_layer
from ecglib.progress import track
from ecglib.provenance import atomic_path, code_hash, commit, digest, machine
from ecglib.published import LAYERS, PROBES, PROBES_MADE, Pretrained, load
from ecglib.recipes import draw_ptbxl
from ecglib.resampling import auroc_draws
from ecglib.shards import ImageStore
from ecglib.splits import assign
from ecglib.tensorfiles import weights_sha256

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
        features = {name: self._features(network) for name, network in networks.items()}
        cases = [(outcome, fraction) for outcome in self.outcomes for fraction in FRACTIONS]
        tables = [self._case(*case, features, settings) for case in track(cases, "probes", unit="case")]
        return pd.concat(tables, ignore_index=True)

    def by_layer(self, model: Pretrained, settings: ScoreSettings | None = None) -> pd.DataFrame:
        """Heads that learn any infarction from few labels, on what each block of the network leaves.

        One row for each model (heartbeit, random) and layer from 1: auroc (mean over the draws), sd, low,
        high. The last layers of a network that named tokens need not be those that know most.
        """
        settings, few = settings or ScoreSettings(), self.few_labels(BY_LAYER)
        networks = {"heartbeit": model.classifier()}
        networks["random"] = make_classifier("random", size=model.model.size)
        found = []
        for name, network in networks.items():
            layers = features_by_layer(network, self.images, few.rows)
            for layer, features in enumerate(track(layers, f"layers of {name}", unit="layer"), start=1):
                judged = judge(few, features, settings)
                found.append({"model": name, "layer": layer, **_spread(*judged, settings)})
        return pd.DataFrame(found)

    def heads(self, outcome: str, fraction: float) -> Heads:
        """What learns an outcome from a fraction of the training patients and is scored on fold 9.

        Raises EcglibError where a draw lacks a class.
        """
        part, n_draws = assign(self.images.manifest, "official"), FRACTIONS[fraction]
        labelled = self.images.manifest.assign(**{outcome: self.outcomes[outcome]})
        heads = Heads.drawn(labelled, part, outcome, fraction, n_draws)
        if len(heads.draws) < n_draws:
            raise EcglibError(f"{outcome}: {fraction:.0%} of the patients lack a class; take more ECGs")
        return heads

    def few_labels(self, outcome: str) -> Heads:
        """`heads` at the smallest fraction."""
        return self.heads(outcome, min(FRACTIONS))

    def _features(self, network: Classifier) -> np.ndarray:
        """Features (n images, d), kept under a hash of the network's weights, the images and our code."""
        weights, code = weights_sha256(network.backbone.state_dict()), code_hash("ecglib.probe")
        key = digest([network.name, weights, self.images.data_hash, code])
        return cache_features(network, self.images, self.folder / f"{key}.npy")

    def _case(
        self, outcome: str, fraction: float, features: Mapping[str, np.ndarray], settings: ScoreSettings
    ) -> pd.DataFrame:
        heads = self.heads(outcome, fraction)
        judged = {name: judge(heads, x[heads.rows], settings) for name, x in features.items()}
        case = {"outcome": outcome, "fraction": fraction}
        return pd.DataFrame(
            {**case, "model": name, **numbers, **heads.counts}
            for name, numbers in beside_random(judged, settings).items()
        )


def judge(heads: Heads, features: np.ndarray, settings: ScoreSettings) -> tuple[np.ndarray, np.ndarray]:
    """Features (n rows, d) -> AUROC of each draw's head, and the mean's bootstrap draws, by patient."""
    scores, scored = heads.scores(features), heads.scored
    resampled = auroc_draws(heads.y[scored], scores, heads.patients[scored], settings)
    return heads.aurocs(scores), resampled.mean(axis=0)


def beside_random(
    judged: Mapping[str, tuple[np.ndarray, np.ndarray]], settings: ScoreSettings
) -> dict[str, dict[str, float]]:
    """Of each network what `judge` found, in numbers, with the paired difference to "random"."""
    points, resampled = judged["random"]
    table = {}
    for name, (own, own_resampled) in judged.items():
        low, high = percentile(own_resampled - resampled, settings.confidence)
        gain = {"difference": own.mean() - points.mean(), "difference_low": low, "difference_high": high}
        table[name] = _spread(own, own_resampled, settings) | gain
    return table


def _spread(points: np.ndarray, resampled: np.ndarray, settings: ScoreSettings) -> dict[str, float]:
    low, high = percentile(resampled, settings.confidence)
    sd = points.std(ddof=1) if len(points) > 1 else float("nan")
    return {"auroc": points.mean(), "sd": sd, "low": low, "high": high}


def probe_weights(name: str, data: Path, runs: Path, weights: Path | None = None) -> pd.DataFrame:
    """Compare the public weights `name` with the controls, and keep the tables beside them (PROBES, LAYERS).

    A table that is there and is of these very weights is not made again; `probes.json` says what made each.
    data: PTB-XL's folder. runs: where `ecglib pretrain` works; its images are used, or drawn there.
    """
    model = load(name, weights)
    made = _already_made(model)
    images = draw_ptbxl(data, runs / "images").images
    probes = Probes.of_ptbxl(images, data, runs / "features")
    here = {"commit": commit(), "machine": machine()}  # before a table is added to the working tree
    for file, make in {PROBES: probes.compare, LAYERS: probes.by_layer}.items():
        if file in made:
            continue
        started = time.time()
        with atomic_path(model.folder / file) as path:
            make(model).to_parquet(path, index=False)
        made[file] = {"data_hash": images.data_hash, **here}
        made[file] |= {
            "seconds": round(time.time() - started),
            "weights_sha256": model.metadata["weights_sha256"],
        }
        with atomic_path(model.folder / PROBES_MADE) as path:
            path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return pd.read_parquet(model.folder / PROBES)


def _already_made(model: Pretrained) -> dict[str, Any]:
    """What made each table of probes that is of these very weights, by the table's name."""
    path = model.folder / PROBES_MADE
    if not path.exists():
        return {}
    made, own = json.loads(path.read_text(encoding="utf-8")), model.metadata["weights_sha256"]
    return {
        file: by
        for file, by in made.items()
        if by["weights_sha256"] == own and (model.folder / file).exists()
    }
