"""The BEiT network: masked-image model for pretraining, encoder and classifier for fine-tuning.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers" (arXiv 2106.08254), on the encoder of timm
(timm.models.beit).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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

        images: float (n, 3, height, width), normalised. mask: bool (n, patches), True = hidden; on the CPU it
        spares a CUDA device the wait for the number of hidden patches.
        """
        hidden_at = mask.flatten().nonzero().squeeze(1).to(images.device, non_blocking=True)
        mask = mask.to(images.device, non_blocking=True)
        encoder = self.encoder
        x = encoder.patch_embed(images)  # (n, patches, width)
        x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        x = torch.cat((encoder.cls_token.expand(len(x), -1, -1), x), dim=1)
        bias = encoder.rel_pos_bias() if encoder.rel_pos_bias is not None else None
        for block in encoder.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        x = x[:, 1:].flatten(0, 1).index_select(0, hidden_at)  # (n_masked, width)
        return self.lm_head(encoder.norm(x))


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (n, h, w), 0..255, as float (n, 3, h, w) in -1..1: BEiT's mean and standard deviation of 0.5."""
    return (pixels.to(torch.float32) / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


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
