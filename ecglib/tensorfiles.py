"""Weights in files: ours are safetensors with a header and a hash; torch's are read without running code."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ecglib.errors import EcglibError
from ecglib.provenance import atomic_path

HEADER = "ecglib"  # the header's one entry: safetensors writes several in random order


def write_tensors(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write weights in a number format and, as JSON in the header, `metadata` and `weights_sha256`.

    The same weights and metadata give the same bytes.
    """
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    described = {**metadata, "weights_sha256": weights_sha256(stored)}
    with atomic_path(path) as partial:  # save_file would let only the owner read it
        partial.write_bytes(to_bytes(stored, {HEADER: json.dumps(described, sort_keys=True)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights, as float32, and the metadata of `write_tensors`; None for a file that another program wrote.

    Raises EcglibError if the file is missing, damaged or no safetensors file.
    """
    if not path.is_file():
        raise EcglibError(f"{path} does not exist: name a file of weights, or train first")
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            stored = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(header[HEADER]) if HEADER in header else None
    except (SafetensorError, OSError, ValueError) as error:
        raise EcglibError(
            f"{path} is cut short or not a safetensors file: make or fetch it again ({error})"
        ) from None
    if metadata is not None and metadata.get("weights_sha256") != weights_sha256(stored):
        raise EcglibError(f"{path} is damaged: its weights are not those that were saved; make it again")
    return {name: tensor.float() for name, tensor in stored.items()}, metadata


def read_pickle(path: Path, classes: list[Any]) -> Any:
    """What `torch.save` wrote, if it holds tensors, plain values and `classes` alone; else EcglibError."""
    zipped = zipfile.is_zipfile(path)
    mapped = zipped and path.suffix != ".safetensors"  # a name by which torch would judge, not by the content
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # compares checksums, which torch.load does not
                    raise EcglibError(f"{path} is damaged: its checksums do not agree; fetch it again")
        with torch.serialization.safe_globals(classes), open(path, "rb") as stream:
            # Mapped, not read: an optimiser's state is twice as large as the weights.
            source = path if mapped else stream
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except EcglibError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise EcglibError(f"{path} {_refusal(str(error))}") from None


def _refusal(error: str) -> str:
    """torch's page-long message in one line."""
    if found := re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", error, re.IGNORECASE):
        return f"is refused: it asks for {found[1]}, and a file of weights must not run code"
    if "Only persistent_load of storage is allowed" in error:
        return "holds a whole module in torch's old format: save it again with torch 1.6 or later"
    reason = error.rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")[0]
    return f"is damaged or holds more than weights: fetch it again ({' '.join(reason.split())[:120]})"


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes, as stored: float32 and bfloat16 copies differ."""
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
