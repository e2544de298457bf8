"""Attention computed openly is timm's own, and its distances are those worked by hand."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.beit import Beit

from ecglib import beit
from ecglib.attention import attention_distances, attention_weights, even_distances, mean_distances
from ecglib.beit import make_encoder


@pytest.fixture(scope="module", autouse=True)
def _minute_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(beit.SIZES, "minute", (24, 3, 2))
        yield


def encoder(shared_bias: bool) -> Beit:
    """Three layers on 4 x 4 patches; weights so large that attention is far from even."""
    made = make_encoder("minute", image_size=64, shared_bias=shared_bias, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "qkv" in name or "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return made


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


@pytest.mark.parametrize("shared_bias", [True, False])
def test_weights_are_those_by_which_timm_mixes_the_values(shared_bias: bool) -> None:
    network = encoder(shared_bias)
    attention: Any = network.get_submodule("blocks.1.attn")
    tokens = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(3))
    shared: Any = network.rel_pos_bias
    assert (shared is not None) == shared_bias
    bias = shared() if shared_bias else None
    with torch.inference_mode():
        weights = attention_weights(attention, tokens, bias)
        values = tokens @ attention.qkv.weight[48:].T + attention.v_bias
        mixed = weights @ values.unflatten(2, (2, 12)).transpose(1, 2)
        ours = attention.proj(mixed.transpose(1, 2).flatten(2))
        theirs = attention(tokens, shared_rel_pos_bias=bias)
    assert weights.shape == (2, 2, 17, 17)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 17))
    assert weights.max() > 0.3  # far from even: 1/17
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_even_attention_is_as_far_as_the_grid_says() -> None:
    # Mean of |i - j| over all pairs of 0..g-1 is (g^2 - 1) / 3g.
    for grid in (1, 2, 14):
        even = even_distances(grid)
        assert even["time"] == even["leads"] == pytest.approx((grid**2 - 1) / (3 * grid))
    # Two by two: to itself 0, to its two neighbours 1, over the corner the root of 2.
    assert even_distances(2)["distance"] == pytest.approx((0 + 1 + 1 + 2**0.5) / 4)


def test_distances_of_heads_that_look_at_one_patch() -> None:
    patches = np.arange(16).reshape(4, 4)
    weights = np.zeros((1, 3, 16, 16))
    weights[0, 0, patches, patches] = 0.25  # itself; the class token has the rest
    weights[0, 1, patches[:, :-1], patches[:, 1:]] = 1  # the next in time ...
    weights[0, 1, patches[:, -1], patches[:, 0]] = 1  # ... and from the end to the beginning, 3 away
    weights[0, 2, patches, np.roll(patches, 2, axis=0)] = 1  # always two rows up or down
    found = mean_distances(weights)
    assert found == pytest.approx(np.array([[0, 0, 0], [1.5, 1.5, 0], [2, 0, 2]]))


@pytest.mark.parametrize("shared_bias", [True, False])
def test_a_network_without_opinions_attends_evenly(shared_bias: bool) -> None:
    network = encoder(shared_bias)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attn.qkv" in name or "relative_position_bias" in name or "_bias" in name:
                parameter.zero_()
    table = attention_distances(network, pixels())
    assert table["layer"].tolist() == [1, 1, 2, 2, 3, 3]
    assert table["head"].tolist() == [1, 2] * 3
    for name, value in even_distances(4).items():
        assert table[name].to_numpy() == pytest.approx(np.full(6, value), rel=1e-5)


@pytest.mark.parametrize("shared_bias", [True, False])
def test_a_bias_towards_the_same_row_keeps_attention_in_its_lead(shared_bias: bool) -> None:
    network = encoder(shared_bias)
    state = network.state_dict()
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        table = torch.full_like(state[name], -50.0)
        table[3 * 7 : 4 * 7] = 0  # offsets (0, any) of the 7 x 7 ones; the last three are the class token's
        state[name] = table
    network.load_state_dict(state)
    table = attention_distances(network, pixels())
    assert (table.leads < 1e-3).all()
    assert (table.time > 0.2).all()
    assert table.distance.to_numpy() == pytest.approx(table.time.to_numpy(), abs=1e-3)


def test_looking_leaves_the_network_as_it_was() -> None:
    network = encoder(True)
    before = network.forward_features(torch.zeros(1, 3, 64, 64))
    attention_distances(network, pixels())
    assert torch.equal(network.forward_features(torch.zeros(1, 3, 64, 64)), before)
    assert not any(module._forward_pre_hooks for module in network.modules())
