"""The BEiT network: masked-image model for pretraining, encoder and classifier for fine-tuning.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers" (arXiv 2106.08254), on the encoder of timm
(timm.models.beit).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.beit import Attention, Beit
from torch import Tensor, nn

from ecglib.errors import EcglibError
from ecglib.masking import PATCH_SIZE

# name: (width, depth, heads); `heartbeit_base` is the paper's.
SIZES: dict[str, tuple[int, int, int]] = {
    "heartbeit_nano": (96, 4, 3),
    "heartbeit_tiny": (192, 12, 3),
    "heartbeit_base": (768, 12, 12),
}
LAYER_SCALE = 0.1  # BEiT's starting value
INIT_STD, HEAD_SCALE = 0.02, 0.001  # the head starts from logits near zero
SHARED_BIAS = "rel_pos_bias.relative_position_bias_table"  # of all blocks, in pretraining


def make_encoder(
    size: str,
    *,
    image_size: int = 224,
    drop_path: float = 0.0,
    shared_bias: bool,
    n_classes: int = 0,
    seed: int = 0,
) -> Beit:
    """BEiT encoder without absolute positions, its weights drawn from `seed` as BEiT draws them.

    shared_bias: one relative-position bias for all blocks (pretraining), else one per block (fine-tuning).
    n_classes: 0 gives normalised tokens (n, 1 + patches, width); otherwise the patches are averaged,
    normalised (`fc_norm`) and classified: (n, n_classes).
    Raises EcglibError for an unknown size and for an image that patches of 16 pixels do not tile.
    """
    if size not in SIZES:
        raise EcglibError(f"size {size!r} is unknown: choose one of {', '.join(SIZES)}")
    if image_size % PATCH_SIZE or image_size <= 0:
        raise EcglibError(f"image_size must be a multiple of {PATCH_SIZE} pixels, not {image_size}")
    width, depth, heads = SIZES[size]
    with torch.random.fork_rng(devices=[]):  # timm draws weights too; `_initialise` replaces them
        encoder = Beit(
            img_size=image_size,
            patch_size=PATCH_SIZE,
            num_classes=n_classes,
            global_pool="avg" if n_classes else "",
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            drop_path_rate=drop_path,
            init_values=LAYER_SCALE,
            use_abs_pos_emb=False,
            use_rel_pos_bias=not shared_bias,
            use_shared_rel_pos_bias=shared_bias,
        )
    for module in encoder.modules():
        if isinstance(module, Attention):
            # On a CPU the fused kernel has no gradient for the bias and training takes 1.2-1.4 times as long.
            module.fused_attn = torch.cuda.is_available()
    _initialise(encoder, torch.Generator("cpu").manual_seed(seed))
    return encoder


@torch.no_grad()
def _initialise(encoder: Beit, generator: torch.Generator) -> None:
    """Weights as in Microsoft's modeling_pretrain.py: normal, cut at one deviation, smaller with depth.

    The head is drawn last, so a classifier and a masked-image model of one seed share their encoder.
    """
    _draw(encoder.cls_token, generator)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "head":
            _draw(module.weight, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for i, block in enumerate(encoder.blocks, start=1):
        block.get_parameter("attn.proj.weight").div_((2 * i) ** 0.5)
        block.get_parameter("mlp.fc2.weight").div_((2 * i) ** 0.5)
    if isinstance(encoder.head, nn.Linear):
        _draw(encoder.head.weight, generator)
        encoder.head.weight.mul_(HEAD_SCALE)
        nn.init.zeros_(encoder.head.bias)


def _draw(weight: Tensor, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD, generator=generator)


class MaskedImageModel(nn.Module):
    """Predicts the tokens of hidden patches: encoder, mask token and a linear head over the vocabulary."""

    def __init__(
        self, size: str, vocab_size: int, *, image_size: int = 224, drop_path: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.size, self.vocab_size, self.image_size = size, vocab_size, image_size
        self.encoder = make_encoder(
            size, image_size=image_size, drop_path=drop_path, shared_bias=True, seed=seed
        )
        width = self.encoder.embed_dim
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.lm_head = nn.Linear(width, vocab_size)
        generator = torch.Generator("cpu").manual_seed(seed + 1)
        with torch.no_grad():
            _draw(self.mask_token, generator)
            _draw(self.lm_head.weight, generator)
            nn.init.zeros_(self.lm_head.bias)

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Logits (n_masked, vocab_size) of the hidden patches, in the order of `mask.flatten()`.

        images: float (n, 1 or 3, height, width), normalised; one channel stands for three equal ones, at a
        third of the cost. mask: bool (n, patches), True = hidden; on the CPU it spares a CUDA device the wait
        for the number of hidden patches.
        """
        hidden = _Hidden.find(mask, images.device)
        mask = mask.to(images.device, non_blocking=True)
        encoder = self.encoder
        x = _embed_patches(encoder, images)
        x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        x = torch.cat((encoder.cls_token.expand(len(x), -1, -1), x), dim=1)
        bias = _relative_position_bias(encoder)
        for block in encoder.blocks[:-1]:
            x = _run_block(block, x, bias)
        x = _run_block(encoder.blocks[-1], x, bias, hidden)
        x = x.flatten(0, 1).index_select(0, hidden.real)  # (n_masked, width)
        return self.lm_head(encoder.norm(x))


