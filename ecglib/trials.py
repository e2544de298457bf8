"""Why the public weights know no more than they do: short runs that differ in one thing each.

Each is a nano network by a recipe like that of the public weights. What their frozen features know is
asked as on the page of the public weights, beside the same network with random weights.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.checkpoints import COURSE, ENCODER, read_course
from ecglib.classifiers import Classifier, make_classifier
from ecglib.frozen import BY_LAYER, Probes, beside_random, judge
from ecglib.metrics import ScoreSettings
from ecglib.preprocessing import fingerprint
from ecglib.probe import compute_features
from ecglib.provenance import atomic_path, commit, machine, read_made
from ecglib.recipes import RECIPES, Recipe, draw_corpus, follow
from ecglib.tokenizer import TokenizerSettings

KEPT = Path(__file__).resolve().parent.parent / "book" / "results" / "trials.json"
END = 50  # last steps whose mean stands for the end of a course


@dataclass(frozen=True)
class Trial:
    """A run, and in what it differs from the first."""

    differs: str
    recipe: Recipe


_NANO = RECIPES["heartbeit_nano"]
_SHORT = replace(_NANO.pretraining, steps=625, warmup_steps=50)
_DVAE = TokenizerSettings(kind="dvae", steps=800)
TRIALS = {
    "trial_first": Trial("", Recipe(_NANO.tokenizer, _SHORT)),
    "trial_tokens": Trial("tokens: the dVAE's", Recipe(_DVAE, _SHORT)),
    "trial_masks": Trial("masks: BEiT's blocks", Recipe(_NANO.tokenizer, replace(_SHORT, mask="blockwise"))),
    "trial_rate": Trial(
        "learning rate: 0.0005", Recipe(_NANO.tokenizer, replace(_SHORT, learning_rate=5e-4))
    ),
    # The public weights themselves: their folder is shared, so that they are made once.
    "heartbeit_nano": Trial("length: 4 times", _NANO),
}


def run_trials(data: Path, runs: Path, kept: Path = KEPT) -> pd.DataFrame:
    """Make every trial in `runs` from PTB-XL in the folder `data`, and keep what came of it as JSON.

    A killed run goes on where it was. One row a trial: see `judge_trials`.
    """
    started = time.time()
    corpus = draw_corpus(data, runs / "images")
    for name, trial in TRIALS.items():
        follow(trial.recipe, corpus, runs, runs / name)
    images = corpus.sources[0].images
    rows = judge_trials(Probes.of_ptbxl(images, data, runs / "features"), runs)
    made = {"data_hash": corpus.images.data_hash, "commit": commit(), "machine": machine()}
    made |= {"seconds": round(time.time() - started), "rows": rows}
    with atomic_path(kept) as path:
        path.write_text(json.dumps(made, indent=1), encoding="utf-8")
    return pd.DataFrame(rows)


def judge_trials(probes: Probes, runs: Path, settings: ScoreSettings | None = None) -> list[dict[str, Any]]:
    """What each trial learnt: its course's end and what heads on its features know from few labels.

    differs, images; loss, accuracy, commonest (of hidden patches, means of the last END steps); auroc (mean
    over the draws), sd, low, high, difference, difference_low, difference_high (to random weights), n_labels,
    draws, n, n_positive. The first row is of random weights.
    """
    settings, heads = settings or ScoreSettings(), probes.few_labels(BY_LAYER)
    size = TRIALS["trial_first"].recipe.pretraining.size
    networks = {"random": make_classifier("random", size=size)}
    networks |= {
        name: make_classifier(
            "heartbeit", size=size, encoder_path=runs / name / ENCODER, preprocessing=fingerprint()
        )
        for name in TRIALS
    }
    judged = {
        name: judge(heads, _features(network, probes, heads.rows), settings)
        for name, network in networks.items()
    }
    found = beside_random(judged, settings)
    return [{"trial": name, **_course(name, runs), **found[name], **heads.counts} for name in networks]


def _features(network: Classifier, probes: Probes, rows: np.ndarray) -> np.ndarray:
    features = np.empty((len(rows), network.head.in_features), np.float32)
    compute_features(network, probes.images, rows, features)
    return features


def _course(name: str, runs: Path) -> Mapping[str, Any]:
    if name not in TRIALS:
        return {"differs": "no pretraining", "images": 0}
    history, trial = read_course(runs / name / COURSE), TRIALS[name]
    end = history.tail(END)
    return {
        "differs": trial.differs,
        "images": len(history) * trial.recipe.pretraining.batch_size,
        "loss": float(end.loss.mean()),
        "accuracy": float(end.accuracy.mean()),
        "commonest": float(end.majority_accuracy.mean()),
    }


def read_trials(path: Path = KEPT) -> dict[str, Any]:
    """What `run_trials` kept: machine, commit and `rows`. EcglibError where it is missing or not whole."""
    return read_made(path, ("rows", "machine", "commit", "seconds"), "ecglib trials --data PTBXL_DIR")
