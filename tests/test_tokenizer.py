"""The tokenizer: words from ECG images, alive or refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dall_e import Encoder, map_pixels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ecglib.errors import EcglibError
from ecglib.image import draw
from ecglib.precision import autocast, resolve_precision
from ecglib.tensorfiles import weights_sha256
from ecglib.tokenizer import (
    FILE_NAME,
    Tokenizer,
    TokenizerSettings,
    assess,
    load_tokenizer,
    make_networks,
    require_alive,
    train_tokenizer,
)

TINY = TokenizerSettings(n_hid=8, vocab_size=64, steps=30, batch_size=4, precision="32-true")
ALIVE = {"codes_used": 64, "perplexity": 32.0, "commonest_share": 0.3, "error_ratio": 0.9}


class Drawn:
    """A store of drawn traces: eight leads of beats with their own rate, height and phase."""

    data_hash = "0123456789abcdef"

    def __init__(self, n_images: int) -> None:
        rng = np.random.default_rng(0)
        time = np.arange(0, 5, 0.01)
        self.images = np.stack([draw(self._trace(rng, time)) for _ in range(n_images)])

    @staticmethod
    def _trace(rng: np.random.Generator, time: np.ndarray) -> np.ndarray:
        phase = (time * rng.uniform(0.8, 1.8) + rng.uniform()) % 1
        beat, wave = np.exp(-(((phase - 0.3) / 0.02) ** 2)), np.exp(-(((phase - 0.6) / 0.06) ** 2))
        return (rng.uniform(-1.5, 1.5, (8, 1)) * beat + rng.uniform(-0.4, 0.4, (8, 1)) * wave).astype(
            np.float32
        )

    def pixels(self, rows: Any) -> np.ndarray:
        return self.images[np.asarray(rows)]


@pytest.fixture(scope="module")
def store() -> Drawn:
    return Drawn(40)


@pytest.fixture(scope="module")
def trained(store: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(store, np.arange(32), TINY, folder)
    return folder


def test_metadata_come_back_exactly(trained: Path) -> None:
    metadata = load_tokenizer(trained).metadata
    assert TokenizerSettings(**metadata["settings"]) == TINY
    assert (metadata["vocab_size"], metadata["data_hash"]) == (64, Drawn.data_hash)
    assert metadata["commit"]


def test_tokens_are_the_argmax_of_dall_es_own_encoder(trained: Path, store: Drawn) -> None:
    encoder = Encoder(n_hid=8, n_blk_per_group=1, vocab_size=64)
    weights = load_file(trained / FILE_NAME)
    encoder.load_state_dict(
        {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
    )
    pixels = store.pixels(range(4))
    halved = pixels.reshape(4, 112, 2, 112, 2).mean((2, 4)) / 255  # an independent way to halve
    grey = torch.tensor(halved, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        logits = encoder(map_pixels(grey))
    tokens = torch.from_numpy(load_tokenizer(trained).encode(pixels).astype(np.int64)).view(4, 1, 14, 14)
    # Halving in another order may move a logit by a rounding error, no more.
    assert torch.allclose(logits.gather(1, tokens), logits.amax(1, keepdim=True), atol=1e-3)
    assert (logits.argmax(1, keepdim=True) == tokens).float().mean() > 0.99


def test_encoding_does_not_depend_on_the_company_of_an_image(trained: Path, store: Drawn) -> None:
    tokenizer, pixels = load_tokenizer(trained), store.pixels(range(40))
    together = tokenizer.encode(pixels)
    assert together.dtype == np.uint16
    assert together.shape == (40, 196)
    np.testing.assert_array_equal(tokenizer.encode(pixels), together)
    for start, stop in ((0, 1), (7, 19), (39, 40)):
        np.testing.assert_array_equal(tokenizer.encode(pixels[start:stop]), together[start:stop])
    assert tokenizer.encode(pixels[:0]).shape == (0, 196)


def test_decoding_gives_brightness_at_half_size(trained: Path, store: Drawn) -> None:
    tokenizer = load_tokenizer(trained)
    copies = tokenizer.decode(tokenizer.encode(store.pixels(range(3))))
    assert copies.shape == (3, 112, 112)
    assert copies.dtype == np.float32
    assert 0 <= copies.min() <= copies.max() <= 1
    assert copies.mean() > 0.7  # paper is white
    with pytest.raises(EcglibError, match="token 64: the codebook has only 64 codes"):
        tokenizer.decode(np.full((1, 196), 64, np.uint16))


def test_training_lowers_the_error_on_images_never_seen(trained: Path, store: Drawn, tmp_path: Path) -> None:
    train_tokenizer(store, np.arange(32), replace(TINY, steps=1), tmp_path)
    held_out = store.pixels(range(32, 40))
    before, after = (assess(load_tokenizer(folder), held_out) for folder in (tmp_path, trained))
    assert after["error_ratio"] < 0.8 * before["error_ratio"]
    assert after["codes_used"] >= 32  # of 64
    history = pd.read_parquet(trained / "history.parquet")
    assert list(history.step) == list(range(1, 31))
    assert history.error_ratio.iloc[-5:].mean() < history.error_ratio.iloc[:5].mean()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_same_seed_gives_the_same_bytes(store: Drawn, tmp_path: Path, precision: str) -> None:
    few = replace(TINY, steps=3, precision=precision)
    for folder, settings in (("a", few), ("b", few), ("c", replace(few, seed=1))):
        torch.manual_seed(len(folder) + settings.seed)  # the state of the global generator must not matter
        torch.rand(7 if folder == "b" else 1)
        train_tokenizer(store, np.arange(32), settings, tmp_path / folder)
    a, b, c = ((tmp_path / folder / FILE_NAME).read_bytes() for folder in "abc")
    assert a == b
    assert a != c


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_networks(TINY)
    assert torch.equal(torch.rand(3), expected)


def test_assess_agrees_with_numbers_worked_by_hand() -> None:
    # Two images, all ink and all paper: half of all patches get code 0, a quarter each 1 and 2.
    pixels = np.stack([np.zeros((224, 224), np.uint8), np.full((224, 224), 255, np.uint8)])
    tokens = np.stack([np.zeros(196, np.uint16), np.repeat(np.array([1, 2], np.uint16), 98)])
    copies = np.stack([np.full((112, 112), 0.2, np.float32), np.full((112, 112), 0.6, np.float32)])
    fake: Any = SimpleNamespace(vocab_size=8, encode=lambda _: tokens, decode=lambda _: copies)
    report = assess(fake, pixels)
    assert report["codes_used"] == 3
    assert report["commonest_share"] == 0.5
    assert report["perplexity"] == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4) is 1.5 bits
    assert report["error"] == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert report["mean_image_error"] == pytest.approx(0.25)
    assert report["error_ratio"] == pytest.approx(0.4)


def test_images_that_are_all_the_same_cannot_be_judged() -> None:
    fake: Any = SimpleNamespace(
        vocab_size=8,
        encode=lambda p: np.zeros((len(p), 196), np.uint16),
        decode=lambda t: np.zeros((len(t), 112, 112), np.float32),
    )
    for count in (0, 1, 3):
        with pytest.raises(EcglibError, match=f"^{count} held-out images, all the same"):
            assess(fake, np.full((count, 224, 224), 255, np.uint8))


def test_a_tokenizer_at_every_bound_is_alive() -> None:
    require_alive(ALIVE)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("codes_used", 63, "at least 64"),
        ("perplexity", 31.9, "at least 32"),
        ("commonest_share", 0.301, "at most 0.3"),
        ("error_ratio", 0.901, "at most 0.9"),
        ("error_ratio", float("nan"), "at most 0.9"),
    ],
)
def test_each_fault_is_refused_in_one_line(name: str, value: float, rule: str) -> None:
    with pytest.raises(EcglibError) as caught:
        require_alive({**ALIVE, name: value})
    message = str(caught.value)
    assert f"{name} is {value:.4g}, must be {rule}" in message
    assert "\n" not in message
    assert sum(other in message for other in ALIVE) == 1


def test_random_weights_are_found_dead(store: Drawn) -> None:
    random = Tokenizer(*make_networks(replace(TINY, n_hid=16, vocab_size=512)), {})
    with pytest.raises(EcglibError, match="dead on held-out images"):
        require_alive(assess(random, store.pixels(range(8))))


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(bytes(content))


def _rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    with safe_open(path, framework="pt") as stream:
        metadata = json.loads(stream.metadata()["ecglib"])
    weights = load_file(path)
    change(weights, metadata)
    save_file(weights, path, {"ecglib": json.dumps(metadata)})


def _drop_a_tensor(path: Path) -> None:
    _rewrite(path, lambda weights, _: weights.pop("encoder.blocks.input.w"))


def _other_size(path: Path) -> None:
    _rewrite(path, lambda _, metadata: metadata["settings"].update(vocab_size=128))


def _unknown_setting(path: Path) -> None:
    _rewrite(path, lambda _, metadata: metadata["settings"].update(colour="red"))


def _no_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def test_a_copy_in_bfloat16_is_half_as_large_and_gives_nearly_the_same_tokens(
    trained: Path, store: Drawn, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(trained)
    tokenizer.save(tmp_path / "same")
    assert (tmp_path / "same" / FILE_NAME).read_bytes() == (trained / FILE_NAME).read_bytes()
    tokenizer.save(tmp_path, torch.bfloat16)
    copy = load_tokenizer(tmp_path)
    assert copy.metadata["weights_sha256"] != tokenizer.metadata["weights_sha256"]
    assert copy.metadata["settings"] == tokenizer.metadata["settings"]
    assert (tmp_path / FILE_NAME).stat().st_size < 0.6 * (trained / FILE_NAME).stat().st_size
    assert isinstance(copy, Tokenizer)
    assert isinstance(tokenizer, Tokenizer)
    for name, weight in copy.encoder.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, tokenizer.encoder.state_dict()[name].bfloat16().float())
    pixels = store.pixels(range(8))
    assert (copy.encode(pixels) == tokenizer.encode(pixels)).mean() > 0.9


@pytest.mark.parametrize(
    "damage", [_cut_short, _flip_a_bit, _drop_a_tensor, _other_size, _unknown_setting, _no_metadata]
)
def test_a_damaged_file_is_refused_in_one_line(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    (tmp_path / FILE_NAME).write_bytes((trained / FILE_NAME).read_bytes())
    damage(tmp_path / FILE_NAME)
    with pytest.raises(EcglibError, match=f"^{tmp_path / FILE_NAME} is (damaged|cut short)") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="does not exist: train the tokenizer first"):
        load_tokenizer(tmp_path)


def test_wrong_tensors_are_refused_even_under_a_right_checksum(trained: Path, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes((trained / FILE_NAME).read_bytes())

    def change(weights: dict, metadata: dict) -> None:
        weights["encoder.blocks.input.w"] = weights["encoder.blocks.input.w"][:, :, :5, :5].contiguous()
        metadata["weights_sha256"] = weights_sha256(weights)

    _rewrite(tmp_path / FILE_NAME, change)
    with pytest.raises(EcglibError, match=r"size mismatch for blocks\.input\.w"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_hid", 10), ("n_blk_per_group", 0), ("vocab_size", 63), ("vocab_size", 65_537), ("steps", 0),
        ("batch_size", 0), ("learning_rate", 0.0), ("encoder_learning_rate", float("nan")),
        ("temperature_end", 0.0), ("kl_weight", -1.0), ("ink_weight", float("inf")), ("kind", "words"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(EcglibError, match=f"^{field}={value}: must"):
        replace(TINY, **{field: value})


def test_images_of_another_kind_are_refused(trained: Path) -> None:
    for wrong in (np.zeros((1, 112, 112), np.uint8), np.zeros((1, 224, 224), np.float32)):
        with pytest.raises(EcglibError, match="the tokenizer reads uint8"):
            load_tokenizer(trained).encode(wrong)


def test_too_few_images_and_a_loss_that_explodes_stop_training(store: Drawn, tmp_path: Path) -> None:
    with pytest.raises(EcglibError, match="0 images: too few for 64 codes"):
        train_tokenizer(store, np.arange(0), TINY, tmp_path)
    with pytest.raises(EcglibError, match="not finite; lower learning_rate"):
        train_tokenizer(store, np.arange(8), replace(TINY, learning_rate=1e30), tmp_path)
    assert not list(tmp_path.iterdir())


def test_precision_is_resolved_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for amx, dot, expected in ((0, 0, "32-true"), (1, 0, "bf16-mixed"), (0, 1, "bf16-mixed")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=amx: bool(answer))
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=dot: bool(answer))
        assert resolve_precision("auto") == expected
        assert resolve_precision("32-true") == "32-true"
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve_precision("auto") == "32-true"
    with pytest.raises(EcglibError, match="precision 'fp8' is unknown"):
        resolve_precision("fp8")


def test_autocast_multiplies_in_bfloat16_only_where_told() -> None:
    ones, cpu = torch.ones(4, 4), torch.device("cpu")
    with autocast("bf16-mixed", cpu):
        assert (ones @ ones).dtype == torch.bfloat16
    with autocast("32-true", cpu):
        assert (ones @ ones).dtype == torch.float32