@dataclass(frozen=True)
class _Hidden:
    """Where the hidden patches are among the tokens, as a rectangle: rows = those of the fullest mask.

    tokens: int (n, rows), counted over the whole batch, short rows filled up with the class token.
    real: int (n_masked,), the places in `tokens.flatten()` that are not filling.
    """

    tokens: Tensor
    real: Tensor
    n_tokens: int

    @classmethod
    def find(cls, mask: Tensor, device: torch.device) -> "_Hidden":
        n_images, n_patches = mask.shape
        counts = mask.sum(1, keepdim=True)
        rows = int(counts.max())
        is_real = torch.arange(rows, device=mask.device) < counts
        # A stable sort puts the hidden patches first and leaves their order.
        places = 1 + torch.argsort(~mask, dim=1, stable=True)[:, :rows]
        first = (1 + n_patches) * torch.arange(n_images, device=mask.device).unsqueeze(1)
        tokens = first + torch.where(is_real, places, 0)
        real = is_real.flatten().nonzero().squeeze(1)
        return cls(tokens.to(device, non_blocking=True), real.to(device, non_blocking=True), 1 + n_patches)

    def select(self, x: Tensor) -> Tensor:
        """Of tokens (n, 1 + patches, width) those that are hidden: (n, rows, width)."""
        return x.flatten(0, 1).index_select(0, self.tokens.flatten()).unflatten(0, self.tokens.shape)

    def select_bias(self, bias: Tensor) -> Tensor:
        """Of a bias (1, heads, tokens, tokens) the rows of hidden tokens: (n, heads, rows, tokens)."""
        queries = (self.tokens % self.n_tokens).flatten()
        by_query = bias[0].transpose(0, 1).index_select(0, queries)
        return by_query.unflatten(0, self.tokens.shape).transpose(1, 2)


def _embed_patches(encoder: Beit, images: Tensor) -> Tensor:
    """Patches of images (n, 1 or 3, h, w) as vectors (n, patches, width)."""
    weight, bias = (encoder.get_parameter(f"patch_embed.proj.{name}") for name in ("weight", "bias"))
    if images.shape[1] == 1:
        weight = weight.sum(1, keepdim=True)
    # Patches side by side and one matrix product: on a CPU several times as fast as the convolution.
    patches = images.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(patches, weight.flatten(1), bias)


def _relative_position_bias(encoder: Beit) -> Tensor:
    """The bias of all blocks (1, heads, 1 + patches, 1 + patches).

    timm's, but for the backward pass, which on a CPU is the same in every run and faster.
    """
    table = encoder.get_parameter(SHARED_BIAS)  # (distances, heads)
    index = encoder.get_buffer("rel_pos_bias.relative_position_index")
    rows = index.flatten().expand(table.shape[1], -1)
    return table.t().gather(1, rows).unflatten(1, index.shape).unsqueeze(0)


