"""Whether an error says that memory ran out: everybody who runs out says it differently."""

from __future__ import annotations

from typing import Final

import torch

# torch has a type of its own for its allocator on devices only. What the driver, cuBLAS and Triton
# say comes in a RuntimeError, as does the CPU's.
_SAID: Final = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a step failed because the process or the device has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(said in str(error) for said in _SAID)
