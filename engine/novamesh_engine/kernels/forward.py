"""A whole decoder in C++: described once at load, then one call a step.

Rules: the structures point into the decoder's tensors, which are kept alive here; what a step reads
was checked by ForwardBatch, indices are checked by C++. The result is that of `Decoder.forward`,
within relative 1e-5. Where NF4's activations are rounded the distance grows with depth: within 2 %
for 2 to 4 layers, up to 6 % was measured for 16. With float32 arithmetic a token's logits depend on
the others of a batch by rounding only; with int8, matrix products do not depend on them at all.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from novamesh_engine.kernels import library as abi
from novamesh_engine.kernels.native import (
    KV_KINDS,
    Native,
    UnsuitedError,
    matrix,
    normalisation,
    plain,
    router_of,
    stack,
)
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.decoder import Decoder, Layer
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix


class NativeForward:
    """`Decoder.forward` on native kernels. Raises: UnsuitedError for what C++ does not take."""

    def __init__(self, decoder: Decoder, native: Native) -> None:
        rounded = native.int8 and isinstance(decoder.layers[0].attention.qkv.weight, NF4Matrix)
        self.name = f"native-{native.isa}{'-int8' if rounded else ''}"
        self.precision = "int8" if rounded else "exact"
        self.why = ""  # there is nothing faster
        self._native = native
        self._decoder = decoder  # the structures point into its tensors
        self._layers = (abi.Layer * len(decoder.layers))(*map(_layer, decoder.layers))
        attention = decoder.layers[0].attention
        self._shape = abi.Decoder(
            layer_count=len(decoder.layers), hidden=decoder.embedding.shape[1],
            heads=attention.heads, kv_heads=attention.kv_heads, width=attention.head_dim,
            vocab=decoder.embedding.shape[0], layers=self._layers,
            norm=normalisation(decoder.norm), embedding=matrix(decoder.embedding),
            head=matrix(decoder.head.weight, decoder.head.bias),
        )  # fmt: skip

    @property
    def threads(self) -> int:
        """Threads that share a step."""
        return self._native.threads

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits float32 [R, vocab] of batch.logit_rows; writes the new tokens' K and V.

        Raises: MemoryError, after which the step can be repeated.
        """
        angles = self._decoder.rotary.angles(batch.positions, batch.rope_lengths)
        cosines, sines = (plain(angle.contiguous()) for angle in angles)
        logits = torch.empty((batch.logit_rows.shape[0], self._shape.vocab))
        cache = self._cache(kv)
        step = abi.Step(
            tokens=batch.token_ids.shape[0], sequences=batch.block_tables.shape[0],
            table_width=batch.block_tables.shape[1], rows=batch.logit_rows.shape[0],
            ids=batch.token_ids.data_ptr(), positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(), logit_rows=batch.logit_rows.data_ptr(),
            starts=batch.sequence_starts.data_ptr(), tables=batch.block_tables.data_ptr(),
            cosines=cosines.data_ptr(), sines=sines.data_ptr(), logits=logits.data_ptr(),
        )  # fmt: skip
        self._native.done(self._native.library.nm_forward(
            self._native.handle, *map(ctypes.addressof, (self._shape, cache, step))
        ))  # fmt: skip
        return logits

    def _cache(self, kv: KVCache) -> abi.Cache:
        """The pages of all layers, which lie one layer behind the other."""
        keys, values = kv.keys(0), kv.values(0)
        blocks, heads, size, width = keys.shape
        last = len(self._layers) - 1
        if keys.dtype not in KV_KINDS or keys.device.type != "cpu" or keys.shape != values.shape:
            raise UnsuitedError(f"a cache of {keys.dtype} on {keys.device}")
        if (heads, width) != (self._shape.kv_heads, self._shape.width) or any(
            of(last).data_ptr() - of(0).data_ptr() != last * keys.nbytes
            for of in (kv.keys, kv.values)
        ):
            raise ValueError("the layers of a cache do not lie one behind the other")
        key_scales, value_scales = kv.key_scales(0), kv.value_scales(0)
        return abi.Cache(
            keys=keys.data_ptr(), values=values.data_ptr(),
            key_scales=None if key_scales is None else plain(key_scales).data_ptr(),
            value_scales=None if value_scales is None else plain(value_scales).data_ptr(),
            kind=KV_KINDS[keys.dtype], blocks=blocks, block_size=size,
        )  # fmt: skip


def _layer(layer: Layer) -> abi.Layer:
    attention, mlp = layer.attention, layer.mlp
    shared = mlp.shared if isinstance(mlp, MoE) else None
    return abi.Layer(
        attention_norm=normalisation(layer.attention_norm),
        query_norm=normalisation(attention.query_norm),
        key_norm=normalisation(attention.key_norm),
        mlp_norm=normalisation(layer.mlp_norm),
        qkv=matrix(attention.qkv.weight, attention.qkv.bias),
        output=matrix(attention.output.weight, attention.output.bias),
        router=router_of(mlp.router) if isinstance(mlp, MoE) else abi.Router(),
        experts=stack(mlp.gate_up, mlp.down),
        shared=abi.Stack() if shared is None else stack(shared.gate_up, shared.down),
        shared_gate=None if shared is None else plain(shared.gate).data_ptr(),
        window=attention.window or 0,
        clip=attention.clip or 0.0,
    )
