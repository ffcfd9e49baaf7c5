"""The C++ kernels for CPUs: one handle is one engine's threads and memory, set up once.

Rules: what cannot be given to C++ raises UnsuitedError, and the caller takes the reference. Each
operation is defined by the reference function of its name; a call releases the GIL and is made by
one thread at a time. Operations serve tests, benchmarks and experts that are computed apart; whole
steps go through `forward`.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels import library as abi
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.layers import Norm
from novamesh_engine.models.moe import Router
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix

_KINDS: Final = {torch.float32: 0, torch.float16: 1}
_NF4: Final = 2
KV_KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class UnsuitedError(Exception):
    """Why C++ cannot take a tensor: its type, its device, its width."""


class Native:
    """The operations of the C++ library, on its own threads. `int8` rounds NF4's activations."""

    def __init__(self, library: ctypes.CDLL, isa: str, threads: int, int8: bool) -> None:
        handle = library.nm_open(abi.SETS.index(isa), threads, int8)
        if not handle:
            raise MemoryError(f"no memory for {threads} kernel threads")
        self.library = library
        self.isa = isa
        self.threads = threads
        self.int8 = int8
        self.handle = handle
        weakref.finalize(self, library.nm_close, handle)

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        """Bound: exact, 1e-6 of the sum of the magnitudes; int8, 2 % of the result's rms."""
        layer = matrix(weight, bias)
        x = plain(x)
        _fit(x.shape[1] == layer.width)
        out = torch.empty((x.shape[0], layer.rows))
        self.done(self.library.nm_linear(
            self.handle, ctypes.addressof(layer), x.data_ptr(), x.shape[0], out.data_ptr()
        ))  # fmt: skip
        return out

    def route(self, x: Tensor, router: Router) -> tuple[Tensor, Tensor]:
        """Bound: relative 1e-5; equal scores go to the lower id."""
        shape, x = router_of(router), plain(x)
        _fit(x.shape[1] == shape.hidden)
        weights = torch.empty((x.shape[0], shape.slots))
        ids = torch.empty((x.shape[0], shape.slots), dtype=torch.int64)
        self.done(self.library.nm_route(
            self.handle, ctypes.addressof(shape), x.data_ptr(), x.shape[0], weights.data_ptr(),
            ids.data_ptr(),
        ))  # fmt: skip
        return weights, ids

    def experts(
        self, x: Tensor, routing: tuple[Tensor, Tensor], gate_up: Matrix, down: Matrix
    ) -> Tensor:
        """Bound: exact, relative 1e-5; int8, 2 % of the result's rms."""
        (weights, ids), shape, x = routing, stack(gate_up, down), plain(x)
        _fit(x.shape == (ids.shape[0], shape.gate_up.width) and weights.shape == ids.shape)
        _fit(ids.dtype == torch.int64 and ids.is_contiguous())
        out = torch.zeros_like(x)
        self.done(self.library.nm_experts(
            self.handle, ctypes.addressof(shape), x.data_ptr(), x.shape[0], ids.shape[1],
            ids.data_ptr(), plain(weights).data_ptr(), out.data_ptr(),
        ))  # fmt: skip
        return out

    def normalise(self, x: Tensor, norm: Norm) -> Tensor:
        """Bound: relative 1e-5 of the reference."""
        shape, x = normalisation(norm), plain(x)
        _fit(x.shape[1] == shape.width)
        out = torch.empty_like(x)
        self.done(self.library.nm_normalise(
            self.handle, ctypes.addressof(shape), x.data_ptr(), x.shape[0], out.data_ptr()
        ))  # fmt: skip
        return out

    def attention(
        self, query: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float, *,
        window: int | None = None, key_scales: Tensor | None = None,
        value_scales: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Bound: 1e-5 of the values seen, as the cache holds them."""
        tokens, heads, width = query.shape
        shape = _attention_shape(keys, batch, heads, scale, window)
        _fit(shape.width == width and shape.tokens == tokens and heads % shape.kv_heads == 0)
        cache = _pages(keys, values, key_scales, value_scales)
        index = abi.AttentionBatch(
            starts=batch.sequence_starts.data_ptr(), positions=batch.positions.data_ptr(),
            tables=batch.block_tables.data_ptr(), slots=batch.slots.data_ptr(),
        )  # fmt: skip
        out = torch.empty((tokens, heads, width))
        self.done(self.library.nm_attend(
            self.handle, *map(ctypes.addressof, (shape, cache, index)),
            plain(query).data_ptr(), out.data_ptr(),
        ))  # fmt: skip
        return out

    def write_kv(
        self, keys: Tensor, values: Tensor, batch: ForwardBatch, new_keys: Tensor,
        new_values: Tensor, key_scales: Tensor | None = None, value_scales: Tensor | None = None,
    ) -> None:  # fmt: skip
        """New keys and values [T, kv_heads, D] to batch.slots; the same bits as the reference."""
        shape = _attention_shape(keys, batch, keys.shape[1], 1.0, None)
        _fit(new_keys.shape == new_values.shape == (shape.tokens, shape.kv_heads, shape.width))
        cache = _pages(keys, values, key_scales, value_scales)
        self.done(self.library.nm_write_kv(
            self.handle, ctypes.addressof(shape), ctypes.addressof(cache), batch.slots.data_ptr(),
            plain(new_keys).data_ptr(), plain(new_values).data_ptr(),
        ))  # fmt: skip

    def read(self, data: Tensor) -> int:
        """Read all bytes of a tensor with all threads, as fast as memory gives them."""
        _fit(data.is_contiguous())
        return int(self.library.nm_read(self.handle, data.data_ptr(), data.nbytes))

    def done(self, status: int) -> None:
        """Raises: MemoryError; an index out of range is a bug of ours."""
        if status == -1:
            raise MemoryError("a native kernel found no memory")
        assert status == 0, f"a native kernel was given an index out of range: {status}"


def plain(x: Tensor) -> Tensor:
    """A tensor that C++ reads as floats. Raises: UnsuitedError."""
    if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
        raise UnsuitedError(f"{x.dtype} on {x.device} is not plain float32 of the CPU")
    return x


def matrix(weight: Matrix, bias: Tensor | None = None) -> abi.Matrix:
    """A matrix [N, K] or a stack [E, N, K] as C++ takes it; K is a multiple of 64.

    Raises: UnsuitedError.
    """
    *_, rows, width = weight.shape
    data, scales = (
        (weight.packed, weight.absmax) if isinstance(weight, NF4Matrix) else (weight, None)
    )
    kind = _NF4 if scales is not None else _KINDS.get(data.dtype)
    if kind is None or data.device.type != "cpu" or not data.is_contiguous() or width % BLOCK:
        raise UnsuitedError(f"{data.dtype} {tuple(weight.shape)} on {data.device}")
    if scales is not None:
        _fit(scales.is_contiguous() and scales.dtype == torch.float16)
        _fit(scales.shape == (*data.shape[:-1], width // BLOCK) and data.dtype == torch.uint8)
    if bias is not None:
        _fit(bias.shape == (rows,))
    return abi.Matrix(
        weights=data.data_ptr(), scales=None if scales is None else scales.data_ptr(),
        bias=None if bias is None else plain(bias).data_ptr(), rows=rows, width=width, kind=kind,
    )  # fmt: skip


def stack(gate_up: Matrix, down: Matrix) -> abi.Stack:
    """Experts [E, 2F, H] and [E, H, F], or one dense network [2F, H] and [H, F]."""
    wide, narrow = matrix(gate_up), matrix(down)
    _fit(gate_up.shape[:-2] == down.shape[:-2])
    _fit(wide.rows == 2 * narrow.width and wide.width == narrow.rows)
    experts = gate_up.shape[0] if len(gate_up.shape) == 3 else 1
    return abi.Stack(gate_up=wide, down=narrow, experts=experts)


def router_of(router: Router) -> abi.Router:
    """A router; its weights are float32 whatever the experts are."""
    weights = plain(router.weight)
    experts, hidden = weights.shape
    if hidden % BLOCK:
        raise UnsuitedError(f"a router {hidden} wide")
    _fit(1 <= router.experts_per_token <= experts)
    return abi.Router(
        weights=weights.data_ptr(), experts=experts, slots=router.experts_per_token,
        hidden=hidden, sparsemixer=router.kind == "sparsemixer",
        renormalise=router.renormalise, jitter=router.jitter,
    )  # fmt: skip


def normalisation(norm: Norm | None) -> abi.Norm:
    """A norm, or none."""
    if norm is None:
        return abi.Norm()
    bias = None if norm.bias is None else plain(norm.bias)
    _fit(bias is None or bias.shape == norm.weight.shape)
    return abi.Norm(
        weight=plain(norm.weight).data_ptr(), bias=None if bias is None else bias.data_ptr(),
        width=norm.weight.shape[0], centred=norm.centred, eps=norm.eps,
    )  # fmt: skip


def _attention_shape(
    keys: Tensor, batch: ForwardBatch, heads: int, scale: float, window: int | None
) -> abi.AttentionShape:
    blocks, kv_heads, block_size, width = keys.shape
    return abi.AttentionShape(
        heads=heads, kv_heads=kv_heads, width=width, blocks=blocks, block_size=block_size,
        table_width=batch.block_tables.shape[1], sequences=batch.block_tables.shape[0],
        tokens=batch.positions.shape[0], window=window or 0, scale=scale,
    )  # fmt: skip


def _pages(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None
) -> abi.KvLayer:
    if keys.dtype not in KV_KINDS or keys.device.type != "cpu":
        raise UnsuitedError(f"a cache of {keys.dtype} on {keys.device}")
    _fit(keys.shape == values.shape and keys.dtype == values.dtype)
    _fit(keys.is_contiguous() and values.is_contiguous())
    for scales in (key_scales, value_scales):
        _fit((scales is None) == (keys.dtype != torch.int8))
        _fit(scales is None or scales.shape == keys.shape[:-1])
    return abi.KvLayer(
        kind=KV_KINDS[keys.dtype], keys=keys.data_ptr(), values=values.data_ptr(),
        key_scales=None if key_scales is None else plain(key_scales).data_ptr(),
        value_scales=None if value_scales is None else plain(value_scales).data_ptr(),
    )  # fmt: skip


def _fit(fits: bool) -> None:
    if not fits:
        raise ValueError("a native kernel was given shapes that do not fit each other")
