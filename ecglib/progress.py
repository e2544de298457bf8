"""Progress of long work: a bar in the terminal, or in the file that `ecglib run` follows."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "step") -> Iterator[T]:
    """Yield `items` and show how far the work is.

    Under `ecglib run` the environment variable ECGLIB_PROGRESS names the file to which the bar goes, so that
    notebooks stay free of it; elsewhere it goes to standard error where that is a terminal.
    """
    path = os.environ.get("ECGLIB_PROGRESS")
    stream = open(path, "a", encoding="utf-8") if path else sys.stderr  # noqa: SIM115 (closed below)
    try:
        yield from tqdm(
            items, description, total, file=stream, unit=unit, mininterval=1, ncols=100, leave=False,
            disable=None if path is None else False,
        )  # fmt: skip
    finally:
        if path:
            stream.close()
