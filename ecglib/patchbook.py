"""The second tokenizer, a book of patches: the word of a patch is the nearest of k-means' mean patches.

It knows nothing beyond the edge of a patch and learns in seconds (scikit-learn's MiniBatchKMeans); beside it
one sees what the dVAE's wider view is worth.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from torch import Tensor
from torch.nn import functional as F

from ecglib.errors import EcglibError
from ecglib.tensorfiles import write_tensors

IMAGE_SIZE, GRID = 224, 14  # pixels and tokens a side; tokenizers see a copy of half the size
PATCH = IMAGE_SIZE // 2 // GRID  # pixels of a patch's side in the copy
FILE_NAME = "tokenizer.safetensors"
CHUNK_SIZE = 32  # images encoded at a time
CODES = "codes"  # the one tensor in the file


class PatchBook:
    """A codebook of patches: images to token ids and back, in float32 on the CPU."""

    def __init__(self, codes: Tensor, metadata: Mapping[str, Any]) -> None:
        """Take the codes as ink, float (vocab_size, 64): 1 = ink, 0 = paper."""
        if codes.ndim != 2 or codes.shape[1] != PATCH**2 or not torch.isfinite(codes).all():
            raise EcglibError(f"codes {tuple(codes.shape)}: must be finite numbers (codes, {PATCH**2})")
        self.codes, self.metadata = codes, metadata

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], vocab_size: int, metadata: Mapping[str, Any]
    ) -> "PatchBook":
        """Make it of what `save` wrote. Raises KeyError or EcglibError where that does not fit."""
        book = cls(weights[CODES], metadata)
        if book.vocab_size != vocab_size:
            raise EcglibError(f"{book.vocab_size} codes instead of {vocab_size}")
        return book

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write tokenizer.safetensors in a number format."""
        write_tensors(directory / FILE_NAME, {CODES: self.codes}, self.metadata, dtype)

    @property
    def vocab_size(self) -> int:
        """Number of codes in the codebook."""
        return len(self.codes)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, 224, 224) -> tokens uint16 (n, 196): the nearest code, the first of several."""
        tokens = np.empty((len(pixels), GRID * GRID), np.uint16)
        half_squares = self.codes.square().sum(1) / 2
        for start in range(0, len(pixels), CHUNK_SIZE):
            ink = _ink_of_patches(pixels[start : start + CHUNK_SIZE])
            # Always whole chunks: how many images come together must not change the last bit of a product.
            ink = F.pad(ink, (0, 0, 0, CHUNK_SIZE * GRID * GRID - len(ink)))
            # |ink - code|^2 = |ink|^2 - 2 (ink . code - |code|^2 / 2): the nearest has the largest bracket.
            nearest = torch.addmm(half_squares, ink, self.codes.T, beta=-1).numpy().argmax(1)
            tokens[start : start + CHUNK_SIZE] = nearest.reshape(CHUNK_SIZE, -1)[: len(pixels) - start]
        return tokens

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, 196) -> brightness float32 (n, 112, 112), 0 = ink, 1 = paper."""
        require_codes(tokens, self.vocab_size)
        patches = 1 - self.codes[torch.from_numpy(np.asarray(tokens, np.int64))]
        grid = patches.view(-1, GRID, GRID, PATCH, PATCH).transpose(2, 3)
        return grid.reshape(-1, IMAGE_SIZE // 2, IMAGE_SIZE // 2).numpy()


def learn_codes(
    first: np.ndarray, batches: Iterable[np.ndarray], vocab_size: int, seed: int
) -> tuple[Tensor, list[dict[str, float]]]:
    """K-means on patches of images: the codes as ink (vocab_size, 64), and the course of learning.

    first: pixels uint8 (n, 224, 224) from which k-means++ takes its first codes; batches: more of the same,
    one a step, each with at least `vocab_size` patches. Course: step, loss and error_ratio (of the batch, to
    the mean of the first images; the same, as nothing else is minimised), codes_used.
    """
    ink = _ink_of_patches(first)
    images = ink.view(len(first), -1)
    mean_error = max(float((images - images.mean(0)).square().mean()), 1e-12)
    codes, _ = kmeans_plusplus(ink.numpy(), vocab_size, random_state=seed)
    start: Any = {"init": codes, "n_init": 1}  # scikit-learn's annotations know only its own words
    model: Any = MiniBatchKMeans(vocab_size, random_state=seed, **start)
    course = []
    for step, pixels in enumerate(batches, start=1):
        patches = _ink_of_patches(pixels).numpy()
        model.partial_fit(patches)
        error = float(np.square(patches - model.cluster_centers_[model.labels_]).mean()) / mean_error
        used = len(np.unique(model.labels_))
        course.append({"step": step, "loss": error, "error_ratio": error, "codes_used": used})
    return torch.from_numpy(model.cluster_centers_.astype(np.float32)), course


def brightness(pixels: np.ndarray) -> Tensor:
    """Pixels uint8 (n, 224, 224) -> float (n, 1, 112, 112), 0 = ink, 1 = paper: means of 2 x 2 pixels."""
    if pixels.ndim != 3 or pixels.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE) or pixels.dtype != np.uint8:
        raise EcglibError(
            f"images are {pixels.dtype} {pixels.shape}: the tokenizer reads uint8 (n, 224, 224); set size=224"
        )
    return F.avg_pool2d(torch.from_numpy(pixels).float()[:, None] / 255, 2)


def require_codes(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise EcglibError where a token is none of the codebook's codes."""
    if len(tokens) and int(np.max(tokens)) >= vocab_size:
        raise EcglibError(f"token {int(np.max(tokens))}: the codebook has only {vocab_size} codes")


def _ink_of_patches(pixels: np.ndarray) -> Tensor:
    """Pixels uint8 (n, 224, 224) -> float (n * 196, 64): paper is 0, where floats are finest."""
    patches = brightness(pixels).view(-1, GRID, PATCH, GRID, PATCH).transpose(2, 3)
    return 1 - patches.reshape(-1, PATCH**2)
