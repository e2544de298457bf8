"""The dVAE that turns an ECG image into 196 words: OpenAI's encoder and decoder, trained on ECG images.

Settings, training, reading and judging are the same for the second kind of tokenizer (`ecglib.patchbook`).
Networks: the classes of the `dall_e` package (Ramesh et al. 2021, arXiv 2102.12092), as in BEiT on 112 x 112
copies with 14 x 14 tokens. The training is ours: DALL-E's needs millions of photographs, this one a minute.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from dall_e import Decoder, Encoder, map_pixels, unmap_pixels
from dall_e.decoder import DecoderBlock
from dall_e.utils import Conv2d
from torch import Tensor
from torch.nn import functional as F

from ecglib.errors import EcglibError
from ecglib.patchbook import (
    CHUNK_SIZE,
    FILE_NAME,
    GRID,
    IMAGE_SIZE,
    PatchBook,
    brightness,
    learn_codes,
    require_codes,
)
from ecglib.precision import autocast, resolve_precision
from ecglib.progress import track
from ecglib.provenance import atomic_path, commit
from ecglib.tensorfiles import read_tensors, write_tensors

KINDS = ("dvae", "kmeans")
# What pretraining demands on held-out images; below it, guessing tokens teaches nothing.
MIN_CODES, MIN_PERPLEXITY, MAX_COMMONEST_SHARE, MAX_ERROR_RATIO = 64, 32, 0.3, 0.9
CLUSTER_IMAGES, CLUSTER_ROUNDS = 256, 10
FIRST_IMAGES = 64  # from which k-means takes its first codes; more if there are many codes
CALM = 0.1  # of dall_e's random weights of the last layer
SHARPNESS = 16.0  # first logits: -SHARPNESS x squared distance to a code / its mean; 4 to 64 train alike


class Images(Protocol):
    """What training needs of `ecglib.shards.ImageStore`."""

    @property
    def data_hash(self) -> str:
        """Hash of the images."""
        ...

    def pixels(self, rows: Any) -> np.ndarray:
        """Images uint8 (n, 224, 224)."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Kind, size and training of the tokenizer. EcglibError for a value that cannot work."""

    kind: str = "dvae"  # dvae (as in the paper), or kmeans: the nearest of mean patches, in seconds
    n_hid: int = 16  # width of the dVAE: channels of its first and last layers; a multiple of 4 (DALL-E: 256)
    n_blk_per_group: int = 1  # blocks in each of the four groups of layers (DALL-E: 2)
    vocab_size: int = 512  # number of codes in the codebook (DALL-E: 8,192)
    steps: int = 800  # training steps
    batch_size: int = 8  # images in a step; many small steps teach the decoder more than few large ones
    learning_rate: float = 1e-2  # largest learning rate of the decoder, after warm-up
    encoder_learning_rate: float = 1e-3  # largest learning rate of the encoder; 1e-2 kills the codebook
    temperature_start: float = 1.0  # temperature of the Gumbel softmax at the first step
    temperature_end: float = 0.5  # temperature of the Gumbel softmax at the last step
    kl_weight: float = 0.1  # weight of the pull towards using all codes equally often
    ink_weight: float = 0.0  # extra weight of the error where there is ink, in units of the paper's weight
    precision: str = "auto"  # number format: auto, bf16-mixed or 32-true
    seed: int = 0  # seed of weights, codebook, order of images and Gumbel noise

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EcglibError(f"kind={self.kind}: must be one of {', '.join(KINDS)}")
        if self.n_hid < 8 or self.n_hid % 4:
            raise EcglibError(f"n_hid={self.n_hid}: must be a multiple of 4, at least 8")
        if not MIN_CODES <= self.vocab_size <= 2**16:
            raise EcglibError(f"vocab_size={self.vocab_size}: must lie in {MIN_CODES}..65536")
        for name in ("n_blk_per_group", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise EcglibError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("learning_rate", "encoder_learning_rate", "temperature_start", "temperature_end"):
            if not 0 < getattr(self, name) < math.inf:
                raise EcglibError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("kl_weight", "ink_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EcglibError(f"{name}={getattr(self, name)}: must be 0 or above")
        if self.kind == "kmeans" and self.batch_size * GRID**2 < self.vocab_size:
            least = math.ceil(self.vocab_size / GRID**2)
            raise EcglibError(f"batch_size={self.batch_size}: must be at least {least}, a patch a code")
        resolve_precision(self.precision)


class Tokenizer:
    """A trained dVAE: images to token ids and, where there is a decoder, back, in float32."""

    def __init__(self, encoder: Encoder, decoder: Decoder | None, metadata: Mapping[str, Any]) -> None:
        self.encoder, self.metadata = encoder.eval(), metadata
        self.decoder = decoder.eval() if decoder else None

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write tokenizer.safetensors in a number format; bfloat16 halves the file and moves some tokens."""
        networks = {"encoder": self.encoder, "decoder": self.decoder}
        weights = {
            f"{prefix}.{name}": tensor
            for prefix, network in networks.items()
            if network is not None
            for name, tensor in network.state_dict().items()
        }
        write_tensors(directory / FILE_NAME, weights, self.metadata, dtype)

    @property
    def vocab_size(self) -> int:
        """Number of codes in the codebook."""
        return self.encoder.vocab_size

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, 224, 224) -> tokens uint16 (n, 196): each patch's code of largest logit."""
        tokens = np.empty((len(pixels), GRID * GRID), np.uint16)
        for start in range(0, len(pixels), CHUNK_SIZE):
            chunk = pixels[start : start + CHUNK_SIZE]
            # Always whole chunks: how many images come together must not change the last bit of a logit.
            images = F.pad(brightness(chunk), (0, 0, 0, 0, 0, 0, 0, CHUNK_SIZE - len(chunk)))
            images = map_pixels(images).to(_device())
            found = self.encoder(images.expand(-1, 3, -1, -1)).argmax(1).flatten(1)[: len(chunk)]
            tokens[start : start + len(chunk)] = found.cpu().numpy()
        return tokens

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, 196) -> brightness float32 (n, 112, 112), 0 = ink, 1 = paper."""
        if self.decoder is None:
            raise EcglibError("this tokenizer has no decoder: it turns images into tokens, not back")
        require_codes(tokens, self.vocab_size)
        images = np.empty((len(tokens), IMAGE_SIZE // 2, IMAGE_SIZE // 2), np.float32)
        for start in range(0, len(tokens), CHUNK_SIZE):
            ids = torch.from_numpy(np.asarray(tokens[start : start + CHUNK_SIZE], np.int64))
            codes = _one_hot(ids.view(-1, GRID, GRID), self.vocab_size).to(_device())
            copy = unmap_pixels(torch.sigmoid(self.decoder(codes)[:, :3]))
            images[start : start + CHUNK_SIZE] = copy.mean(1).cpu().numpy()
        return images


AnyTokenizer = Tokenizer | PatchBook


def load_tokenizer(directory: Path) -> AnyTokenizer:
    """Read what `save` wrote. EcglibError if the file is missing, damaged, not ours or of an unknown kind."""
    path = directory / FILE_NAME
    if not path.is_file():
        raise EcglibError(f"{path} does not exist: train the tokenizer first")
    weights, metadata = read_tensors(path)
    try:
        metadata = dict(metadata or {})
        settings = TokenizerSettings(**metadata["settings"])
        if settings.kind == "kmeans":
            return PatchBook.from_weights(weights, settings.vocab_size, metadata)
        return _make_dvae(weights, settings, metadata)
    except (KeyError, TypeError, RuntimeError, EcglibError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EcglibError(f"{path} is damaged or no tokenizer ({reason}); train it again") from None


def _make_dvae(
    weights: Mapping[str, Tensor], settings: TokenizerSettings, metadata: Mapping[str, Any]
) -> Tokenizer:
    encoder, decoder = make_networks(settings)
    encoder.load_state_dict(_part(weights, "encoder."))
    has_decoder = any(name.startswith("decoder.") for name in weights)
    if has_decoder:
        decoder.load_state_dict(_part(weights, "decoder."))
    return Tokenizer(encoder, decoder if has_decoder else None, metadata)


def make_networks(settings: TokenizerSettings) -> tuple[Encoder, Decoder]:
    """`dall_e`'s encoder (n, 3, 112, 112) -> logits (n, vocab, 14, 14), and its decoder, random."""
    n_hid, n_blocks, vocab_size = settings.n_hid, settings.n_blk_per_group, settings.vocab_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = Encoder(n_hid=n_hid, n_blk_per_group=n_blocks, vocab_size=vocab_size)
        decoder = Decoder(n_hid=n_hid, n_blk_per_group=n_blocks, vocab_size=vocab_size)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, Conv2d):
            vars(module)["use_float16"] = False  # else it casts to float16 on CUDA and cannot be trained
            # Same values in another order in memory: convolutions on a CPU are faster this way.
            module.w.data = module.w.data.contiguous(memory_format=torch.channels_last)
    return encoder.to(_device()), decoder.to(_device())


