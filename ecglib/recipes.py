"""How the public weights are made: PTB-XL's training folds and generated ECGs, from records to a model card.

Each step keeps what it made and goes on after a kill; none depends on the code's version, so weights may be
trained for days and the package change meanwhile (the card names the commit that began).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import COURSE, ENCODER, read_checkpoint, read_course, save_encoder
from ecglib.classifiers import Classifier, make_classifier
from ecglib.cohort import Cohort
from ecglib.datasets import CohortSettings, open_cohort
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.image import ImageSettings
from ecglib.preprocessing import fingerprint
from ecglib.pretrain import PretrainSettings, pretrain
from ecglib.probe import Heads, compute_features
from ecglib.provenance import atomic_path, commit, digest
from ecglib.published import TOKENIZER_COURSE
from ecglib.shards import ImageStore, JoinedImages, read_tokens, tokenize, write_images
from ecglib.splits import assign
from ecglib.tokenizer import FILE_NAME as TOKENIZER
from ecglib.tokenizer import TokenizerSettings, assess, load_tokenizer, require_alive, train_tokenizer

SPLIT = "official"
GENERATED = CohortSettings(source="embedded", n_patients=5700, seed=1)  # others than the study's, seed 0
N_HELD_OUT = 512  # ECGs on which the tokenizer is judged
PROBED, PROBED_FRACTION, N_PROBES = "mi_any", 0.01, 10  # the probes during pretraining


@dataclass(frozen=True)
class Recipe:
    """What a set of public weights is made of, beside the ECGs."""

    tokenizer: TokenizerSettings
    pretraining: PretrainSettings
    probe_every: int = 0  # steps between looks at what the network knows; 0: none


# Parts of a batch are fixed, so that other code or another cache gives the same bytes: two of 32 were a
# seventh faster than eight of 8 on a processor with matrix units (64 and 56 images a second).
_SETTINGS = {"batch_size": 64, "mask": "uniform", "accumulate": 2, "checkpoint_every": 100}
# Of two nano networks that saw 64,000 images, the one with k-means' words knew more: see docs/decisions.md.
_TOKENIZER = TokenizerSettings(kind="kmeans", steps=2000, batch_size=32)
RECIPES = {
    "heartbeit_nano": Recipe(_TOKENIZER, PretrainSettings(steps=2500, warmup_steps=125, **_SETTINGS), 500),
    "heartbeit_tiny": Recipe(
        _TOKENIZER,
        PretrainSettings(size="heartbeit_tiny", steps=8000, warmup_steps=400, **_SETTINGS),
        500,
    ),
}


@dataclass(frozen=True)
class Source:
    """One cohort of the corpus, drawn."""

    name: str
    images: ImageStore

    @cached_property
    def parts(self) -> np.ndarray:
        """Part of each image in the official split."""
        return assign(self.images.manifest, SPLIT).to_numpy()


@dataclass(frozen=True)
class Corpus:
    """The images of pretraining, all parts of all sources; `rows` are those that may be learnt from."""

    sources: tuple[Source, ...]

    @cached_property
    def images(self) -> JoinedImages:
        """All images, source after source."""
        return JoinedImages(tuple(source.images for source in self.sources))

    def rows(self, part: str) -> np.ndarray:
        """Positions of a part's images."""
        return np.flatnonzero(np.concatenate([source.parts for source in self.sources]) == part)

    def audit(self) -> dict[str, Any]:
        """Who was learnt from: records and patients by source, and how many of folds 9 and 10 are among them.

        `seen_of_seed42_test`: share of the records that the paper's split tests on.
        """
        return {source.name: _audit(source.images.manifest, source.parts) for source in self.sources}


def _audit(manifest: pd.DataFrame, parts: np.ndarray) -> dict[str, Any]:
    seen = parts == "train"
    kept_out = manifest.strat_fold.isin([9, 10]) | manifest.external
    patients = set(manifest.patient_id[seen])
    tested = assign(manifest, "seed42").to_numpy() == "test"
    return {
        "records": int(seen.sum()),
        "patients": len(patients),
        "records_of_folds_9_and_10": int((kept_out & seen).sum()),
        "patients_of_folds_9_and_10": len(patients & set(manifest.patient_id[kept_out])),
        "seen_of_seed42_test": float(seen[tested].mean()),
    }


def draw_corpus(data: Path, folder: Path) -> Corpus:
    """Draw PTB-XL in the folder `data`, and generated ECGs, into `folder`."""
    return Corpus((draw_ptbxl(data, folder), _draw(open_cohort(GENERATED), folder / "generated")))


def draw_ptbxl(data: Path, folder: Path) -> Source:
    """The first source alone, in its place in the corpus. EcglibError where `data` is not all of PTB-XL."""
    cohort = open_cohort(CohortSettings(source="ptbxl"), data)
    if not cohort.comparable:
        raise EcglibError(f"{data} holds {cohort.name}: the public weights learn from all of PTB-XL")
    return _draw(cohort, folder / "ptbxl")


def _draw(cohort: Cohort, folder: Path) -> Source:
    write_images(cohort, FilterSettings(), ImageSettings(), folder)
    return Source(cohort.name, ImageStore.open(folder))