def _run_block(block: Any, x: Tensor, bias: Tensor, hidden: _Hidden | None = None) -> Tensor:
    """timm's `Block.forward`, (n, 1 + patches, width) to the same; with `hidden` to (n, rows, width).

    The layer scales are multiplied into the weights: there are fewer of them than of activations.
    """
    attn, mlp = block.attn, block.mlp
    width, heads = x.shape[-1], attn.num_heads
    weight, offset = attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    y = block.norm1(x)
    if hidden is None:
        q, k, v = F.linear(y, weight, offset).unflatten(2, (3, heads, -1)).unbind(2)
    else:  # nobody reads the other tokens of the last block
        k, v = F.linear(y, weight[width:], offset[width:]).unflatten(2, (2, heads, -1)).unbind(2)
        x, y, bias = hidden.select(x), hidden.select(y), hidden.select_bias(bias)
        q = F.linear(y, weight[:width], offset[:width]).unflatten(2, (heads, -1))
    x = x + block.drop_path1(_scaled_linear(attn.proj, block.gamma_1, _attend(q, k, v, bias)))
    y = F.gelu(mlp.fc1(block.norm2(x)))
    return x + block.drop_path2(_scaled_linear(mlp.fc2, block.gamma_2, y))


def _scaled_linear(linear: nn.Linear, gamma: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, gamma.unsqueeze(1) * linear.weight, gamma * linear.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with a learnt bias: q (n, rows, heads, d), k and v (n, tokens, heads, d) -> (n, rows, width).

    bias: (1 or n, heads, rows, tokens).
    """
    if q.device.type == "cpu":
        return cast(Tensor, _CpuAttention.apply(q, k, v, bias))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype).expand(len(q), -1, -1, -1))
    return out.transpose(1, 2).flatten(2)


class _CpuAttention(torch.autograd.Function):
    """Attention for processors, where torch's fused kernel has no gradient for the bias.

    The matrix product adds to the bias in place. All is in the number format of q, k and v but the sum of the
    bias's gradient over the batch, which is in the bias's.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        (n, rows, heads, d), tokens = q.shape, k.shape[1]
        q, k, v = (_heads_first(part) for part in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            scores = q.new_empty(n, heads, rows, tokens).copy_(bias).flatten(0, 1)
            p = torch.softmax(scores.baddbmm_(q, k.mT, alpha=d**-0.5), dim=-1)
            out = torch.bmm(p, v)
        ctx.save_for_backward(q, k, v, p)
        ctx.n, ctx.biases, ctx.bias_dtype = n, len(bias), bias.dtype
        return out.unflatten(0, (n, heads)).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, p = ctx.saved_tensors
        d = q.shape[-1]
        grad = _heads_first(grads[0].unflatten(2, (-1, d)))
        grad_v = torch.bmm(p.mT, grad)
        grad_s = torch.ops.aten._softmax_backward_data(torch.bmm(grad, v.mT), p, -1, p.dtype)
        grad_q, grad_k = torch.bmm(grad_s, k).mul_(d**-0.5), torch.bmm(grad_s.mT, q).mul_(d**-0.5)
        by_image = grad_s.unflatten(0, (ctx.n, -1))
        shared = ctx.biases == 1
        grad_bias = by_image.sum(0, True, dtype=ctx.bias_dtype) if shared else by_image.to(ctx.bias_dtype)
        grad_qkv = (part.unflatten(0, (ctx.n, -1)).transpose(1, 2) for part in (grad_q, grad_k, grad_v))
        return *grad_qkv, grad_bias


def _heads_first(part: Tensor) -> Tensor:
    """(n, tokens, heads, d) -> (n * heads, tokens, d)."""
    return part.transpose(1, 2).contiguous().flatten(0, 1)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (n, h, w), 0..255, as float (n, 1, h, w) in -1..1: BEiT's mean and standard deviation of 0.5."""
    return (pixels.to(torch.float32) / 127.5 - 1).unsqueeze(1)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """On a CPU, make gradients the same in every run: those of the bias tables are otherwise a threads' race.

    (Indexing adds them up by atomic operations where there are several threads; CUDA sorts them first.)
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # would only cost time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