def train_tokenizer(
    store: Images,
    rows: np.ndarray,
    settings: TokenizerSettings,
    directory: Path,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Train a tokenizer on images of `store` at `rows`; write tokenizer.safetensors and history.parquet.

    metadata: added to the tokenizer's (preprocessing, ...). On a CPU the same call gives the same bytes.
    History: step, loss, error_ratio (of the batch, to the mean image's), codes_used (in the batch), and of a
    dVAE temperature, learning_rate (of the decoder). Raises EcglibError for too few images and where the
    loss is no longer finite.
    """
    rows = np.asarray(rows)
    if len(rows) * GRID * GRID < settings.vocab_size:
        raise EcglibError(f"{len(rows)} images: too few for {settings.vocab_size} codes; give more images")
    described = {"settings": asdict(settings), "vocab_size": settings.vocab_size, "commit": commit()}
    described |= {"data_hash": store.data_hash, **(metadata or {})}
    tokenizer: AnyTokenizer
    if settings.kind == "kmeans":
        codes, history = _learn_codes(store, rows, settings)
        tokenizer = PatchBook(codes, described)
    else:
        encoder, decoder = make_networks(settings)
        scale = _start_from_data(encoder, decoder, store, rows, settings)
        history = _fit((encoder, decoder), store, rows, settings, scale)
        tokenizer = Tokenizer(encoder, decoder, described)
    with atomic_path(directory / "history.parquet") as path:
        pd.DataFrame(history).to_parquet(path, index=False)
    tokenizer.save(directory)  # last: a folder that has it is finished


def _learn_codes(
    store: Images, rows: np.ndarray, settings: TokenizerSettings
) -> tuple[Tensor, list[dict[str, float]]]:
    """`patchbook.learn_codes` on the images that a dVAE of the same settings would see."""
    n_first = max(FIRST_IMAGES, 4 * math.ceil(settings.vocab_size / GRID**2))
    first = store.pixels(np.random.default_rng(settings.seed).permutation(rows)[:n_first])
    batches = map(store.pixels, track(_batches(rows, settings), "tokenizer", settings.steps))
    return learn_codes(first, batches, settings.vocab_size, settings.seed)


@torch.no_grad()
def _start_from_data(
    encoder: Encoder, decoder: Decoder, store: Images, rows: np.ndarray, settings: TokenizerSettings
) -> float:
    """Set the codebook to clusters of what the random encoder sees, and return the mean image's error.

    A codebook that is alive from the first step stays alive; one that must first come to life often does not.
    """
    device, generator = _device(), torch.Generator().manual_seed(settings.seed)
    chosen = np.random.default_rng(settings.seed).permutation(rows)[:CLUSTER_IMAGES]
    images = map_pixels(brightness(store.pixels(chosen))).to(device)
    parts = images.expand(-1, 3, -1, -1).split(CHUNK_SIZE)
    seen = [torch.relu(encoder.blocks[:-1](part)) for part in parts]
    features = torch.cat(seen).permute(0, 2, 3, 1).flatten(0, 2)  # (images x 196, 8 n_hid)
    order = torch.randperm(len(features), generator=generator)[: max(2**14, 4 * settings.vocab_size)]
    features = features[order.to(device)]
    mean = features.mean(0)
    centres = _cluster(features, settings.vocab_size, generator)
    codes = centres - mean  # logits from centred codes are small numbers, which rounding hurts less
    sharpness = SHARPNESS / torch.cdist(features, centres).amin(1).square().mean().clamp(min=1e-12)
    into, out = dict(encoder.named_parameters()), dict(decoder.named_parameters())
    into["blocks.output.conv.w"].copy_(2 * sharpness * codes[:, :, None, None])
    into["blocks.output.conv.b"].copy_(-sharpness * codes.square().sum(1) - 2 * sharpness * (codes @ mean))
    # The decoder begins with the same codes, turned at random into its space, and paper of mean brightness.
    turn = torch.randn(codes.shape[1], decoder.n_init, generator=generator).to(device)
    turned = codes @ turn / (features.std(0).mean().clamp(min=1e-6) * math.sqrt(codes.shape[1]))
    out["blocks.input.w"].copy_(turned.T[:, :, None, None])
    # A nearly blank page at first: a random picture's error would shake the codebook out of its clusters.
    out["blocks.output.conv.w"].mul_(CALM)
    out["blocks.output.conv.b"].fill_(float(images.mean().logit()))
    # dall_e damps every block for deep networks (1/16 here); undone, a shallow decoder learns detail at once.
    for block in decoder.modules():
        if isinstance(block, DecoderBlock):
            dict(block.named_parameters())["res_path.conv_4.w"].div_(block.post_gain)
    return max(float((images - images.mean(0)).square().mean()), 1e-12)


def _cluster(features: Tensor, n_clusters: int, generator: torch.Generator) -> Tensor:
    """Lloyd's k-means: features (n, d) -> centres (n_clusters, d); empty clusters start again at random."""

    def draw() -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:n_clusters].to(features.device)]

    centres = draw()
    for _ in range(CLUSTER_ROUNDS):
        nearest = torch.cdist(features, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=n_clusters)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), draw())
    return centres


