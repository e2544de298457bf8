"""ecglib: HeartBEiT on ECG images, one file a stage, from record to page. `load` gives pretrained weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecglib.published import load as load


def __getattr__(name: str) -> Any:
    if name == "load":  # torch takes seconds, and most of the package can do without it
        from ecglib.published import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
