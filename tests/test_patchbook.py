"""The book of patches: nearest codes as scikit-learn finds them, and a tokenizer like any other."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans

from ecglib import beit
from ecglib.checkpoints import load_masked_image_model
from ecglib.errors import EcglibError
from ecglib.patchbook import CODES, FILE_NAME, PatchBook
from ecglib.pretrain import PretrainSettings, pretrain
from ecglib.shards import ImageStore
from ecglib.tensorfiles import read_tensors, weights_sha256
from ecglib.tokenizer import TokenizerSettings, assess, load_tokenizer, require_alive, train_tokenizer

SETTINGS = TokenizerSettings(kind="kmeans", vocab_size=64, steps=12, batch_size=4)
RNG = np.random.default_rng(0)


def traces(n: int) -> np.ndarray:
    """White pages with eight dark random walks each."""
    pixels = np.full((n, 224, 224), 255, np.uint8)
    walks = RNG.integers(-2, 3, (n, 8, 224)).cumsum(-1) % 20 + 28 * np.arange(8)[:, None]
    for image, rows in zip(pixels, walks, strict=True):
        image[rows, np.arange(224)] = RNG.integers(0, 120, (8, 224))
        image[rows + 1, np.arange(224)] = RNG.integers(0, 200, (8, 224))
    return pixels


@pytest.fixture(scope="module")
def store() -> ImageStore:
    return ImageStore(Path("memory"), pd.DataFrame(index=range(40)), (traces(40),), {"images": "0"})


@pytest.fixture(scope="module")
def trained(store: ImageStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patchbook")
    train_tokenizer(store, np.arange(32), SETTINGS, folder, {"preprocessing": {"digest": "x"}})
    return folder


def patches_of(pixels: np.ndarray) -> np.ndarray:
    """Brightness of 8 x 8 patches of the half-size copy (n * 196, 64), by another way than the module's."""
    halved = pixels.reshape(-1, 112, 2, 112, 2).mean((2, 4)) / 255
    places = [(row, column) for row in range(0, 112, 8) for column in range(0, 112, 8)]
    return np.array([copy[r : r + 8, c : c + 8].ravel() for copy in halved for r, c in places])


def test_tokens_are_those_of_scikit_learn(trained: Path, store: ImageStore) -> None:
    book, pixels = load_tokenizer(trained), store.pixels(range(32, 40))
    assert isinstance(book, PatchBook)
    oracle = MiniBatchKMeans(64, n_init="auto", random_state=0).fit(patches_of(pixels))
    oracle.cluster_centers_ = 1 - book.codes.double().numpy()
    expected = np.asarray(oracle.predict(patches_of(pixels)))
    np.testing.assert_array_equal(book.encode(pixels).ravel(), expected)


