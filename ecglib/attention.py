"""How far a BEiT encoder looks: the distance from a patch to what it attends to, layer by layer.

The mean attention distance of Dosovitskiy et al. 2021 (arXiv 2010.11929, fig. 7), also apart in time and
across leads.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.models.beit import Attention, Beit
from torch import Tensor
from torch.nn import functional as F

from ecglib.beit import normalise

DISTANCES = ("distance", "time", "leads")


def attention_weights(attention: Attention, x: Tensor, shared_bias: Tensor | None = None) -> Tensor:
    """Weights (n, heads, tokens, tokens) of timm's `attention` for tokens (n, tokens, width); rows sum to 1.

    shared_bias: the relative-position bias of all blocks, where they share one; a block's own is added too.
    """
    module: Any = attention
    bias = torch.cat((module.q_bias, module.k_bias, module.v_bias))
    q, k, _ = F.linear(x, module.qkv.weight, bias).unflatten(2, (3, module.num_heads, -1)).unbind(2)
    scores = module.scale * torch.einsum("nqhd,nkhd->nhqk", q, k)
    if module.relative_position_bias_table is not None:
        scores = scores + module._get_rel_pos_bias()
    if shared_bias is not None:
        scores = scores + shared_bias
    return scores.softmax(-1)


def mean_distances(weights: np.ndarray) -> np.ndarray:
    """Mean distance from query to key, weighted by attention (n, heads, patches, patches): (heads, 3).

    In patches, over all images and queries; the columns are DISTANCES: as the crow flies, in time, across
    leads. Each query's weights are divided by their sum, as the class token's share is left out.
    """
    grid = round(weights.shape[-1] ** 0.5)
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    time, leads = (np.abs(place[:, None] - place).astype(float) for place in (columns, rows))
    shares = weights / weights.sum(axis=-1, keepdims=True)
    return np.stack([(shares * d).sum(-1).mean((0, 2)) for d in (np.hypot(time, leads), time, leads)], axis=1)


def even_distances(grid: int = 14) -> dict[str, float]:
    """`mean_distances` of a head that attends to all patches alike."""
    even = mean_distances(np.ones((1, 1, grid**2, grid**2)))[0]
    return dict(zip(DISTANCES, even.tolist(), strict=True))


@torch.inference_mode()
def attention_distances(encoder: Beit, pixels: np.ndarray) -> pd.DataFrame:
    """Distances in patches, one row a layer and head: layer and head (from 1), distance, time, leads.

    pixels: whole images uint8 (n, h, w), nothing hidden; a few are enough. Works with a bias shared by all
    blocks and with one for each.
    """
    rows = []

    def measure(attention: Any, inputs: tuple, keywords: dict) -> None:
        x, shared_bias = inputs[0], keywords.get("shared_rel_pos_bias")
        weights = attention_weights(attention, x, shared_bias)[:, :, 1:, 1:].double().numpy()
        rows.append(mean_distances(weights))

    hooks = [
        module.register_forward_pre_hook(measure, with_kwargs=True)
        for module in encoder.modules()
        if isinstance(module, Attention)
    ]
    try:
        encoder.forward_features(normalise(torch.from_numpy(pixels)).expand(-1, 3, -1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    table = pd.DataFrame(np.concatenate(rows), columns=pd.Index(DISTANCES))
    heads = len(rows[0])
    table.insert(0, "layer", 1 + np.arange(len(table)) // heads)
    table.insert(1, "head", 1 + np.arange(len(table)) % heads)
    return table
