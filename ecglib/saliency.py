"""Where a classifier looks: Grad-CAM over the input image (paper, Fig. 5).

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (ICCV
2017), by the package pytorch-grad-cam. The paper names no layer; see `classifiers.beit_cam_layer` for ours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from ecglib.classifiers import Classifier
from ecglib.errors import EcglibError
from ecglib.image import lead_rows

BATCH_SIZE = 16
# A map that varies by less, relative to its largest value, is rounding error, not a place.
FLAT = 1e-4


@dataclass(frozen=True, kw_only=True)
class SaliencySettings:
    """Which ECGs are explained."""

    n_examples: int = 1  # ECGs shown for each outcome
    n_averaged: int = 64  # ECGs over which the share of each lead is averaged

    def __post_init__(self) -> None:
        """Refuse what cannot be shown, by name."""
        for name in ("n_examples", "n_averaged"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name}={getattr(self, name)}: at least 1 is needed; raise it")


class _CheckedGradCAM(GradCAM):
    """Grad-CAM that refuses to make a picture of nothing; `first` is the number of its first image."""

    first = 0

    def get_cam_image(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Maps (n, rows, cols) of the layer, before they are cut off at 0, enlarged and scaled."""
        cams = super().get_cam_image(*args, **kwargs)
        for number, cam in enumerate(np.maximum(cams, 0), self.first):
            if not np.isfinite(cam).all() or np.ptp(cam) <= FLAT * cam.max():
                raise EcglibError(
                    f"Grad-CAM of image {number}: the map is zero or the same everywhere: nothing to show; "
                    "train the classifier longer, or take another image"
                )
        return cams


def grad_cam(classifier: Classifier, pixels: np.ndarray, class_index: int = 1) -> np.ndarray:
    """What speaks for `class_index`: pixels (n, h, w) uint8 -> (n, h, w) float32, each map from 0 to 1.

    Computed in float32 where the classifier is; its gradients are cleared afterwards.
    Raises EcglibError where a map is zero or constant: it would be a picture of nothing.
    """
    was_training = classifier.training
    cam = _CheckedGradCAM(classifier, [classifier.cam_target_layer], classifier.cam_reshape)
    maps = []
    try:
        for cam.first in range(0, len(pixels), BATCH_SIZE):
            images = torch.from_numpy(pixels[cam.first : cam.first + BATCH_SIZE]).float().unsqueeze(1)
            targets: list[Any] = [ClassifierOutputTarget(class_index)] * len(images)
            maps.append(cam(images, targets))  # (n, 1, h, w) -> (n, h, w)
    finally:
        cam.activations_and_grads.release()
        classifier.zero_grad()
        classifier.train(was_training)
    saliency = np.concatenate(maps)
    # The library divides by the largest value plus 1e-7, which dims the maps of heads with small weights.
    low, high = saliency.min(axis=(1, 2), keepdims=True), saliency.max(axis=(1, 2), keepdims=True)
    return ((saliency - low) / (high - low)).astype(np.float32)


def overlay(pixels: np.ndarray, saliency: np.ndarray, opacity: float = 0.8) -> np.ndarray:
    """Colour the paper and leave the ink: pixels and saliency (..., h, w) -> uint8 RGB (..., h, w, 3).

    White where saliency is 0, through yellow to red where it is 1.
    """
    if pixels.shape != saliency.shape:
        raise EcglibError(f"pixels {pixels.shape} and saliency {saliency.shape} must have the same shape")
    if not (saliency.min() >= 0 and saliency.max() <= 1):
        raise EcglibError("saliency must lie in 0..1: scale it, and leave maps with NaN out")
    tint = np.stack([np.zeros_like(saliency), saliency**2, saliency], axis=-1)  # how much R, G, B are taken
    return np.rint((1 - opacity * tint) * pixels[..., None]).astype(np.uint8)


def lead_share(saliency: np.ndarray) -> np.ndarray:
    """Share of the saliency in each lead's band: (..., h, w) -> (..., 8), order of LEADS_8, sum 1."""
    total = saliency.sum(axis=(-2, -1))
    if not (total > 0).all():
        raise EcglibError(
            "a saliency map is zero everywhere (or NaN): it has no share per lead; leave it out"
        )
    bands = [saliency[..., first:end, :].sum(axis=(-2, -1)) for first, end in lead_rows(saliency.shape[-2])]
    return np.stack(bands, axis=-1) / total[..., None]
