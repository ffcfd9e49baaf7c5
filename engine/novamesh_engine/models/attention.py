"""One attention layer: project, normalise, rotate, write to the paged cache, attend, project back.

The cache is written before it is read, so that a chunk of a prompt sees itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.layers import Linear, Norm


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention; `qkv` holds the rows of q, then k, then v.

    The norms' weights are [head_dim] (each head by itself) or as wide as all heads together.
    `clip` bounds queries, keys and values after the norms. With a window of w tokens, a token at
    position p sees the positions in (p - w, p].
    """

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv: Linear
    output: Linear
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    clip: float | None = None
    window: int | None = None

    def __call__(
        self, x: Tensor, angles: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KVCache
    ) -> Tensor:
        """x float32 [T, H] to float32 [T, H]; writes K and V of the new tokens at batch.slots."""
        sizes = [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]
        query, key, value = torch.split(self.qkv(x), sizes, dim=1)
        query = reference.rotate(self._heads(query, self.query_norm), *angles)
        key = reference.rotate(self._heads(key, self.key_norm), *angles)
        reference.write_kv(kv.keys(self.layer), kv.key_scales(self.layer), batch.slots, key)
        values = self._heads(value, None)
        reference.write_kv(kv.values(self.layer), kv.value_scales(self.layer), batch.slots, values)
        seen = reference.attention(
            query, kv.keys(self.layer), kv.values(self.layer), batch, self.head_dim**-0.5,
            window=self.window, key_scales=kv.key_scales(self.layer),
            value_scales=kv.value_scales(self.layer),
        )  # fmt: skip
        return self.output(seen.flatten(1))

    def _heads(self, x: Tensor, norm: Norm | None) -> Tensor:
        """x [T, heads * D], normalised and clipped, as [T, heads, D]."""
        if norm is not None:
            x = norm(x.reshape(x.shape[0], -1, norm.weight.shape[0]))
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        return x.reshape(x.shape[0], -1, self.head_dim)
