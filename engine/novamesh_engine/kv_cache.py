"""The memory of the paged cache: two tensors a layer. Who owns which page is the block pool's.

Rules: allocated once, zeroed (a page nobody wrote holds no NaN), never resized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from novamesh_engine.models.config import ModelConfig


def slot_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes over all layers, keys and values together."""
    return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize


class PagedKV:
    """Keys and values of all layers, each [blocks, block_size, kv_heads, head_dim]."""

    def __init__(
        self, config: ModelConfig, blocks: int, block_size: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (config.layers, blocks, block_size, config.kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def keys(self, layer: int) -> Tensor:
        """Keys of one layer, contiguous; the decoder writes here."""
        return self._keys[layer]

    def values(self, layer: int) -> Tensor:
        """Values of one layer, contiguous; the decoder writes here."""
        return self._values[layer]