def make_tokens(
    corpus: Corpus, settings: TokenizerSettings, folder: Path, start: Path | None = None
) -> tuple[Path, np.ndarray]:
    """Train the tokenizer on the corpus and read every image with it: its folder, and tokens (n, 196).

    start: published weights whose tokenizer is taken instead.
    """
    images = corpus.images
    source = settings if start is None else load_tokenizer(start).metadata["weights_sha256"]
    folder = folder / digest([source, images.data_hash])
    if not (folder / TOKENIZER).exists():
        if start is None:
            train_tokenizer(images, corpus.rows("train"), settings, folder, {"preprocessing": fingerprint()})
        else:
            _copy_tokenizer(start, folder)
    tokenizer, path = load_tokenizer(folder), folder / "tokens.npy"
    held_out = corpus.rows("validation")
    held_out = np.random.default_rng(settings.seed).permutation(held_out)[:N_HELD_OUT]
    report = assess(tokenizer, images.pixels(np.sort(held_out)))
    require_alive(report)
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    if not path.with_suffix(".json").exists():
        tokenize(images, tokenizer.encode, path)
    return folder, read_tokens(path, images.data_hash)


def _copy_tokenizer(start: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in ((TOKENIZER_COURSE, COURSE), (TOKENIZER, TOKENIZER)):  # the tokenizer last
        with atomic_path(folder / target) as partial:
            shutil.copyfile(start / source, partial)


def make_weights(name: str, data: Path, folder: Path, start: Path | None = None) -> Path:
    """Make the weights of a recipe from PTB-XL in the folder `data`; return the folder that holds them.

    That folder has encoder.safetensors, history.parquet and checkpoint.pt, from which a killed run goes on.
    start: published weights of an unfinished run to go on from where its checkpoint is lost.
    Raises EcglibError for an unknown name and where PTB-XL is not whole.
    """
    if name not in RECIPES:
        raise EcglibError(f"weights {name!r}: there is a recipe for {', '.join(RECIPES)}")
    return follow(RECIPES[name], draw_corpus(data, folder / "images"), folder, folder / name, start)


def follow(recipe: Recipe, corpus: Corpus, folder: Path, out: Path, start: Path | None = None) -> Path:
    """Train a tokenizer in `folder` and a network in `out` by a recipe, as `make_weights` does."""
    words, tokens = make_tokens(corpus, recipe.tokenizer, folder / "tokenizer", start)
    tokenizer = load_tokenizer(words)
    described = {
        "preprocessing": fingerprint(),
        "tokenizer_sha256": tokenizer.metadata["weights_sha256"],
        "audit": corpus.audit(),
        "settings": asdict(recipe.pretraining),
        "data_hash": corpus.images.data_hash,
        "commit": commit(),
        **({"begun": _beginning(start)} if start else {}),
    }
    pretrain(
        corpus.images, tokens, corpus.rows("train"), tokenizer.vocab_size, recipe.pretraining, out,
        [Watch(corpus.sources[0], out, described, recipe.probe_every)], described, start,
    )  # fmt: skip
    return out


def _beginning(start: Path) -> dict[str, Any]:
    made = read_checkpoint(start / ENCODER).metadata
    kept = {name: made[name] for name in ("weights_sha256", "commit", "data_hash")}
    return {"step": len(read_course(start / COURSE)), **kept}


@dataclass(frozen=True)
class Watch:
    """A callback of pretraining: keeps the network of each checkpoint, and now and then asks what it knows.

    Few-label probes: heads on frozen features for any infarction, learnt from N_PROBES draws of 1 % of
    PTB-XL's training patients and scored on fold 9; a row a draw in probes.csv.
    """

    source: Source
    folder: Path
    metadata: Mapping[str, Any]
    every: int

    def __call__(self, step: int, network: MaskedImageModel) -> None:
        path = self.folder / "latest.safetensors"
        save_encoder(path, network, {**self.metadata, "steps_done": step})
        if self.every and step % self.every == 0:
            classifier = make_classifier(
                "heartbeit",
                size=network.size,
                encoder_path=path,
                preprocessing=self.metadata["preprocessing"],
            )
            self._note(step, self.probe(classifier))

    def probe(self, classifier: Classifier) -> np.ndarray:
        """AUROC on fold 9 of each draw's head on this classifier's features."""
        images, part = self.source.images, pd.Series(self.source.parts)
        heads = Heads.drawn(images.manifest, part, PROBED, PROBED_FRACTION, N_PROBES)
        features = np.empty((len(heads.rows), classifier.head.in_features), np.float32)
        compute_features(classifier, images, heads.rows, features)
        return heads.aurocs(heads.scores(features))

    def _note(self, step: int, found: np.ndarray) -> None:
        path = self.folder / "probes.csv"
        rows = pd.DataFrame({"step": step, "draw": range(len(found)), "auroc": found})
        if path.exists():  # a run killed before its checkpoint repeats the step
            before = pd.read_csv(path)
            rows = pd.concat([before.loc[before.step < step], rows])
        with atomic_path(path) as partial:
            rows.to_csv(partial, index=False)
