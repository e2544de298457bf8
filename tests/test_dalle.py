"""OpenAI's pickled modules become a tokenizer without running code, or are refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dall_e import Decoder, Encoder, map_pixels, unmap_pixels
from torch import nn

from ecglib.dalle import import_dalle
from ecglib.errors import EcglibError
from ecglib.tokenizer import FILE_NAME, load_tokenizer

SHAPE: dict[str, Any] = {"n_hid": 8, "n_blk_per_group": 2, "vocab_size": 128}


def saved(module: object, path: Path, **how: Any) -> tuple[Path, str]:
    """A file as OpenAI's, a whole module, and its SHA-256."""
    torch.save(module, path, **how)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def some_pixels() -> np.ndarray:
    """Pages of black and white squares: halved exactly whatever the order of sums."""
    squares = np.random.default_rng(0).integers(0, 2, (3, 28, 28), np.uint8) * 255
    return squares.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(**SHAPE)


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(1)
    return Decoder(**SHAPE)


def test_encoder_alone_gives_the_codes_of_its_module(tmp_path: Path, encoder: Encoder) -> None:
    path, sha256 = saved(encoder, tmp_path / "encoder.pkl")
    import_dalle(path, sha256.upper()).save(tmp_path)
    tokenizer, pixels = load_tokenizer(tmp_path), some_pixels()
    assert tokenizer.vocab_size == 128
    assert tokenizer.metadata["encoder_pkl_sha256"].lower() == sha256
    small = torch.from_numpy(pixels[:, ::2, ::2].copy()).float()[:, None] / 255
    with torch.no_grad():
        logits = encoder(map_pixels(small.expand(-1, 3, -1, -1)))
    tokens = tokenizer.encode(pixels)
    assert len(np.unique(tokens)) > 8
    np.testing.assert_array_equal(tokens, logits.argmax(1).flatten(1).numpy())
    with pytest.raises(EcglibError, match="this tokenizer has no decoder"):
        tokenizer.decode(tokens)


def test_encoder_and_decoder_give_the_images_of_their_modules(
    tmp_path: Path, encoder: Encoder, decoder: Decoder
) -> None:
    pair = (*saved(encoder, tmp_path / "encoder.pkl"), *saved(decoder, tmp_path / "decoder.pkl"))
    import_dalle(*pair).save(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 128, (2, 196))
    codes = nn.functional.one_hot(torch.from_numpy(tokens), 128).transpose(1, 2).reshape(2, 128, 14, 14)
    with torch.no_grad():
        expected = unmap_pixels(torch.sigmoid(decoder(codes.float())[:, :3])).mean(1)
    copies = load_tokenizer(tmp_path).decode(tokens)
    np.testing.assert_allclose(copies, expected.numpy(), atol=1e-6)


def test_openais_own_size_is_taken_as_it_is(tmp_path: Path) -> None:
    module = Encoder()
    path, sha256 = saved(module, tmp_path / "encoder.pkl")
    tokenizer = import_dalle(path, sha256)
    assert tokenizer.vocab_size == 8192
    assert sum(weight.numel() for weight in tokenizer.encoder.state_dict().values()) == 53_786_240
    for name, weight in module.state_dict().items():
        assert torch.equal(tokenizer.encoder.state_dict()[name], weight)


def refused(*arguments: Any) -> str:
    with pytest.raises(EcglibError) as caught:
        import_dalle(*arguments)
    assert "\n" not in str(caught.value)
    assert str(arguments[-2 if len(arguments) > 2 else 0]) in str(caught.value)
    return str(caught.value)


def test_a_wrong_hash_is_refused_before_anything_is_read(tmp_path: Path, encoder: Encoder) -> None:
    path, sha256 = saved(encoder, tmp_path / "encoder.pkl")
    assert refused(path, "0" * 64) == (
        f"{path} has SHA-256 {sha256}, not {'0' * 64}: it is another file; fetch it again"
    )
    assert "does not exist" in refused(tmp_path / "nothing.pkl", sha256)


def test_a_foreign_class_is_refused_although_the_hash_is_right(tmp_path: Path, encoder: Encoder) -> None:
    mark = tmp_path / "mark"

    class Planted:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    encoder.extra = Planted()  # type: ignore[assignment]
    message = refused(*saved(encoder, tmp_path / "encoder.pkl"))
    assert "a file of weights must not run code" in message
    assert not mark.exists()
    message = refused(*saved(nn.Sequential(nn.Bilinear(1, 1, 1)), tmp_path / "encoder.pkl"))
    assert "asks for torch.nn.modules.linear.Bilinear" in message


def test_another_module_is_refused(tmp_path: Path, encoder: Encoder, decoder: Decoder) -> None:
    path = tmp_path / "encoder.pkl"
    assert "holds a Decoder, not dall_e's Encoder" in refused(*saved(decoder, path))
    assert "holds a dict, not dall_e's Encoder" in refused(*saved({"w": torch.ones(1)}, path))
    message = refused(*saved(encoder, path, _use_new_zipfile_serialization=False))
    assert "save it again with torch 1.6 or later" in message
    encoder.blocks.input.w = nn.Parameter(torch.ones(8, 3, 5, 5))  # type: ignore[attr-defined]
    assert "does not fit its own network" in refused(*saved(encoder, path))


def test_a_decoder_needs_its_own_hash_and_the_encoder_s_size(tmp_path: Path, encoder: Encoder) -> None:
    first = saved(encoder, tmp_path / "encoder.pkl")
    other = saved(Decoder(**{**SHAPE, "n_hid": 16}), tmp_path / "decoder.pkl")
    assert "take the pair that belongs together" in refused(*first, *other)
    with pytest.raises(EcglibError, match="give decoder_sha256"):
        import_dalle(*first, other[0])
    assert not (tmp_path / FILE_NAME).exists()
