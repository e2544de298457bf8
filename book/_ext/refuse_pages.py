"""Sphinx extension: no book with a page whose notebook failed, is stale or does not say what made it.

Jupyter Book builds such pages without a word, even under -W. `ecglib.pages.assemble` checks every notebook,
its parameters included, before it copies it without papermill's metadata; this is the second check, of the
files that the build reads, whoever laid them out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from ecglib.errors import EcglibError
from ecglib.pages import EXECUTED, check_executed


def setup(app: Sphinx) -> dict[str, bool]:
    """Check the notebooks before Sphinx reads a single page."""
    app.connect("builder-inited", refuse_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def refuse_pages(app: Sphinx) -> None:
    """Raise ExtensionError for the first page of the table of contents that must not be built."""
    source = Path(app.srcdir)
    toc = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    files = [file for file in map(Path, _files(toc)) if EXECUTED in file.parents]
    pages = [str(file.relative_to(EXECUTED)) for file in files]
    keys = _read_keys(source / EXECUTED / "keys.json") if pages else {}
    for page in pages:
        if page not in keys:
            raise ExtensionError(
                f"{page}: {EXECUTED}/keys.json does not know this page; run `ecglib run` again"
            )
        try:
            check_executed(source / EXECUTED / f"{page}.ipynb", keys[page])
        except EcglibError as error:
            raise ExtensionError(str(error)) from error


def _files(toc: Any) -> Iterator[str]:
    if isinstance(toc, list):
        for entry in toc:
            yield from _files(entry)
    elif isinstance(toc, dict):
        if "file" in toc:
            yield str(toc["file"])
        for value in toc.values():
            yield from _files(value)


def _read_keys(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise ExtensionError(
            f"{path.name}: missing, so no page can be known to be fresh; build the book by `ecglib run`"
        )
    return json.loads(path.read_text(encoding="utf-8"))
