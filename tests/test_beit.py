"""The network against Hugging Face's BEiT, its published size, and its random start."""

import pytest
import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling

from ecglib import beit
from ecglib.beit import (
    MaskedImageModel,
    make_encoder,
    normalise,
    reproducible,
)
from ecglib.checkpoints import classifier_from_encoder
from ecglib.errors import EcglibError

IMAGE_SIZE, PATCHES, VOCAB = 64, 16, 20


@pytest.fixture(autouse=True)
def _minute_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (24, 3, 2))
    monkeypatch.setitem(beit.SIZES, "other", (16, 2, 2))


def small_model(seed: int = 0) -> MaskedImageModel:
    return MaskedImageModel("minute", VOCAB, image_size=IMAGE_SIZE, seed=seed)


def shake(model: nn.Module, seed: int = 1) -> None:
    """Move every parameter, so that zeros and ones at the start hide no mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def batch(n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand((n, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator) * 2 - 1
    return images, torch.rand((n, PATCHES), generator=generator) < 0.4


def hugging_face_config(**changes: object) -> BeitConfig:
    width, depth, heads = beit.SIZES["minute"]
    settings = {
        "vocab_size": VOCAB, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "intermediate_size": 4 * width, "image_size": IMAGE_SIZE, "layer_norm_eps": 1e-6, "drop_path_rate": 0,
    }  # fmt: skip
    return BeitConfig(**settings | changes)  # pyright: ignore[reportArgumentType]


RENAMED = {
    "cls_token": "beit.embeddings.cls_token",
    "mask_token": "beit.embeddings.mask_token",
    "patch_embed.proj": "beit.embeddings.patch_embeddings.projection",
    "rel_pos_bias": "beit.shared_position_bias",
    "blocks": "beit.layers",
    "attn.relative_position_bias_table": "relative_position_bias.relative_position_bias_table",
    "attn.proj": "attention.o_proj",
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "gamma_": "lambda_",
    "fc_norm": "beit.pooler.layernorm",
    "lm_head": "lm_head",
    "head": "classifier",
}


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Microsoft's and timm's parameter names to those of transformers 5."""
    mapped = {}
    for name, tensor in state.items():
        name = "layernorm" + name[4:] if name.startswith("norm.") else name
        for old, new in RENAMED.items():
            if name.startswith(old) or f".{old}" in name:
                name = name.replace(old, new, 1)
                if old == "lm_head":
                    break
        if ".attn.qkv.weight" in name:
            for part, weight in zip("qkv", tensor.chunk(3), strict=True):
                mapped[name.replace("attn.qkv", f"attention.{part}_proj")] = weight
        else:
            mapped[name] = tensor
    return mapped


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def hugging_face_twin(model: MaskedImageModel) -> BeitForMaskedImageModeling:
    theirs = BeitForMaskedImageModeling(
        hugging_face_config(
            use_mask_token=True, use_shared_relative_position_bias=True, use_mean_pooling=True
        )
    )
    names = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(to_hugging_face(names))
    return theirs


def test_masked_image_step_agrees_with_hugging_face() -> None:
    ours = small_model()
    shake(ours)
    theirs = hugging_face_twin(ours)
    images, mask = batch()
    targets = torch.arange(int(mask.sum())) % VOCAB

    logits = ours(images, mask)
    loss = nn.functional.cross_entropy(logits, targets)
    reference = theirs(images, bool_masked_pos=mask, labels=targets)
    loss.backward()
    reference.loss.backward()

    assert logits.abs().max() > 1  # the comparison is not of zeros
    assert difference(logits, reference.logits[mask]) < 1e-5
    assert difference(loss, reference.loss) < 1e-5
    gradients = {name.removeprefix("encoder."): p.grad for name, p in ours.named_parameters()}
    mapped = to_hugging_face({name: g for name, g in gradients.items() if g is not None})
    assert len(mapped) == len(list(theirs.parameters()))
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        assert difference(mapped[name], parameter.grad) < 1e-5, name


def test_classifier_agrees_with_hugging_face() -> None:
    ours = classifier_from_encoder("minute", None, image_size=IMAGE_SIZE)
    shake(ours)
    theirs = BeitForImageClassification(hugging_face_config(use_relative_position_bias=True, num_labels=2))
    theirs.load_state_dict(to_hugging_face(ours.state_dict()))
    images, _ = batch()
    logits = ours(images)
    assert logits.abs().max() > 0.1
    assert difference(logits, theirs(images).logits) < 1e-5


def test_base_has_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        model = MaskedImageModel("heartbeit_base", 8192)
        classifier = classifier_from_encoder("heartbeit_base", None)
    assert sum(p.numel() for p in model.parameters()) == 91_965_776
    assert sum(p.numel() for p in classifier.parameters()) == 85_763_522
    assert model.encoder.pos_embed is None
    assert [name for name, _ in model.named_parameters() if "relative_position_bias_table" in name] == [
        "encoder.rel_pos_bias.relative_position_bias_table"
    ]


