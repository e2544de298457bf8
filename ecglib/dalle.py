"""OpenAI's own dVAE as the tokenizer: encoder.pkl and decoder.pkl, turned once into safetensors.

These files are whole pickled modules (Ramesh et al. 2021, arXiv 2102.12092). They are read only where their
SHA-256 is the one that the caller expects, and even then no class is made but those of `dall_e` and the
layers that they consist of. We know of no published digest of them, so none is written down here.
"""

from pathlib import Path
from typing import Any

from dall_e import Decoder, Encoder
from dall_e.decoder import DecoderBlock
from dall_e.encoder import EncoderBlock
from dall_e.utils import Conv2d
from torch import Tensor, nn

from ecglib.errors import EcglibError
from ecglib.provenance import file_sha256
from ecglib.tensorfiles import read_pickle
from ecglib.tokenizer import Tokenizer, TokenizerSettings, make_networks

CLASSES: list[Any] = [
    Encoder, EncoderBlock, Decoder, DecoderBlock, Conv2d,
    nn.Sequential, nn.ReLU, nn.Identity, nn.MaxPool2d, nn.Upsample,
]  # fmt: skip
SHAPE = ("n_hid", "n_blk_per_group", "vocab_size")


def import_dalle(
    encoder: Path, encoder_sha256: str, decoder: Path | None = None, decoder_sha256: str | None = None
) -> Tokenizer:
    """The tokenizer in OpenAI's encoder.pkl; `save` it once and read it by `load_tokenizer` from then on.

    8,192 codes; images as everywhere here, 224 x 224 halved to 112 x 112. Without `decoder` it only encodes.
    Raises EcglibError where a file is missing, has another SHA-256, holds any other class or does not fit.
    """
    state, shape = _read(encoder, encoder_sha256, Encoder)
    settings = TokenizerSettings(**shape)
    networks = make_networks(settings)
    _fill(networks[0], state, encoder)
    metadata = {"settings": shape, "vocab_size": settings.vocab_size, "encoder_pkl_sha256": encoder_sha256}
    if decoder is None:
        return Tokenizer(networks[0], None, metadata)
    if decoder_sha256 is None:
        raise EcglibError(f"{decoder} is read only if its SHA-256 is known: give decoder_sha256")
    state, theirs = _read(decoder, decoder_sha256, Decoder)
    if theirs != shape:
        raise EcglibError(
            f"{decoder} is of {theirs}, the encoder of {shape}: take the pair that belongs together"
        )
    _fill(networks[1], state, decoder)
    return Tokenizer(*networks, metadata | {"decoder_pkl_sha256": decoder_sha256})


def _read(path: Path, sha256: str, kind: type[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and shape of the pickled module at `path`."""
    if not path.is_file():
        raise EcglibError(f"{path} does not exist: fetch it from OpenAI's DALL-E release")
    if (found := file_sha256(path)) != sha256.lower():
        raise EcglibError(
            f"{path} has SHA-256 {found}, not {sha256.lower()}: it is another file; fetch it again"
        )
    module = read_pickle(path, CLASSES)
    if not isinstance(module, kind) or not all(
        isinstance(getattr(module, name, None), int) for name in SHAPE
    ):
        raise EcglibError(
            f"{path} holds a {type(module).__name__}, not dall_e's {kind.__name__}: check its name"
        )
    return module.state_dict(), {name: getattr(module, name) for name in SHAPE}


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise EcglibError(f"{path} does not fit its own network ({reason}): fetch it again") from None
