"""What made a result: hashes of settings, code and data, commit, machine; files that are whole or absent."""

import ast
import functools
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ecglib.errors import EcglibError

PACKAGE = "ecglib"
# Their code can change without changing any result.
NEUTRAL = {"ecglib", "ecglib.errors", "ecglib.memory", "ecglib.progress", "ecglib.provenance"}


def digest(value: object) -> str:
    """Hash any JSON-like value or dataclass: 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on failure removed.

    A killed process leaves either the old file or none, never half a file under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_made(path: Path, keys: Sequence[str], command: str) -> dict[str, Any]:
    """Read the JSON that `command` writes. EcglibError, which names it, where the file or a key lacks."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        if set(keys) <= made.keys():
            return made
        reason = "a key is missing"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise EcglibError(f"{path} cannot be read ({reason}): run {command}")


@functools.cache
def code_hash(module: str) -> str:
    """Hash the code of an ecglib module and of all ecglib modules that it imports.

    Comments, docstrings and layout do not count, nor do the modules that cannot change a result.
    """
    return digest({name: _syntax(name) for name in sorted(_imports(module) - NEUTRAL)})


def _imports(module: str, seen: frozenset[str] = frozenset()) -> set[str]:
    found = {module}
    for name in _direct_imports(module) - seen - found:
        found |= _imports(name, seen | found)
    return found


@functools.cache
def _direct_imports(module: str) -> frozenset[str]:
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE}
    return frozenset(name for name in names if _source(name) is not None) - {PACKAGE}


@functools.cache
def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # an imported name that is a function, not a module
        return None
    return Path(spec.origin) if spec and spec.origin else None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _source(module)
    if path is None:
        raise ModuleNotFoundError(module)
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _syntax(module: str) -> str:
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def commit() -> str:
    """The git commit of the working tree, `+changes` where files differ from it, `unknown` outside git."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        return git("rev-parse", "--short=12", "HEAD").strip() + (
            "+changes" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str | int]:
    """Processor, cores, accelerator and versions: what a wall time means nothing without.

    With the processor's instructions, since one name covers some that round differently.
    """
    import torch

    from ecglib.precision import processor_has_bf16

    instructions = torch.backends.cpu.get_cpu_capability() + (", bfloat16" if processor_has_bf16() else "")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "processor": f"{_processor()} ({instructions})",
        "cores": os.cpu_count() or 1,
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