def _fit(
    networks: tuple[Encoder, Decoder],
    store: Images,
    rows: np.ndarray,
    settings: TokenizerSettings,
    mean_error: float,
) -> list[dict[str, float]]:
    """The loop: AdamW. The encoder is slower and starts later, so that the decoder can follow its codes."""
    rates = (settings.encoder_learning_rate, settings.learning_rate)
    groups = [{"params": list(net.parameters()), "lr": lr} for net, lr in zip(networks, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))
    courses = [partial(_course, steps=settings.steps, warm_up=warm_up) for warm_up in (0.5, 0.05)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, courses)
    generator = torch.Generator(_device()).manual_seed(settings.seed)
    history = []
    for step, batch in enumerate(track(_batches(rows, settings), "tokenizer", settings.steps)):
        share = step / settings.steps
        temperature = settings.temperature_start ** (1 - share) * settings.temperature_end**share
        images = map_pixels(brightness(store.pixels(batch))).to(_device())
        loss, seen = _loss(networks, images, settings, mean_error, temperature, generator)
        if not torch.isfinite(loss):
            raise EcglibError(f"tokenizer: the loss of step {step + 1} is not finite; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        for network in networks:  # each for itself: the encoder's gradient is many times the decoder's
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        course = {"temperature": temperature, "learning_rate": schedule.get_last_lr()[1]}
        history.append({"step": step + 1, "loss": loss.item(), **seen, **course})
        schedule.step()
    return history


def _loss(
    networks: tuple[Encoder, Decoder],
    images: Tensor,
    settings: TokenizerSettings,
    mean_error: float,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of mapped images (n, 1, 112, 112), and what the history says of the batch."""
    encoder, decoder = networks
    precision = resolve_precision(settings.precision)
    with autocast(precision, images.device):
        hidden = encoder.blocks[:-1](images.expand(-1, 3, -1, -1))
    # In float32, as dall_e has it: logits in bfloat16 tie, and half the codes are then never the largest.
    logits = encoder.blocks[-1](hidden.float())
    # Straight-through Gumbel softmax: the decoder learns from hard codes, the ones that it will be given.
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    soft = ((logits + noise) / temperature).softmax(1)
    chosen = soft.argmax(1)
    with autocast(precision, images.device):
        copy = decoder(_one_hot(chosen, settings.vocab_size) + soft - soft.detach())[:, :3]
    # In units of the mean image's error, so that the weights mean the same for every kind of image.
    squares = (torch.sigmoid(copy.float()) - images).square() / mean_error
    error = (squares * (1 + settings.ink_weight * (1 - unmap_pixels(images)))).mean()
    # DALL-E pulls each patch to uniform (error ratio .67 in a trial), we the mean over the batch (.55-.60).
    usage = logits.softmax(1).mean((0, 2, 3))
    kl = (usage * (usage * settings.vocab_size + 1e-9).log()).sum()
    seen = {"error_ratio": squares.mean().item(), "codes_used": len(chosen.unique())}
    return error + settings.kl_weight * kl, seen


def _course(step: int, steps: int, warm_up: float) -> float:
    """Share of the largest learning rate: linear over the share `warm_up` of the steps, times a cosine."""
    return min(1.0, (step + 1) / (warm_up * steps)) * (0.51 + 0.49 * math.cos(math.pi * step / steps))


def _batches(rows: np.ndarray, settings: TokenizerSettings) -> Iterable[np.ndarray]:
    """(steps, batch_size) rows: each once in random order before any comes again."""
    rng, wanted = np.random.default_rng(settings.seed), settings.steps * settings.batch_size
    rounds = [rng.permutation(rows) for _ in range(-(-wanted // len(rows)))]
    return np.concatenate(rounds)[:wanted].reshape(settings.steps, settings.batch_size)


def assess(tokenizer: AnyTokenizer, pixels: np.ndarray) -> dict[str, float]:
    """How alive a tokenizer is on held-out pixels uint8 (n, 224, 224), from hard tokens alone.

    error: mean square of the copy's difference in brightness (0..1) at 112 x 112; mean_image_error: the same
    for the mean of these very images, the best that one picture for all can do; error_ratio: their quotient.
    """
    tokens = tokenizer.encode(pixels)
    share = np.bincount(tokens.ravel(), minlength=tokenizer.vocab_size) / max(1, tokens.size)
    used = share[share > 0]
    images = brightness(pixels)[:, 0].numpy()
    error = float(np.mean((tokenizer.decode(tokens) - images) ** 2)) if len(pixels) else 0.0
    mean_error = float(np.mean((images - images.mean(0)) ** 2)) if len(pixels) else 0.0
    if mean_error == 0:
        raise EcglibError(f"{len(pixels)} held-out images, all the same: a tokenizer is judged on several")
    return {
        "codes_used": len(used),
        "perplexity": float(np.exp(-np.sum(used * np.log(used)))),
        "commonest_share": float(share.max()),
        "error": error,
        "mean_image_error": mean_error,
        "error_ratio": error / mean_error,
    }


def require_alive(report: Mapping[str, float]) -> None:
    """Raise EcglibError, one line with every fault, where a report of `assess` misses a bound."""
    limits = {
        "codes_used": (MIN_CODES, "at least"),
        "perplexity": (MIN_PERPLEXITY, "at least"),
        "commonest_share": (MAX_COMMONEST_SHARE, "at most"),
        "error_ratio": (MAX_ERROR_RATIO, "at most"),
    }
    faults = [
        f"{name} is {report[name]:.4g}, must be {bound} {limit}"
        for name, (limit, bound) in limits.items()
        # Written so that NaN is a fault.
        if not (report[name] >= limit if bound == "at least" else report[name] <= limit)
    ]
    if faults:
        raise EcglibError(
            f"the tokenizer is dead on held-out images: {'; '.join(faults)}; "
            "train it longer or change its learning_rate"
        )


def _one_hot(ids: Tensor, vocab_size: int) -> Tensor:
    """Token ids (n, 14, 14) -> float (n, vocab, 14, 14)."""
    return F.one_hot(ids, vocab_size).permute(0, 3, 1, 2).float()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