def test_one_channel_stands_for_three_equal_ones() -> None:
    model = small_model()
    shake(model)
    images, mask = batch()
    one = model(images[:, :1], mask)
    assert difference(one, model(images[:, :1].expand(-1, 3, -1, -1), mask)) < 1e-5
    assert difference(one, model(images, mask)) > 1e-2


@pytest.mark.parametrize("training", [False, True])
def test_drop_path_takes_images_out_of_a_branch_as_timms_blocks_do(training: bool) -> None:
    model = MaskedImageModel("minute", VOCAB, image_size=IMAGE_SIZE, drop_path=0.6).train(training)
    shake(model)
    images, mask = batch(6)
    torch.manual_seed(0)
    logits = model(images, mask)
    encoder = model.encoder
    x = torch.where(mask.unsqueeze(-1), model.mask_token, encoder.patch_embed(images))
    x = torch.cat((encoder.cls_token.expand(6, -1, -1), x), dim=1)
    bias = encoder.get_submodule("rel_pos_bias")()
    torch.manual_seed(0)
    for block in encoder.blocks:
        x = block(x, shared_rel_pos_bias=bias)
    expected = model.lm_head(encoder.norm(x[:, 1:][mask]))
    assert logits.abs().max() > 1
    assert difference(logits, expected) < 2e-5


def test_gradients_of_a_bfloat16_batch_are_the_same_every_time_on_two_threads() -> None:
    model = MaskedImageModel("heartbeit_nano", VOCAB)
    generator = torch.Generator().manual_seed(0)
    images, mask = (
        torch.rand((4, 1, 224, 224), generator=generator),
        torch.rand((4, 196), generator=generator),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(3):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images, mask < 0.4)
            logits.float().logsumexp(1).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.set_num_threads(threads)
    assert len(gradients[0]) == len(list(model.parameters()))
    for again in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], again, strict=True))


def test_hidden_patches_do_not_reach_the_network() -> None:
    model = small_model()
    shake(model)
    images, mask = batch()
    pixels = mask.reshape(-1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    changed = torch.where(pixels, -images, images)
    assert torch.equal(model(images, mask), model(changed, mask))
    assert not torch.equal(model(images, mask), model(torch.where(pixels, images, -images), mask))


def test_weights_start_as_beit_starts_them() -> None:
    encoder = make_encoder("heartbeit_tiny", shared_bias=True, seed=3)
    state = encoder.state_dict()
    qkv = state["blocks.11.attn.qkv.weight"]
    cut_normal = 0.02 * 0.5396  # standard deviation of a normal cut at one deviation
    assert qkv.abs().max() <= 0.02
    assert qkv.std().item() == pytest.approx(cut_normal, rel=0.02)
    assert state["patch_embed.proj.weight"].std().item() == pytest.approx(cut_normal, rel=0.02)
    for i in (0, 5, 11):
        for name in ("attn.proj", "mlp.fc2"):
            std = state[f"blocks.{i}.{name}.weight"].std().item()
            assert std == pytest.approx(cut_normal / (2 * (i + 1)) ** 0.5, rel=0.02)
    biases = [t for name, t in state.items() if name.endswith(("bias", "bias_table"))]
    assert all(not b.any() for b in biases)
    assert (state["blocks.0.gamma_1"] == 0.1).all()


def test_seed_alone_decides_the_weights() -> None:
    first, again, other = small_model(0), small_model(0), small_model(1)
    torch.manual_seed(99)
    state = small_model(0).state_dict()
    before = torch.get_rng_state()
    classifier = classifier_from_encoder("minute", None, image_size=IMAGE_SIZE, seed=0).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(t, state[name]) for name, t in first.state_dict().items())
    assert all(torch.equal(t, state[name]) for name, t in again.state_dict().items())
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    # The random control is the very network that pretraining starts from.
    assert torch.equal(classifier["blocks.2.mlp.fc1.weight"], state["encoder.blocks.2.mlp.fc1.weight"])


def test_gradients_of_the_bias_are_the_same_every_time_on_two_threads() -> None:
    encoder = make_encoder("heartbeit_nano", shared_bias=True)
    table = encoder.get_parameter("rel_pos_bias.relative_position_bias_table")
    gradient = torch.randn((3, 197, 197), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with reproducible(torch.device("cpu")):
            bias = [encoder.get_submodule("rel_pos_bias")() for _ in range(40)]
            gradients = [torch.autograd.grad(b, table, gradient)[0] for b in bias]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(g, gradients[0]) for g in gradients)
    assert not torch.are_deterministic_algorithms_enabled()


def test_normalised_pixels_run_from_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1)
    images = normalise(pixels)
    assert images.shape == (3, 1, 1, 1)
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]), atol=1e-6)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(EcglibError, match=r"heartbeit_huge.*heartbeit_nano"):
        make_encoder("heartbeit_huge", shared_bias=True)
    with pytest.raises(EcglibError, match="image_size must be a multiple of 16 pixels, not 100"):
        make_encoder("minute", image_size=100, shared_bias=True)
