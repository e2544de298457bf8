"""Grad-CAM equals one computed by hand, points where a model looks, and is never a picture of nothing."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ecglib import beit
from ecglib.checkpoints import classifier_from_encoder
from ecglib.classifiers import Classifier, beit_cam_layer, make_classifier, patches_to_map
from ecglib.errors import EcglibError
from ecglib.image import lead_rows
from ecglib.saliency import SaliencySettings, grad_cam, lead_share, overlay

HALF = (0.5, 0.5, 0.5)
SIZE = 64  # pixels: 4 x 4 patches


@pytest.fixture(autouse=True)
def _minute_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (32, 2, 2))


def small_cnn(image_size: int = SIZE) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(image_size)
        backbone = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(8, 8, 5, stride=2, padding=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        head = nn.Linear(8, 2)
    return Classifier("cnn", backbone, head, mean=HALF, std=HALF, cam_layer="3")


def small_beit(image_size: int = SIZE, head_scale: float = 1.0) -> Classifier:
    backbone = classifier_from_encoder("minute", None, image_size=image_size)
    width, depth = backbone.embed_dim, len(backbone.blocks)
    backbone.reset_classifier(0)
    head = nn.Linear(width, 2)
    with torch.no_grad():
        weight = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
        head.weight.copy_(weight * head_scale)
    layer = beit_cam_layer(depth)
    return Classifier(
        "beit", backbone, head, mean=HALF, std=HALF, cam_layer=layer, cam_reshape=patches_to_map
    )


KINDS = {"cnn": small_cnn, "beit": small_beit}


def some_pixels(n: int = 3, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size)).astype(np.uint8)


def by_hand(classifier: Classifier, pixels: np.ndarray, class_index: int) -> np.ndarray:
    """Equations 1 and 2 of Selvaraju et al., one image at a time, through autograd alone."""
    maps = []
    for image in torch.from_numpy(pixels):
        outputs: list[Tensor] = []
        hook = classifier.cam_target_layer.register_forward_hook(
            lambda m, i, out, kept=outputs: kept.append(out)
        )
        logits = classifier.eval()(image[None])
        hook.remove()
        (gradient,) = torch.autograd.grad(logits[0, class_index], outputs[0])
        activation, gradient = outputs[0].detach()[0], gradient[0]
        if classifier.cam_reshape is not None:  # (1 + patches, channels): drop the class token
            grid = int((len(activation) - 1) ** 0.5)
            activation, gradient = (t[1:].T.reshape(-1, grid, grid) for t in (activation, gradient))
        cam = torch.einsum("c,cij->ij", gradient.mean(dim=(1, 2)), activation).relu().numpy()
        large = cv2.resize(cam, pixels.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        maps.append((large - large.min()) / (large.max() - large.min()))
    return np.stack(maps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_index", [0, 1])
def test_grad_cam_equals_one_computed_by_hand(kind: str, class_index: int) -> None:
    classifier, pixels = KINDS[kind](), some_pixels()
    maps = grad_cam(classifier, pixels, class_index)
    np.testing.assert_allclose(maps, by_hand(classifier, pixels, class_index), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_have_the_image_s_size_and_run_from_0_to_1(kind: str) -> None:
    maps = grad_cam(KINDS[kind](), some_pixels(20))  # more than one batch
    assert (maps.shape, maps.dtype) == ((20, SIZE, SIZE), np.float32)
    np.testing.assert_array_equal(maps.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(maps.max(axis=(1, 2)), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_s_map_does_not_depend_on_its_neighbours(kind: str) -> None:
    classifier, pixels = KINDS[kind](), some_pixels(18)
    alone = np.concatenate([grad_cam(classifier, pixels[i : i + 1]) for i in (0, 7, 17)])
    np.testing.assert_allclose(grad_cam(classifier, pixels)[[0, 7, 17]], alone, atol=1e-4)


def test_a_head_of_tiny_weights_shows_the_same_places() -> None:
    maps = grad_cam(small_beit(head_scale=1e-6), some_pixels())
    np.testing.assert_allclose(maps, grad_cam(small_beit(), some_pixels()), atol=1e-4)


@pytest.mark.parametrize("name", ["random", "efficientnet_lite2", "mobilenetv2"])
def test_every_kind_of_model_has_a_map(name: str) -> None:
    classifier = make_classifier(name).train()
    pixels = some_pixels(1, 224)
    maps = grad_cam(classifier, pixels)
    assert maps.shape == (1, 224, 224)
    assert classifier.training  # left as it was found
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not classifier.cam_target_layer._forward_hooks


def striped_pages(
    rng: np.random.Generator, n: int, lead: int, size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """White pages with three grey squares anywhere and, where the label is 1, stripes along a lead's row."""
    pixels, labels = np.full((n, size, size), 255, np.uint8), np.arange(n) % 2
    row = size // 8
    for page, label in zip(pixels, labels, strict=True):
        for band, left in zip(rng.integers(0, 8, 3), rng.integers(0, size - row, 3), strict=True):
            page[band * row : (band + 1) * row, left : left + row] = 128
        if label:
            page[lead * row : (lead + 1) * row] = 255
            page[lead * row : (lead + 1) * row, ::4] = 0
    return pixels, labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [0, 5])
