"""Pretrained weights by name: `ecglib.load("heartbeit_tiny")`, from files that come with the package.

A folder of `ecglib/weights` holds `encoder.safetensors` (encoder, mask token and pretraining head) and
`tokenizer.safetensors`, with all that is known of how they were made: the first in bfloat16; the second,
which is small, in float32, because rounding changes every eighth token (12 % of 59,000, measured).
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import (
    COURSE,
    ENCODER,
    load_masked_image_model,
    read_checkpoint,
    read_course,
    save_encoder,
)
from ecglib.classifiers import Classifier, inference_batch, make_classifier
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings
from ecglib.image import ImageSettings
from ecglib.preprocessing import fingerprint, require_same, waveform_to_pixels
from ecglib.provenance import digest, file_sha256
from ecglib.tokenizer import FILE_NAME as TOKENIZER
from ecglib.tokenizer import AnyTokenizer, load_tokenizer

WEIGHTS = Path(__file__).resolve().parent / "weights"
PROBES, LAYERS = "probes.parquet", "layers.parquet"  # what the features know: tables of `ecglib.frozen`
PROBES_MADE = "probes.json"  # commit, machine, data and weights of each of these tables
TOKENIZER_COURSE = "tokenizer_history.parquet"  # the course of the tokenizer's training


@dataclass(frozen=True, kw_only=True)
class WeightsSettings:
    """Where tokenizer and encoder come from."""

    weights: str = ""  # published weights by name, for tokenizer and encoder; empty: both are trained here


@dataclass(frozen=True, kw_only=True)
class ShownWeights:
    """Which published weights have a page."""

    shown: str = "heartbeit_tiny"  # published weights by name


@dataclass(frozen=True)
class Pretrained:
    """A pretrained HeartBEiT and all that its use takes: how to draw, features, tokens, a classifier."""

    name: str
    folder: Path
    model: MaskedImageModel  # predicts hidden tokens; `model.encoder` is timm's Beit
    tokenizer: AnyTokenizer
    metadata: Mapping[str, Any]

    def images(self, waveforms: np.ndarray | Iterable[np.ndarray], sampling_rate: float) -> np.ndarray:
        """Waveforms (n, 8, samples), mV, leads I, II, V1-V6 -> uint8 (n, size, size), as in pretraining.

        Each must last as long as an image shows (5 s); resampled, filtered and cut here. EcglibError if not.
        """
        filters, image = _drawing(self.metadata["preprocessing"])
        return np.stack([waveform_to_pixels(w, sampling_rate, filters, image) for w in waveforms])

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Images uint8 (n, size, size) -> float32 (n, width): the mean over the patches, normalised.

        What a linear probe reads (`ecglib.probe`).
        """
        classifier, size = self._frozen, inference_batch(torch.device("cpu"), "32-true")
        parts = [torch.from_numpy(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        with torch.inference_mode():
            seen = [classifier.features(part) for part in parts]
        return torch.cat([torch.empty(0, self.model.encoder.embed_dim), *seen]).numpy()

    def classifier(self, seed: int = 0) -> Classifier:
        """A classifier to be fine-tuned (`ecglib.finetune`): pixels (n, size, size) -> logits (n, 2)."""
        return make_classifier(
            "heartbeit",
            size=self.model.size,
            encoder_path=self.folder / ENCODER,
            seed=seed,
            preprocessing=self.metadata["preprocessing"],
        )

    @cached_property
    def key(self) -> str:
        """Name and a hash of both files: other weights make other results."""
        return weights_key(self.folder)

    def history(self, name: str = COURSE) -> pd.DataFrame:
        """The course of training, of the encoder or (TOKENIZER_COURSE) of the tokenizer.

        EcglibError where it was not kept with the weights.
        """
        return read_course(self.folder / name)

    @cached_property
    def _frozen(self) -> Classifier:
        return self.classifier().eval()


def load(name: str, weights: Path | None = None) -> Pretrained:
    """Pretrained weights by name, from the package's own folder or another.

    From waveforms to features in two lines:
    `model = ecglib.load("heartbeit_tiny"); features = model.features(model.images(waveforms, 500))`
    Raises EcglibError for a name that is not there, damaged files, parts that do not belong together, and an
    installation that draws ECGs otherwise than the weights were taught.
    """
    folder = find(name, weights)
    metadata = read_checkpoint(folder / ENCODER).metadata
    tokenizer = load_tokenizer(folder)
    model = _require_pair(folder / ENCODER, metadata, tokenizer)
    require_same(
        metadata["preprocessing"], fingerprint(*_drawing(metadata["preprocessing"])), folder / ENCODER
    )
    return Pretrained(name, folder, model, tokenizer, metadata)


def training_hours(history: pd.DataFrame, settings: Mapping[str, Any]) -> float:
    """Hours that the steps of a pretraining took, without its checkpoints."""
    return float((settings["batch_size"] / history["images_per_second"]).sum() / 3600)


def published(weights: Path | None = None) -> list[str]:
    """Names of the published weights that are there."""
    return sorted(path.parent.name for path in (weights or WEIGHTS).glob(f"*/{ENCODER}"))


def find(name: str, weights: Path | None = None) -> Path:
    """The folder of published weights; EcglibError for a name that is not there."""
    weights = weights or WEIGHTS
    known = published(weights)
    if name not in known:
        raise EcglibError(f"weights {name!r} are not in {weights}: it holds {', '.join(known) or 'none'}")
    return weights / name


def weights_key(folder: Path) -> str:
    """Name and a hash of both files of published weights; their networks are not read."""
    return f"{folder.name} {digest([file_sha256(folder / name) for name in (ENCODER, TOKENIZER)])}"


def publish(
    encoder: Path,
    tokenizer: Path,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    tokenizer_dtype: torch.dtype = torch.float32,
) -> None:
    """Write the public files of the encoder at `encoder` and of the tokenizer in the folder `tokenizer`.

    dtype: the encoder's number format; `tokenizer_dtype` the tokenizer's. The histories of both trainings
    come along where they lie beside; the encoder's header tells the day on which its file was written.
    Raises EcglibError where the encoder was pretrained with another tokenizer or on images drawn otherwise.
    """
    words = load_tokenizer(tokenizer)
    metadata = read_checkpoint(encoder).metadata
    model = _require_pair(encoder, metadata, words)
    words.save(folder, tokenizer_dtype)
    stored = load_tokenizer(folder).metadata["weights_sha256"]
    for source, name in ((encoder.parent, COURSE), (tokenizer, TOKENIZER_COURSE)):
        if (source / COURSE).is_file():
            shutil.copyfile(source / COURSE, folder / name)
    day = datetime.fromtimestamp(encoder.stat().st_mtime, UTC).date().isoformat()
    described = {"made": day, **metadata, "tokenizer_sha256": stored}
    save_encoder(folder / ENCODER, model, described, dtype)  # last: a whole pair


def _require_pair(encoder: Path, metadata: Mapping[str, Any], tokenizer: AnyTokenizer) -> MaskedImageModel:
    model = load_masked_image_model(encoder, vocab_size=tokenizer.vocab_size)
    if metadata.get("tokenizer_sha256") != tokenizer.metadata["weights_sha256"]:
        raise EcglibError(f"{encoder} was not pretrained with this tokenizer: take the two of one run")
    for part, described in (("encoder", metadata), ("tokenizer", tokenizer.metadata)):
        if "preprocessing" not in described:
            raise EcglibError(f"{encoder}: its {part} does not say how its images were drawn; train it again")
    require_same(tokenizer.metadata["preprocessing"], metadata["preprocessing"], encoder)
    return model


def _drawing(preprocessing: Mapping[str, Any]) -> tuple[FilterSettings, ImageSettings]:
    try:
        return FilterSettings(**preprocessing["filter"]), ImageSettings(**preprocessing["image"])
    except TypeError as error:
        raise EcglibError(
            f"weights of another version of ecglib: {error}; install the one that made them"
        ) from None
