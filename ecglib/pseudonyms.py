"""Pseudonyms: ids and file names of a hospital as keyed hashes, so that no name leaves its folder.

HMAC-SHA256 (RFC 2104), cut to 16 hexadecimal digits: whoever has the key can say which patient a pseudonym
is, nobody else can, not even by trying all ids. The same key gives the same pseudonyms.
"""

import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path

from ecglib.errors import EcglibError

KEY_BYTES = 32
MIN_KEY_BYTES = 16
DIGITS = 16


@dataclass(frozen=True)
class Pseudonyms:
    """Makes pseudonyms with one key, which it never shows."""

    key: bytes = field(repr=False)

    def of(self, kind: str, text: str) -> str:
        """The pseudonym of a text; a patient's and a file's never agree, even if their texts do."""
        message = f"{kind}\0{text}".encode(errors="surrogateescape")
        return hmac.digest(self.key, message, "sha256").hex()[:DIGITS]


def default_key_path() -> Path:
    """`ecglib/pseudonyms.key` in the user's folder of settings."""
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "ecglib" / "pseudonyms.key"


def open_pseudonyms(key_path: Path | None, shared: Path | None = None) -> Pseudonyms:
    """Read the key from `key_path`; without one, from the user's own key, which is made at first use.

    Raises EcglibError for a key that is missing, short, readable by others or in the folder `shared`.
    """
    path = key_path or default_key_path()
    if shared is not None and path.resolve().is_relative_to(shared.resolve()):
        raise EcglibError(f"key {path}: lies among the results, which may be shared; move it elsewhere")
    if key_path is None and not path.exists():
        _make_key(path)
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise EcglibError(
            f"key {path}: cannot be read ({error.strerror}); name an existing file, or leave the key out"
        ) from error
    if mode & 0o077:
        raise EcglibError(f"key {path}: others can read it (mode {mode & 0o777:04o}); chmod 600 it")
    if len(key) < MIN_KEY_BYTES:
        raise EcglibError(
            f"key {path}: {len(key)} bytes; it must have at least {MIN_KEY_BYTES}, drawn at random"
        )
    return Pseudonyms(key)


def _make_key(path: Path) -> None:
    """Write a new key that only its owner can read, whole or not at all, and never over another."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(os.urandom(KEY_BYTES))
        os.link(partial, path)
    except FileExistsError:  # another process was first: its key counts
        pass
    finally:
        partial.unlink()
