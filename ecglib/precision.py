"""The number format of training: bfloat16 where the processor multiplies matrices in it, else float32."""

from typing import Literal, TypeAlias, cast

import torch

from ecglib.errors import EcglibError

# Lightning Fabric's names, so that the answer can be handed to Fabric as it is.
Precision: TypeAlias = Literal["bf16-mixed", "32-true"]
CHOICES = ("auto", "bf16-mixed", "32-true")


def resolve_precision(name: str) -> Precision:
    """Turn "auto" into "bf16-mixed" or "32-true" for this machine; pass these two on as they are.

    auto is bfloat16 on a CUDA device that has it and on a processor with AMX tiles or AVX512-BF16 dot
    products.
    Raises EcglibError for any other name.
    """
    if name not in CHOICES:
        raise EcglibError(f"precision {name!r} is unknown: choose one of {', '.join(CHOICES)}")
    if name != "auto":
        return cast(Precision, name)
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if processor_has_bf16() else "32-true"


def processor_has_bf16() -> bool:
    """Whether this processor multiplies matrices in bfloat16, so that `auto` takes it."""
    # Private names of torch: where a version lacks one, the answer is no and training is only slower.
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which convolutions and matrix products run in bfloat16 if `precision` says so.

    For loops that do without Fabric (which brings its own).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
