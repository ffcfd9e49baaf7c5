"""The memory of the paged cache: two tensors a layer, and their scales where elements are int8.

Rules: allocated once, zeroed (a page nobody wrote holds no NaN), never resized. On a CPU it is
mapped, so that what was never written takes no memory. What is written is the decoder's business
(`reference.write_kv` defines it), who owns which page is the block pool's.
"""

from __future__ import annotations

import math
import mmap
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.models.config import ModelConfig

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
SCALE: Final = torch.float32


def slot_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes over all layers, keys and values together, scales included."""
    head = config.head_dim * dtype.itemsize + (SCALE.itemsize if dtype == torch.int8 else 0)
    return 2 * config.layers * config.kv_heads * head


class PagedKV:
    """Keys and values of all layers, each [blocks, kv_heads, block_size, head_dim].

    `dtype` is float32, bfloat16, or int8 with scales float32 [blocks, kv_heads, block_size].
    """

    def __init__(
        self, config: ModelConfig, blocks: int, block_size: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (config.layers, blocks, config.kv_heads, block_size)
        self._keys, self._values = (
            _zeros((*shape, config.head_dim), dtype, device) for _ in range(2)
        )
        self._scales: tuple[Tensor, Tensor] | None = None
        if dtype == torch.int8:
            scales = _zeros((2, *shape), SCALE, device)
            self._scales = scales[0], scales[1]

    def keys(self, layer: int) -> Tensor:
        """Keys of one layer, contiguous; the decoder writes here."""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """Values of one layer, contiguous; the decoder writes here."""
        return self._values[layer]

    def key_scales(self, layer: int) -> Tensor | None:
        """Scales of the keys of one layer; None unless they are int8."""
        return None if self._scales is None else self._scales[0][layer]

    def value_scales(self, layer: int) -> Tensor | None:
        """Scales of the values of one layer; None unless they are int8."""
        return None if self._scales is None else self._scales[1][layer]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Raises: MemoryError."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        mapped = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    except OSError as error:
        raise MemoryError(f"no memory for a cache of shape {shape}") from error
    return torch.frombuffer(mapped, dtype=dtype).view(shape)
