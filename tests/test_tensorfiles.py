"""Files of weights come back as they were, whatever is wrong is one line, and no file runs code."""

import argparse
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from ecglib.errors import EcglibError
from ecglib.tensorfiles import read_pickle, read_tensors, weights_sha256, write_tensors


def some_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"b.weight": torch.randn(5, 40, generator=generator), "a": torch.randn(7, generator=generator)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "weights", some_state(), {"settings": {"steps": 3}})
    return tmp_path / "weights"


def test_weights_and_metadata_come_back(path: Path) -> None:
    state, metadata = read_tensors(path)
    assert {name: t.tolist() for name, t in state.items()} == {n: t.tolist() for n, t in some_state().items()}
    assert metadata == {"settings": {"steps": 3}, "weights_sha256": weights_sha256(some_state())}


def test_files_of_others_come_without_metadata(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.float16)}, tmp_path / "theirs")
    state, metadata = read_tensors(tmp_path / "theirs")
    assert metadata is None
    assert state["a"].dtype == torch.float32


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16_is_stored_rounded_and_hashed_as_stored(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    path, weights = tmp_path_factory.getbasetemp() / "rounded", torch.tensor(numbers)
    write_tensors(path, {"a": weights}, {}, torch.bfloat16)
    state, metadata = read_tensors(path)
    assert load_file(path)["a"].dtype == torch.bfloat16
    assert torch.equal(state["a"], weights.bfloat16().float())
    assert metadata == {"weights_sha256": weights_sha256({"a": weights.bfloat16()})}


def test_the_hash_is_that_of_names_and_bytes() -> None:
    import hashlib

    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert weights_sha256({"b": weights.T, "a": weights}) == (
        hashlib.sha256(b"a" + weights.numpy().tobytes() + b"b" + weights.numpy().T.tobytes()).hexdigest()
    )


def test_same_weights_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from ecglib.tensorfiles import write_tensors;"
        "write_tensors(Path(sys.argv[1]), {'b': torch.ones(3), 'a': torch.zeros(2)}, {'y': 1, 'x': [2]})"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "theirs"], check=True)
    write_tensors(tmp_path / "ours", {"a": torch.zeros(2), "b": torch.ones(3)}, {"x": [2], "y": 1})
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "one bit wrong": _flip_a_bit,
    "no hash": lambda path: save_file(load_file(path), path, {"ecglib": json.dumps({"steps": 3})}),
    "header not JSON": lambda path: save_file(load_file(path), path, {"ecglib": "{"}),
}


@pytest.mark.parametrize("damage", SPOILT)
def test_a_spoilt_file_is_refused_in_one_line(path: Path, damage: str) -> None:
    SPOILT[damage](path)
    with pytest.raises(EcglibError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- pickles ---


class Planted:
    """Runs a command while it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_what_torch_saved_comes_back(tmp_path: Path) -> None:
    content = {"model": some_state(), "args": argparse.Namespace(lr=1e-3, size=(14, 14)), "epoch": 299}
    for zipped in (True, False):
        torch.save(content, tmp_path / "weights", _use_new_zipfile_serialization=zipped)
        found = read_pickle(tmp_path / "weights", [argparse.Namespace])
        assert found["args"] == content["args"]
        assert torch.equal(found["model"]["a"], content["model"]["a"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    torch.save({"model": some_state(), "args": Planted(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(EcglibError) as caught:
        read_pickle(path, [argparse.Namespace])
    assert str(caught.value) == (
        f"{path} is refused: it asks for {os.system.__module__}.system, "
        "and a file of weights must not run code"
    )
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the plant does work where it is let in
    assert mark.exists()


def test_other_classes_are_named(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(), "layer": nn.Bilinear(1, 1, 1)}, tmp_path / "weights")
    with pytest.raises(EcglibError, match=r"asks for torch\.nn\.modules\.linear\.Bilinear"):
        read_pickle(tmp_path / "weights", [argparse.Namespace])


def test_classes_are_allowed_for_one_file_only(tmp_path: Path) -> None:
    torch.save(argparse.Namespace(), tmp_path / "weights")
    read_pickle(tmp_path / "weights", [argparse.Namespace])
    with pytest.raises(EcglibError, match=r"asks for argparse\.Namespace"):
        read_pickle(tmp_path / "weights", [])


def test_a_damaged_pickle_is_refused_in_one_line(tmp_path: Path) -> None:
    path, stream = tmp_path / "weights", io.BytesIO()
    torch.save(some_state(), stream)
    whole = stream.getvalue()
    with zipfile.ZipFile(stream) as archive:
        data = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    flipped = bytearray(whole)
    flipped[data.header_offset + 300] ^= 1
    for content in (bytes(flipped), whole[:-200], whole[:50], b"\x80\x02nonsense", b"PK\x03\x04 nonsense"):
        path.write_bytes(content)
        with pytest.raises(EcglibError) as caught:
            read_pickle(path, [])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
