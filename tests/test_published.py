"""Published weights load by name and do what the pair that was published did."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ecglib
from ecglib import beit, published
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import load_masked_image_model, save_encoder
from ecglib.classifiers import make_classifier
from ecglib.errors import EcglibError
from ecglib.filtering import FilterSettings, preprocess
from ecglib.image import ImageSettings, draw
from ecglib.patchbook import PatchBook
from ecglib.preprocessing import fingerprint
from ecglib.published import load, publish
from ecglib.tensorfiles import read_tensors, write_tensors
from ecglib.tokenizer import FILE_NAME, Tokenizer, TokenizerSettings, load_tokenizer, make_networks

SETTINGS = TokenizerSettings(n_hid=8, vocab_size=64)
DRAWN = fingerprint(FilterSettings(high_hz=30), ImageSettings(mv_per_row=1.5))


def a_run(folder: Path, drawn: dict = DRAWN, vocab_size: int = 64, kind: str = "dvae") -> Path:
    """A tokenizer and an encoder as a study leaves them, of random weights."""
    described = {"settings": asdict(replace(SETTINGS, kind=kind)), "vocab_size": 64, "preprocessing": drawn}
    if kind == "kmeans":
        PatchBook(torch.rand(64, 64, generator=torch.Generator().manual_seed(0)), described).save(folder)
    else:
        Tokenizer(*make_networks(SETTINGS), described).save(folder)
    metadata = {
        "preprocessing": drawn,
        "tokenizer_sha256": load_tokenizer(folder).metadata["weights_sha256"],
        "settings": {"steps": 3},
    }
    save_encoder(folder / "encoder.safetensors", MaskedImageModel("minute", vocab_size, seed=4), metadata)
    return folder


@pytest.fixture(autouse=True)
def _minute_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (12, 2, 2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return a_run(tmp_path / "run")


@pytest.fixture
def weights(run: Path, tmp_path: Path) -> Path:
    publish(run / "encoder.safetensors", run, tmp_path / "weights" / "heartbeit_tiny")
    return tmp_path / "weights"


def some_waveforms() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.3, (2, 8, 1000))


def test_two_lines_lead_from_waveforms_to_features(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "WEIGHTS", weights)
    model = ecglib.load("heartbeit_tiny")
    features = model.features(model.images(some_waveforms(), 100))
    assert (features.shape, features.dtype) == ((2, 12), np.float32)
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_a_book_of_patches_is_published_like_a_dvae(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", kind="kmeans")
    publish(run / "encoder.safetensors", run, tmp_path / "weights" / "words")
    model, pixels = load("words", tmp_path / "weights"), np.full((2, 224, 224), 200, np.uint8)
    assert isinstance(model.tokenizer, PatchBook)
    tokens = model.tokenizer.encode(pixels)
    np.testing.assert_array_equal(load_tokenizer(run).encode(pixels), tokens)
    assert model.tokenizer.decode(tokens).shape == (2, 112, 112)


def test_images_are_drawn_as_in_pretraining(weights: Path) -> None:
    model, waveforms = load("heartbeit_tiny", weights), some_waveforms()
    expected = [
        draw(preprocess(w, 100, FilterSettings(high_hz=30)), ImageSettings(mv_per_row=1.5)) for w in waveforms
    ]
    np.testing.assert_array_equal(model.images(waveforms, 100), np.stack(expected))


def test_features_are_the_normalised_mean_over_the_patches(weights: Path) -> None:
    model = load("heartbeit_tiny", weights)
    pixels = model.images(some_waveforms(), 100)
    encoder = model.model.encoder
    tokens = torch.empty(0)

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        nonlocal tokens
        tokens = output

    encoder.blocks[-1].register_forward_hook(keep)
    with torch.inference_mode():
        encoder(beit.normalise(torch.from_numpy(pixels)).expand(-1, 3, -1, -1))
        expected = torch.nn.functional.layer_norm(tokens[:, 1:].mean(1), (12,), eps=1e-6)
    np.testing.assert_allclose(model.features(pixels), expected.numpy(), atol=1e-5)
    assert model.features(pixels[:0]).shape == (0, 12)
    np.testing.assert_allclose(
        model.features(np.repeat(pixels, 20, axis=0))[::20], model.features(pixels), atol=1e-5
    )


def test_all_parts_come_back_the_encoder_from_bfloat16(weights: Path, run: Path) -> None:
    model = load("heartbeit_tiny", weights)
    stored = load_file(weights / "heartbeit_tiny/encoder.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    before = load_masked_image_model(run / "encoder.safetensors").state_dict()
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, before[name].bfloat16().float())
    pixels = model.images(some_waveforms(), 100)
    tokens = load_tokenizer(run).encode(pixels)
    np.testing.assert_array_equal(model.tokenizer.encode(pixels), tokens)
    np.testing.assert_array_equal(model.tokenizer.decode(tokens), load_tokenizer(run).decode(tokens))
    assert model.metadata["settings"] == {"steps": 3}
    assert model.metadata["preprocessing"] == DRAWN
    classifier = model.classifier(seed=3)
    backbone = classifier.backbone.state_dict()["blocks.1.mlp.fc1.weight"]
    assert torch.equal(backbone, before["encoder.blocks.1.mlp.fc1.weight"].bfloat16().float())
    with pytest.raises(EcglibError, match=r"mv_per_row 1\.5 there, 2\.0 here"):
        make_classifier(
            "heartbeit", size="minute", encoder_path=weights / "heartbeit_tiny/encoder.safetensors"
        )


def test_publishing_twice_gives_the_same_bytes(weights: Path, run: Path, tmp_path: Path) -> None:
    publish(run / "encoder.safetensors", run, tmp_path / "again")
    publish(run / "encoder.safetensors", run, tmp_path / "h" / "half", tokenizer_dtype=torch.bfloat16)
    tokenizer = load("half", tmp_path / "h").tokenizer
    assert isinstance(tokenizer, Tokenizer)
    half = tokenizer.encoder.state_dict()["blocks.input.w"]
    assert torch.equal(half, half.bfloat16().float())
    for name in ("encoder.safetensors", FILE_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (weights / "heartbeit_tiny" / name).read_bytes()


def test_weights_that_are_not_there_are_told_from_those_that_are(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match=f"'heartbeit_huge' are not in {weights}: it holds heartbeit_tiny"):
        load("heartbeit_huge", weights)
    with pytest.raises(EcglibError, match=r"'heartbeit_tiny' are not in .*: it holds none"):
        load("heartbeit_tiny", tmp_path / "nowhere")


def _other_tokenizer(folder: Path) -> None:
    weights, metadata = read_tensors(folder / FILE_NAME)
    weights["encoder.blocks.input.b"] += 1
    write_tensors(folder / FILE_NAME, weights, metadata or {})


def _rewrite(folder: Path, **changes: object) -> None:
    state, metadata = read_tensors(folder / "encoder.safetensors")
    changed = {k: v for k, v in {**(metadata or {}), **changes}.items() if v is not None}
    write_tensors(folder / "encoder.safetensors", state, changed)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another tokenizer": (_other_tokenizer, "was not pretrained with this tokenizer"),
    "another vocabulary": (
        lambda folder: a_run(folder, vocab_size=65), "predicts 65 tokens, the tokenizer has 64 codes",
    ),
    "other images": (
        lambda folder: _rewrite(folder, preprocessing=fingerprint()), r"high_hz 30 there, 40\.0 here",
    ),
    "unknown images": (
        lambda folder: _rewrite(folder, preprocessing=None), "its encoder does not say how its images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_pair_that_does_not_belong_together_is_not_published(run: Path, tmp_path: Path, name: str) -> None:
    spoil, message = OTHERS[name]
    spoil(run)
    with pytest.raises(EcglibError, match=message):
        publish(run / "encoder.safetensors", run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pair_mixed_up_after_publishing_is_not_loaded(weights: Path, tmp_path: Path) -> None:
    _other_tokenizer(weights / "heartbeit_tiny")
    with pytest.raises(EcglibError, match="was not pretrained with this tokenizer"):
        load("heartbeit_tiny", weights)
    (weights / "heartbeit_tiny" / FILE_NAME).unlink()
    with pytest.raises(EcglibError, match="does not exist"):
        load("heartbeit_tiny", weights)


def test_an_installation_that_draws_otherwise_is_refused(tmp_path: Path) -> None:
    drawn = json.loads(json.dumps(DRAWN)) | {"digest": "0" * 16}
    folder = a_run(tmp_path / "weights" / "heartbeit_tiny", drawn)
    with pytest.raises(EcglibError, match="the same settings draw otherwise"):
        load("heartbeit_tiny", folder.parent)
    shutil.rmtree(folder)
    a_run(folder, drawn | {"image": {**drawn["image"], "colour": "red"}})
    with pytest.raises(EcglibError, match=r"another version of ecglib: .*'colour'"):
        load("heartbeit_tiny", folder.parent)


def test_importing_the_package_imports_nothing_slow() -> None:
    code = "import sys, ecglib; print({'torch', 'timm', 'numpy', 'cv2'} & sys.modules.keys()); ecglib.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"
    assert "module 'ecglib' has no attribute 'nothing'" in done.stderr
