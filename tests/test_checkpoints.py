"""Weights of Microsoft, timm and Hugging Face give the same numbers here, and ours there; or are refused."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel

from ecglib import beit
from ecglib.beit import MaskedImageModel
from ecglib.checkpoints import (
    CLASSIFYING,
    PRETRAINING,
    SHARED_BIAS,
    classifier_from_encoder,
    convert,
    load_classifier,
    load_masked_image_model,
    read_checkpoint,
    save_encoder,
)
from ecglib.errors import EcglibError
from ecglib.image import ImageSettings
from ecglib.preprocessing import fingerprint

IMAGE_SIZE, PATCHES, VOCAB, CLASSES = 64, 16, 20, 3
WIDTH, DEPTH, HEADS = 24, 3, 2


@pytest.fixture(autouse=True)
def _minute_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (WIDTH, DEPTH, HEADS))
    monkeypatch.setitem(beit.SIZES, "other", (16, 2, 2))
    torch.manual_seed(0)  # timm and transformers draw their first weights from it


def shaken(model: nn.Module, seed: int = 1) -> Any:
    """The model with every parameter moved, so that zeros and ones at the start hide no mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def batch(n: int = 3) -> tuple[Tensor, Tensor]:
    """Images and a mask; the images are float64, so that rounding hides no mistake and makes none."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand((n, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.float64) * 2 - 1
    return images, torch.rand((n, PATCHES), generator=generator) < 0.4


def same(a: Tensor, b: Tensor, least: float = 0.1) -> None:
    assert a.shape == b.shape
    assert a.abs().max() > least  # the comparison is not of zeros
    assert a.dtype == b.dtype == torch.float64
    assert (a - b).abs().max() < 1e-6


# --- the files of others, written by their own classes ---


def pretraining_model() -> MaskedImageModel:
    return shaken(MaskedImageModel("minute", VOCAB, image_size=IMAGE_SIZE))


def timm_model(**changes: Any) -> Beit:
    arguments = {
        "img_size": IMAGE_SIZE, "patch_size": 16, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS,
        "num_classes": CLASSES, "init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True,
    }  # fmt: skip
    return shaken(Beit(**{**arguments, **changes}))


def microsoft_state(model: MaskedImageModel) -> dict[str, Tensor]:
    """As in checkpoint-299.pth: no `encoder.`, and the index of the shared bias as a buffer."""
    state = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    return state | {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}


def microsoft_file(path: Path, state: Mapping[str, Tensor], prefix: str = "", **other: Any) -> Path:
    model = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    args = argparse.Namespace(model="beit_base_patch16_224_8k_vocab", lr=1.5e-3, window_size=(14, 14))
    optimizer = {"state": {0: {"step": 9, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": model, "optimizer": optimizer, "epoch": 299, "args": args, **other}, path)
    return path


def hugging_face(kind: type, **changes: Any) -> Any:
    settings = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH, "image_size": IMAGE_SIZE, "layer_norm_eps": 1e-6,
        "num_labels": CLASSES,
    }  # fmt: skip
    return shaken(kind(BeitConfig(**{**settings, **changes})))


def hugging_face_pretraining() -> BeitForMaskedImageModeling:
    return hugging_face(
        BeitForMaskedImageModeling, use_mask_token=True, use_shared_relative_position_bias=True
    )


def encoder_file(folder: Path, **metadata: Any) -> tuple[Path, MaskedImageModel]:
    model = pretraining_model()
    save_encoder(folder / "encoder.safetensors", model, metadata)
    return folder / "encoder.safetensors", model


def from_folder(kind: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    model, loading = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    return model.eval(), loading


# --- import ---


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.encoder."])
def test_microsofts_pretraining_file_gives_the_logits_of_its_model(tmp_path: Path, prefix: str) -> None:
    model, (images, mask) = pretraining_model(), batch()
    path = microsoft_file(tmp_path / "checkpoint-299.pth", microsoft_state(model), prefix, scaler={})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.writer, checkpoint.kind) == ("Microsoft", "masked-image model")
    assert (checkpoint.width, checkpoint.depth, checkpoint.heads) == (WIDTH, DEPTH, HEADS)
    assert (checkpoint.patch_size, checkpoint.image_size, checkpoint.vocab_size) == (16, IMAGE_SIZE, VOCAB)
    assert set(checkpoint.dropped) == {
        "optimizer", "epoch", "args", "scaler", "rel_pos_bias.relative_position_index",
    }  # fmt: skip
    assert checkpoint.missing == CLASSIFYING
    same(load_masked_image_model(path).double()(images, mask), model.double()(images, mask))


def test_microsofts_classifier_gives_the_logits_of_its_model(tmp_path: Path) -> None:
    model, images = timm_model(), batch()[0]
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(17, 17) for i in range(DEPTH)}
    path = microsoft_file(tmp_path / "checkpoint-best.pth", model.state_dict() | index)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.writer, checkpoint.kind, checkpoint.n_classes) == ("Microsoft", "classifier", CLASSES)
    assert checkpoint.missing == PRETRAINING
    assert "dropped: optimizer, epoch, args, blocks.*.attn.relative_position_index\n" in checkpoint.report()
    same(load_classifier(path).double()(images), model.double()(images))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timms_classifier_gives_the_logits_of_its_model(tmp_path: Path, suffix: str) -> None:
    model, images, path = timm_model(), batch()[0], tmp_path / f"model{suffix}"
    save = torch.save if suffix == ".pth" else save_file
    save(model.state_dict(), path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.writer, checkpoint.kind, checkpoint.dropped) == ("timm", "classifier", ())
    same(load_classifier(path).double()(images), model.double()(images))


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "weights.pth")
    torch.save(timm_model().state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert read_checkpoint(tmp_path / name).kind == "classifier"


def _folder(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def _folder_of_torch(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def _file(model: Any, path: Path) -> Path:
    return _folder(model, path) / "model.safetensors"


def _state_dict(model: Any, path: Path) -> Path:
    torch.save(model.state_dict(), path)  # the names of transformers 5 in memory
    return path


WAYS: list[Callable[[Any, Path], Path]] = [_folder, _folder_of_torch, _file, _state_dict]


@pytest.mark.parametrize("write", WAYS)
def test_hugging_faces_pretraining_model_gives_the_same_logits(
    tmp_path: Path, write: Callable[[Any, Path], Path]
) -> None:
    theirs, (images, mask) = hugging_face_pretraining(), batch()
    path = write(theirs, tmp_path / "theirs")
    checkpoint = read_checkpoint(path)
    assert (checkpoint.writer, checkpoint.kind) == ("Hugging Face", "masked-image model")
    assert (checkpoint.dropped, checkpoint.missing) == ((), CLASSIFYING)
    same(
        load_masked_image_model(path).double()(images, mask),
        theirs.double()(images, bool_masked_pos=mask).logits[mask],
    )


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("shared", [False, True])
def test_hugging_faces_classifier_gives_the_same_logits(
    tmp_path: Path, write: Callable[[Any, Path], Path], shared: bool
) -> None:
    theirs, images = (
        hugging_face(
            BeitForImageClassification,
            use_relative_position_bias=not shared,
            use_shared_relative_position_bias=shared,
        ),
        batch()[0],
    )
    path = write(theirs, tmp_path / "theirs")
    assert read_checkpoint(path).kind == "classifier"
    same(load_classifier(path).double()(images), theirs.double()(images).logits)


@pytest.mark.parametrize("write", WAYS)
def test_hugging_faces_bare_model_gives_the_same_tokens(
    tmp_path: Path, write: Callable[[Any, Path], Path]
) -> None:
    theirs = hugging_face(BeitModel, use_relative_position_bias=True, use_mean_pooling=False)
    path, images = write(theirs, tmp_path / "theirs"), batch()[0]
    assert read_checkpoint(path).kind == "encoder"
    ours = timm_model(num_classes=0, global_pool="")
    convert(path, tmp_path / "timm", "timm")
    ours.load_state_dict(load_file(tmp_path / "timm"))
    same(ours.double()(images), theirs.double()(images).last_hidden_state)


def test_another_epsilon_is_reported(tmp_path: Path) -> None:
    hugging_face(BeitModel, use_relative_position_bias=True, layer_norm_eps=1e-12).save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.notes == ("layer_norm_eps is 1e-12 there, 1e-06 here",)
    assert checkpoint.notes[0] in checkpoint.report()


def test_a_keys_bias_has_no_effect_and_is_dropped(tmp_path: Path) -> None:
    model, images = timm_model(), batch()[0]
    with torch.no_grad():
        for i in range(DEPTH):
            model.get_buffer(f"blocks.{i}.attn.k_bias").fill_(3.0)
    state = model.state_dict() | {f"blocks.{i}.attn.k_bias": torch.full((WIDTH,), 3.0) for i in range(DEPTH)}
    torch.save(state, tmp_path / "old.pth")
    assert (
        load_classifier(tmp_path / "old.pth").double()(images) - model.double()(images)
    ).abs().max() < 1e-6
    assert read_checkpoint(tmp_path / "old.pth").dropped == tuple(
        f"blocks.{i}.attn.k_bias" for i in range(DEPTH)
    )


def test_own_trained_classifier_and_training_checkpoint_are_read(tmp_path: Path) -> None:
    model, images = timm_model(num_classes=2), batch()[0]
    named = {n if n.startswith("head.") else f"backbone.{n}": t for n, t in model.state_dict().items()}
    torch.save(named, tmp_path / "weights")  # the names of ecglib.classifiers.Classifier
    same(load_classifier(tmp_path / "weights").double()(images), model.double()(images))
    pretrained, (images, mask) = pretraining_model(), batch()
    torch.save({"identity": {"steps": 3}, "model": pretrained.state_dict()}, tmp_path / "checkpoint.pt")
    same(
        load_masked_image_model(tmp_path / "checkpoint.pt").double()(images, mask),
        pretrained.double()(images, mask),
    )


# --- export ---


def test_hugging_face_loads_our_pretraining_model_offline(tmp_path: Path) -> None:
    path, model = encoder_file(tmp_path)
    convert(path, tmp_path / "theirs", "huggingface")
    theirs, loading = from_folder(BeitForMaskedImageModeling, tmp_path / "theirs")
    assert not any(loading.values()), loading
    images, mask = batch()
    images = images.double()  # the two add up in another order; in float32 that alone makes 3e-6
    same(model.double()(images, mask), theirs.double()(images, bool_masked_pos=mask).logits[mask])


def test_hugging_face_loads_a_classifier_offline(tmp_path: Path) -> None:
    model, images = timm_model(), batch()[0]
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "theirs", "huggingface")
    theirs, loading = from_folder(BeitForImageClassification, tmp_path / "theirs")
    assert not any(loading.values()), loading
    assert theirs.config.num_labels == CLASSES
    same(model.double()(images), theirs.double()(images).logits)


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_hugging_face_loads_a_bare_encoder_offline(tmp_path: Path, mean_pooling: bool) -> None:
    source = hugging_face(BeitModel, use_relative_position_bias=True, use_mean_pooling=mean_pooling)
    source.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "copy", "huggingface")
    copy, loading = from_folder(BeitModel, tmp_path / "copy")
    assert not any(loading.values()), loading
    images = batch()[0]
    same(source.double()(images).pooler_output, copy.double()(images).pooler_output)


def test_timm_loads_our_encoder_strictly_and_gives_the_same_tokens(tmp_path: Path) -> None:
    path, model = encoder_file(tmp_path)
    convert(path, tmp_path / "theirs", "timm")
    with safe_open(tmp_path / "theirs", framework="pt") as stream:
        arguments = json.loads(stream.metadata()["ecglib"])["arguments"]
    theirs = Beit(**arguments).eval()
    theirs.load_state_dict(load_file(tmp_path / "theirs"), strict=True)
    images = batch()[0]
    same(theirs.double()(images), model.encoder.double()(images))


def test_timms_own_architecture_loads_a_converted_classifier(tmp_path: Path) -> None:
    source = hugging_face(BeitForImageClassification, use_relative_position_bias=True)
    source.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "theirs", "timm")
    theirs, images = timm_model(), batch()[0]
    theirs.load_state_dict(load_file(tmp_path / "theirs"), strict=True)
    same(theirs.double()(images), source.double()(images).logits)


@pytest.mark.parametrize("to", ["ecglib", "huggingface"])
def test_a_round_trip_changes_no_weight_and_keeps_what_is_known(tmp_path: Path, to: str) -> None:
    path, model = encoder_file(tmp_path, preprocessing=fingerprint(), data_hash="abc", settings={"steps": 3})
    convert(path, tmp_path / "there", to)
    convert(tmp_path / "there", tmp_path / "back", "ecglib")
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "back")
    assert after.state.keys() == before.state.keys()
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert after.preprocessing == fingerprint()
    assert (after.metadata["data_hash"], after.metadata["settings"]) == ("abc", {"steps": 3})
    images, mask = batch()
    same(load_masked_image_model(tmp_path / "back").double()(images, mask), model.double()(images, mask))


def test_a_round_trip_by_timm_loses_the_pretraining_head_alone(tmp_path: Path) -> None:
    path, _ = encoder_file(tmp_path)
    convert(path, tmp_path / "there", "timm")
    before, after = read_checkpoint(path), read_checkpoint(tmp_path / "there")
    assert after.missing == ("mask_token", "lm_head.weight", "lm_head.bias", *CLASSIFYING)
    for name, tensor in after.state.items():
        table = name.endswith("relative_position_bias_table")
        assert torch.equal(tensor, before.state[SHARED_BIAS if table else name])


def test_converting_tells_where_weights_came_from_and_repeats_to_the_byte(tmp_path: Path) -> None:
    path = microsoft_file(tmp_path / "checkpoint-299.pth", microsoft_state(pretraining_model()))
    for name in ("a", "b"):
        convert(path, tmp_path / name, "ecglib")
        convert(path, tmp_path / f"{name}-folder", "huggingface")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a-folder" / name).read_bytes() == (tmp_path / "b-folder" / name).read_bytes()
    metadata = read_checkpoint(tmp_path / "a").metadata
    assert (metadata["converted_from"], metadata["source"]) == ("Microsoft", "checkpoint-299.pth")
    assert "preprocessing" not in metadata
    with pytest.raises(EcglibError, match="'onnx' is unknown: choose one of ecglib, timm, huggingface"):
        convert(path, tmp_path / "c", "onnx")


# --- our own files ---


def test_saved_encoder_comes_back_whole_under_microsofts_names(tmp_path: Path) -> None:
    path, model = encoder_file(tmp_path, data_hash="abc", settings={"steps": 3})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.writer, checkpoint.size) == ("ecglib", "minute")
    assert (checkpoint.metadata["size"], checkpoint.metadata["vocab_size"]) == ("minute", VOCAB)
    assert (checkpoint.metadata["data_hash"], checkpoint.metadata["settings"]) == ("abc", {"steps": 3})
    expected = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    assert checkpoint.state.keys() == expected.keys()
    assert all(torch.equal(tensor, checkpoint.state[name]) for name, tensor in expected.items())


def test_bfloat16_halves_the_file_and_comes_back_as_float32(tmp_path: Path) -> None:
    path, model = encoder_file(tmp_path)
    save_encoder(tmp_path / "half", model, {}, torch.bfloat16)
    whole, half = read_checkpoint(path), read_checkpoint(tmp_path / "half")
    assert (tmp_path / "half").stat().st_size < 0.6 * path.stat().st_size
    for name, tensor in half.state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole.state[name].bfloat16().float())


def test_classifier_of_pretrained_weights_gives_each_block_the_shared_bias(tmp_path: Path) -> None:
    path, model = encoder_file(tmp_path, preprocessing=fingerprint())
    classifier = classifier_from_encoder("minute", path, image_size=IMAGE_SIZE, seed=5)
    images, _ = batch()
    # With per-block copies of the shared bias, the blocks compute what they computed in pretraining.
    seen: list[Any] = []
    for last in (classifier.blocks[-1], model.encoder.blocks[-1]):
        last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = images.double()
    classifier.double()(images)
    model.double().encoder(images)
    assert (seen[0] - seen[1]).abs().max() < 1e-6
    fresh = classifier_from_encoder("minute", None, image_size=IMAGE_SIZE, seed=5)
    head = classifier.get_parameter("head.weight")
    assert torch.equal(head, fresh.get_parameter("head.weight"))
    assert 0 < head.abs().max() <= 0.02 * 0.001
    assert torch.equal(classifier.get_parameter("fc_norm.weight"), torch.ones(WIDTH))


def test_encoder_of_other_images_is_refused_and_an_unknown_one_passes_when_told_so(tmp_path: Path) -> None:
    path, _ = encoder_file(tmp_path, preprocessing=fingerprint(image=ImageSettings(mv_per_row=1.5)))
    with pytest.raises(EcglibError, match=r"drawn otherwise: mv_per_row 1\.5 there, 2\.0 here"):
        classifier_from_encoder("minute", path, image_size=IMAGE_SIZE)
    known = fingerprint(image=ImageSettings(mv_per_row=1.5))
    classifier_from_encoder("minute", path, image_size=IMAGE_SIZE, preprocessing=known)

    foreign = microsoft_file(tmp_path / "foreign.pth", microsoft_state(pretraining_model()))
    with pytest.raises(EcglibError, match="does not say how its images were drawn"):
        classifier_from_encoder("minute", foreign, image_size=IMAGE_SIZE)
    told = classifier_from_encoder("minute", foreign, image_size=IMAGE_SIZE, allow_unknown_preprocessing=True)
    stored = read_checkpoint(foreign).state["blocks.2.mlp.fc1.weight"]
    assert torch.equal(told.get_parameter("blocks.2.mlp.fc1.weight"), stored)


# --- refusals ---


def refusal(act: Callable[[], object], path: Path) -> str:
    with pytest.raises(EcglibError) as caught:
        act()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_another_size_of_network_or_image_is_named_at_its_first_difference(tmp_path: Path) -> None:
    path, _ = encoder_file(tmp_path, preprocessing=fingerprint())

    def ask(size: str, image_size: int) -> str:
        return refusal(lambda: classifier_from_encoder(size, path, image_size=image_size), path)

    holds = "ask for what it holds, width 24, 3 blocks, 2 heads, patches of 16, images of 64 pixels"
    assert ask("other", 64) == f"{path} has width 24, not 16 as other here: {holds}"
    assert ask("minute", 224) == f"{path} has image_size 64, not 224 as minute here: {holds}"
    beit.SIZES["other"] = (24, 2, 2)
    assert "has depth 3, not 2 as other" in ask("other", 64)
    beit.SIZES["other"] = (24, 3, 4)
    assert "has heads 2, not 4 as other" in ask("other", 64)
    torch.save(timm_model(patch_size=32).state_dict(), path)
    beit.SIZES["other"] = (24, 3, 2)
    assert "has patch_size 32, not 16 as other" in ask("other", 64)


def test_a_size_without_a_name_can_be_converted_but_not_built(tmp_path: Path) -> None:
    path, images = tmp_path / "model.pth", batch()[0]
    model = timm_model(embed_dim=32, num_heads=4)
    torch.save(model.state_dict(), path)
    convert(path, tmp_path / "theirs", "huggingface")
    theirs = BeitForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    same(model.double()(images), theirs.double()(images).logits)
    message = refusal(lambda: load_classifier(path), path)
    assert "has width 32, 3 blocks, 4 heads" in message
    assert "a network here is one of heartbeit_nano" in message


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    path, _ = encoder_file(tmp_path)
    assert refusal(lambda: load_masked_image_model(path, vocab_size=512), path) == (
        f"{path} predicts 20 tokens, the tokenizer has 512 codes: "
        "take the tokenizer that it was pretrained with"
    )


def test_a_model_without_the_head_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(timm_model().state_dict(), path)
    assert "no masked-image model: it lacks mask_token" in refusal(
        lambda: load_masked_image_model(path), path
    )
    state = timm_model(global_pool="token", use_fc_norm=False).state_dict()
    torch.save(state, path)
    message = refusal(lambda: load_classifier(path), path)
    assert "no classifier that averages patches: it lacks fc_norm.weight" in message
    torch.save(microsoft_state(pretraining_model()) | {"mask_token": torch.zeros(1, 1, 8)}, path)
    assert "has mask_token of shape (1, 1, 8), not (1, 1, 24)" in refusal(lambda: read_checkpoint(path), path)


def _with(**changes: Any) -> Callable[[], Any]:
    """A timm state with some entries changed, or dropped where the change is None."""
    return lambda: {
        name: tensor
        for name, tensor in (
            timm_model().state_dict() | {k.replace("__", "."): v for k, v in changes.items()}
        ).items()
        if tensor is not None
    }


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "absolute positions": (
        lambda: timm_model(use_abs_pos_emb=True).state_dict(), "absolute positions (pos_embed)",
    ),
    "no positions": (
        lambda: timm_model(use_rel_pos_bias=False).state_dict(),
        "blocks.0.attn.relative_position_bias_table is missing",
    ),
    "no layer scale": (lambda: timm_model(init_values=None).state_dict(), "lacks blocks.0.gamma_1"),
    "other MLP": (lambda: timm_model(mlp_ratio=2).state_dict(), "blocks.0.mlp.fc1.weight of shape (48, 24)"),
    "gated MLP": (
        lambda: timm_model(swiglu_mlp=True).state_dict(), "lacks blocks.0.mlp.fc1.weight",
    ),
    "more in a block": (_with(blocks__1__attn__q_norm=torch.ones(2)), "blocks.1.attn.q_norm, which BEiT's"),
    "a block lost": (
        lambda: {n: t for n, t in timm_model().state_dict().items() if not n.startswith("blocks.1.")},
        "lacks blocks.1.",
    ),
    "one parameter lost": (_with(blocks__2__attn__q_bias=None), "lacks blocks.2.attn.q_bias"),
    "grey images": (lambda: timm_model(in_chans=1).state_dict(), "patch_embed.proj.weight of shape (24, 1"),
    "no square grid": (
        _with(blocks__0__attn__relative_position_bias_table=torch.ones(50, 2)), "50 relative positions",
    ),
    "heads that do not divide": (
        _with(blocks__0__attn__relative_position_bias_table=torch.ones(52, 5)), "5 heads do not divide",
    ),
    "another network": (lambda: nn.Linear(2, 2).state_dict(), "is no BEiT"),
    "a list": (lambda: [torch.ones(2)], "holds a list, not named weights"),
    "nothing": (lambda: {}, "is no BEiT"),
    "scalars": (_with(cls_token=torch.tensor(1.0)), "cls_token is missing or of no use"),
    "empty head": (_with(head__weight=torch.ones(0, 24)), "head.weight is missing or of no use"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_weights_of_another_network_are_refused_and_the_culprit_named(tmp_path: Path, name: str) -> None:
    make, part = WRONG[name]
    torch.save(make(), tmp_path / "model.pth")
    assert part in refusal(lambda: read_checkpoint(tmp_path / "model.pth"), tmp_path / "model.pth")


def test_hugging_faces_two_norms_and_lost_queries_are_refused(tmp_path: Path) -> None:
    model = hugging_face(
        BeitForMaskedImageModeling,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
    )
    path = tmp_path / "model.safetensors"
    model.save_pretrained(tmp_path)
    assert "has two final norms" in refusal(lambda: read_checkpoint(path), path)
    state = load_file(_folder(hugging_face_pretraining(), tmp_path) / "model.safetensors")
    del state["beit.encoder.layer.1.attention.attention.key.weight"]
    save_file(state, path)
    assert "lacks blocks.1.attn.k.weight" in refusal(lambda: read_checkpoint(path), path)


def test_a_folder_that_is_not_of_a_beit_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(lambda: read_checkpoint(tmp_path), tmp_path)
    hugging_face_pretraining().save_pretrained(tmp_path)
    for content, part in (
        ("{", "is not JSON"),
        ('{"model_type": "vit"}', "is not of a BEiT"),
        ("[]", "not of"),
    ):
        (tmp_path / "config.json").write_text(content)
        assert part in refusal(lambda: read_checkpoint(tmp_path), tmp_path / "config.json")


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    path = microsoft_file(
        tmp_path / "checkpoint-299.pth", microsoft_state(pretraining_model()), loss=Planted()
    )
    assert "a file of weights must not run code" in refusal(lambda: read_checkpoint(path), path)
    assert not mark.exists()


def test_what_lies_beside_the_network_is_dropped_and_listed(tmp_path: Path) -> None:
    state = microsoft_state(pretraining_model()) | {"cls_pt_layers.0.norm1.weight": torch.ones(24)}
    torch.save({"state_dict": state, "version": "2"}, tmp_path / "model.pth")
    dropped = ("version", "rel_pos_bias.relative_position_index", "cls_pt_layers.0.norm1.weight")
    assert read_checkpoint(tmp_path / "model.pth").dropped == dropped


def test_report_says_what_the_file_is(tmp_path: Path) -> None:
    path, _ = encoder_file(tmp_path)
    assert read_checkpoint(path).report().splitlines() == [
        f"{path}: masked-image model of ecglib, width 24, 3 blocks, 2 heads, patches of 16, "
        "images of 64 pixels, 20 tokens",
        "dropped: nothing",
        "missing: fc_norm.weight, fc_norm.bias, head.weight, head.bias",
    ]