def test_round_trip_gives_each_patch_its_code(trained: Path) -> None:
    book = load_tokenizer(trained)
    tokens = RNG.integers(0, 64, (5, 196)).astype(np.uint16)
    copies = book.decode(tokens)
    assert copies.shape == (5, 112, 112)
    assert copies.dtype == np.float32
    assert 0 <= copies.min() <= copies.max() <= 1
    codes = 1 - load_file(trained / FILE_NAME)[CODES].numpy()
    for image, row, column in ((0, 0, 0), (4, 13, 13), (2, 3, 11)):
        patch = copies[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(patch.ravel(), codes[tokens[image, 14 * row + column]])
    # What consists of codes alone comes back as the same codes.
    grey = np.rint(255 * copies).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    assert (book.encode(grey) == tokens).mean() > 0.98  # nearly equal codes may change places by rounding


def test_ties_go_to_the_first_code() -> None:
    twice = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    assert PatchBook(twice, {}).encode(traces(3)).max() < 64


@settings(max_examples=20)
@given(start=st.integers(0, 39), length=st.integers(0, 40))
def test_encoding_does_not_depend_on_the_company_of_an_image(
    trained: Path, store: ImageStore, start: int, length: int
) -> None:
    book, part = load_tokenizer(trained), slice(start, start + length)
    together = book.encode(store.pixels(range(40)))
    assert together.dtype == np.uint16
    np.testing.assert_array_equal(book.encode(store.pixels(range(40)[part])), together[part])


def test_the_same_seed_gives_the_same_bytes_on_one_thread_or_two(store: ImageStore, tmp_path: Path) -> None:
    for threads, name in ((1, "a"), (2, "b")):
        torch.set_num_threads(threads)
        train_tokenizer(store, np.arange(32), SETTINGS, tmp_path / name)
    torch.set_num_threads(1)
    other = TokenizerSettings(kind="kmeans", vocab_size=64, steps=12, batch_size=4, seed=1)
    train_tokenizer(store, np.arange(32), other, tmp_path / "c")
    a, b, c = ((tmp_path / name / FILE_NAME).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_it_is_judged_like_any_tokenizer(trained: Path, store: ImageStore) -> None:
    held_out = store.pixels(range(32, 40))
    report = assess(load_tokenizer(trained), held_out)
    some_patches = 1 - patches_of(store.pixels(range(2)))[RNG.permutation(2 * 196)[:64]]
    untrained = assess(PatchBook(torch.from_numpy(some_patches).float(), {}), held_out)
    assert report["error_ratio"] < 0.9 * untrained["error_ratio"]
    assert report["codes_used"] > 48
    history = pd.read_parquet(trained / "history.parquet")
    assert list(history) == ["step", "loss", "error_ratio", "codes_used"]
    assert report["error_ratio"] == pytest.approx(history.error_ratio.iloc[-1], rel=0.3)
    with pytest.raises(EcglibError, match="dead on held-out images: codes_used is 1"):
        require_alive(assess(PatchBook(torch.zeros(64, 64), {}), store.pixels(range(8))))


def test_metadata_and_weights_come_back_exactly(trained: Path, tmp_path: Path) -> None:
    book = load_tokenizer(trained)
    assert TokenizerSettings(**book.metadata["settings"]) == SETTINGS
    assert (book.vocab_size, book.metadata["preprocessing"]) == (64, {"digest": "x"})
    book.save(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == (trained / FILE_NAME).read_bytes()
    with pytest.raises(EcglibError, match="token 64: the codebook has only 64 codes"):
        book.decode(np.full((1, 196), 64, np.uint16))


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def _rewrite(path: Path, codes: torch.Tensor | None = None, **settings: object) -> None:
    weights, metadata = read_tensors(path)
    assert metadata is not None
    metadata["settings"] |= settings
    weights = weights if codes is None else {CODES: codes}
    metadata["weights_sha256"] = weights_sha256(weights)
    save_file(weights, path, {"ecglib": json.dumps(metadata)})


@pytest.mark.parametrize(
    "damage",
    [
        _cut_short,
        _flip_a_bit,
        lambda path: _rewrite(path, kind="words"),
        lambda path: _rewrite(path, kind="dvae"),
        lambda path: _rewrite(path, vocab_size=128),
        lambda path: _rewrite(path, torch.zeros(64, 63)),
        lambda path: _rewrite(path, torch.full((64, 64), float("nan"))),
    ],
    ids=["cut short", "a bit", "unknown kind", "another kind", "other size", "other shape", "nan"],
)  # fmt: skip
def test_a_damaged_file_or_unknown_kind_is_refused_in_one_line(
    trained: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes((trained / FILE_NAME).read_bytes())
    damage(path)
    with pytest.raises(EcglibError, match=f"^{path} is (damaged|cut short)") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_batch_with_fewer_patches_than_codes_is_refused() -> None:
    with pytest.raises(EcglibError, match=r"^batch_size=1: must be at least 3, a patch a code"):
        TokenizerSettings(kind="kmeans", batch_size=1)
    TokenizerSettings(batch_size=1)  # a dVAE may have it


def test_a_pretraining_learns_from_its_tokens(
    trained: Path, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(beit.SIZES, "minute", (24, 2, 2))
    tokens = load_tokenizer(trained).encode(store.pixels(range(40)))
    how = PretrainSettings(
        size="minute", steps=40, batch_size=8, warmup_steps=2, learning_rate=1e-2, precision="32-true"
    )
    pretrain(store, tokens, np.arange(32), 64, how, tmp_path)
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history.loss.iloc[-5:].mean() < history.loss.iloc[0] - 0.15
    assert load_masked_image_model(tmp_path / "encoder.safetensors", vocab_size=64).size == "minute"