def test_a_model_trained_to_look_at_one_lead_has_its_saliency_there(kind: str, lead: int) -> None:
    classifier, rng = KINDS[kind](128), np.random.default_rng(lead)
    nn.init.zeros_(classifier.head.weight)  # logits near zero, as fine-tuning starts, make a calm training
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
    for _ in range(60):
        pixels, labels = striped_pages(rng, 16, lead)
        loss = nn.functional.cross_entropy(classifier(torch.from_numpy(pixels)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pixels, labels = striped_pages(rng, 20, lead)
    with torch.inference_mode():
        answers = classifier.eval()(torch.from_numpy(pixels)).argmax(dim=1).numpy()
    assert (answers == labels).mean() >= 0.95
    share = lead_share(grad_cam(classifier, pixels[labels == 1]))
    assert (share.argmax(axis=1) == lead).all()
    assert share[:, lead].mean() > 0.5  # an even map has 1/8


def test_the_patches_of_a_beit_share_out_the_logit_so_that_no_map_is_empty() -> None:
    classifier = small_beit()
    with torch.no_grad():
        for parameter in classifier.backbone.parameters():  # any weights will do
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1
            )
    outputs: list[Tensor] = []
    classifier.cam_target_layer.register_forward_hook(lambda m, i, out, kept=outputs: kept.append(out))
    logits = classifier(torch.from_numpy(some_pixels(1)))
    (gradient,) = torch.autograd.grad(logits[0, 1], outputs[0])
    shares = (gradient * outputs[0].detach())[0, 1:].sum(dim=-1)
    assert abs(float(shares.sum())) < 1e-3 * float(shares.abs().sum())


def test_a_zero_map_is_an_error_and_not_a_picture() -> None:
    classifier = small_cnn()
    nn.init.zeros_(classifier.head.weight)
    with pytest.raises(EcglibError, match="image 0: the map is zero or the same everywhere"):
        grad_cam(classifier, some_pixels())
    assert not classifier.cam_target_layer._forward_hooks


def test_the_image_without_a_map_is_named_in_a_later_batch_too() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier("flat", backbone, nn.Linear(4, 2), mean=HALF, std=HALF, cam_layer="1")
    nn.init.ones_(classifier.head.weight)
    pixels = some_pixels(20)
    pixels[18] = 200
    with pytest.raises(EcglibError, match="image 18"):
        grad_cam(classifier, pixels)


def test_a_constant_map_is_an_error_although_rounding_makes_it_uneven() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier("flat", backbone, nn.Linear(4, 2), mean=HALF, std=HALF, cam_layer="1")
    nn.init.ones_(classifier.head.weight)
    uneven = np.full((1, SIZE, SIZE), 200, np.uint8)
    with pytest.raises(EcglibError, match="the same everywhere"):
        grad_cam(classifier, uneven)


def test_overlay_leaves_ink_black_and_colours_only_where_saliency_is() -> None:
    pixels = np.array([[255, 255, 255, 0]], np.uint8)
    saliency = np.array([[0.0, 0.5, 1.0, 1.0]], np.float32)
    rgb = overlay(pixels, saliency, opacity=1.0)
    assert (rgb.shape, rgb.dtype) == ((1, 4, 3), np.uint8)
    assert rgb[0, 0].tolist() == [255, 255, 255]  # paper
    assert rgb[0, 1].tolist() == [255, 191, 128]  # orange: less green than red, least blue
    assert rgb[0, 2].tolist() == [255, 0, 0]
    assert rgb[0, 3].tolist() == [0, 0, 0]  # ink
    assert overlay(np.stack([pixels] * 2), np.stack([saliency] * 2)).shape == (2, 1, 4, 3)


def test_overlay_refuses_what_does_not_fit() -> None:
    pixels = np.zeros((4, 4), np.uint8)
    with pytest.raises(EcglibError, match="same shape"):
        overlay(pixels, np.zeros((2, 4, 4)))
    for bad in (np.full((4, 4), np.nan), np.full((4, 4), 1.5), np.full((4, 4), -0.1)):
        with pytest.raises(EcglibError, match=r"must lie in 0\.\.1"):
            overlay(pixels, bad)


def test_lead_shares_add_up_to_one_and_find_the_lead() -> None:
    saliency = np.random.default_rng(0).random((5, 224, 224))
    np.testing.assert_allclose(lead_share(saliency).sum(axis=-1), 1)
    np.testing.assert_allclose(lead_share(np.ones((224, 224))), np.full(8, 1 / 8))
    for lead, (first, end) in enumerate(lead_rows(224)):
        only = np.zeros((224, 224))
        only[first:end] = 0.3
        np.testing.assert_array_equal(lead_share(only), np.eye(8)[lead])
    with pytest.raises(EcglibError, match="zero everywhere"):
        lead_share(np.zeros((2, 224, 224)))


def test_settings_that_show_nothing_are_refused_by_name() -> None:
    with pytest.raises(EcglibError, match="n_examples=0"):
        SaliencySettings(n_examples=0)
