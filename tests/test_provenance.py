"""What made a result: equal for equal makers, other for any change that matters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecglib import provenance
from ecglib.provenance import atomic_path, code_hash, digest, file_sha256

JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)


@given(st.dictionaries(st.text(), JSON, min_size=2))
def test_digest_ignores_the_order_of_keys(value: dict) -> None:
    assert digest(value) == digest(dict(reversed(list(value.items()))))


def test_digest_refuses_what_has_no_canonical_form() -> None:
    with pytest.raises(TypeError, match="set has no canonical JSON"):
        digest({"a": {1, 2}})


def test_file_sha256_equals_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"ecg" * 1000)
    printed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert file_sha256(path) == printed.split()[0]


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write modules of a throwaway package and hash one of them in a fresh process."""
    folder = tmp_path / "ecglib"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "provenance.py").write_text(Path(provenance.__file__).read_text())

    def hash_of(module: str, **sources: str) -> str:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        code = f"from ecglib.provenance import code_hash; print(code_hash('ecglib.{module}'))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout

    return hash_of


def test_code_hash_follows_imports_and_ignores_comments(package) -> None:
    first = package("b", a="def f():\n    return 1\n", b="from ecglib.a import f\n")
    assert package("b", a='def f():\n    """Say."""\n    # why\n    return (1)\n') == first
    assert package("b", a="def f():\n    return 2\n") != first
    assert package("a", b="from ecglib.a import f as g\n") != package("b")


def test_each_module_is_read_once_however_many_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every page hashes them all; unparsed again for each module that imports it, the code took 13 s a page.
    for cached in (code_hash, provenance._syntax):
        cached.cache_clear()
    read, unparse = [], ast.unparse
    monkeypatch.setattr(ast, "unparse", lambda tree: read.append(id(tree)) or unparse(tree))
    modules = [path.stem for path in Path(provenance.__file__).parent.glob("*.py") if path.stem != "__init__"]
    for name in modules:
        code_hash(f"ecglib.{name}")
    assert len(modules) - len(provenance.NEUTRAL) <= len(read) <= len(modules)
    assert len(set(read)) == len(read)


def test_commit_names_this_checkout() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert provenance.commit().removesuffix("+changes") == head[:12]
