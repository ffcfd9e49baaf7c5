"""One attention layer: project, rotate, write to the paged cache, attend, project back.

The cache is written before it is read, so that a chunk of a prompt sees itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.layers import Linear


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention; `qkv` holds the rows of q, then k, then v."""

    layer: int
    config: ModelConfig
    qkv: Linear
    output: Linear

    def __call__(
        self, x: Tensor, angles: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KVCache
    ) -> Tensor:
        """x float32 [T, H] to float32 [T, H]; writes K and V of the new tokens at batch.slots."""
        config, kernels = self.config, self.qkv.kernels
        rotated = config.heads + config.kv_heads
        qkv = self.qkv(x).view(x.shape[0], rotated + config.kv_heads, config.head_dim)
        query_key = kernels.rotate(qkv[:, :rotated], *angles)
        keys, values = kv.keys(self.layer), kv.values(self.layer)
        _write(keys, batch.slots, query_key[:, config.heads :])
        _write(values, batch.slots, qkv[:, rotated:])
        query = query_key[:, : config.heads]
        seen = kernels.attention(query, keys, values, batch, config.head_dim**-0.5)
        return self.output(seen.flatten(1))


def _write(cache: Tensor, slots: Tensor, new: Tensor) -> None:
    cache.flatten(0, 1).index_copy_(0, slots, new.to(cache.dtype))
