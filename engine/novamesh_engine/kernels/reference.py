"""What is correct: every operation of the decoder in plain torch, float32 arithmetic.

Each fast kernel is held to these functions within its stated bound. Rules: inputs may be of any
floating type, arithmetic and results are float32; a matrix that is not float32 is widened by tiles
of rows and dropped, never whole; no function keeps state. It is also the fallback for all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.quant.codebook import NF4Matrix, dequantize

Matrix: TypeAlias = Tensor | NF4Matrix
ROW_TILE: Final = 1024  # rows widened at a time: 16 MiB at a width of 4096


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x [T, H] to a root mean square of one, then by weight [H]."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [T, heads, D] by angles given as cos and sin, each [T, D / 2].

    Element i is paired with element i + D / 2 (the layout of Hugging Face's checkpoints).
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """x [T, K] times the rows of weight [N, K]: float32 [T, N]."""
    x = x.float()
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight)
    rows = weight.shape[0]
    out = x.new_empty((x.shape[0], rows))
    for start in range(0, rows, ROW_TILE):
        stop = min(start + ROW_TILE, rows)
        out[:, start:stop] = x @ _widen(weight, start, stop).T
    return out


def _widen(weight: Matrix, start: int, stop: int) -> Tensor:
    if isinstance(weight, NF4Matrix):
        return dequantize(weight.rows(start, stop))
    return weight[start:stop].float()


def route(x: Tensor, router: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, the k largest, scaled to sum to one.

    Returns weights float32 [T, k] and expert ids int64 [T, k], largest weight first.
    """
    chances = torch.softmax(linear(x, router), dim=-1)
    weights, ids = torch.topk(chances, experts_per_token, dim=-1)
    return weights / weights.sum(-1, keepdim=True), ids


def dispatch(ids: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Group the (token, slot) pairs of ids [T, k] by expert: (expert, tokens, slots) of each."""
    flat = ids.flatten()
    order = torch.argsort(flat, stable=True)
    used, counts = torch.unique_consecutive(flat[order], return_counts=True)
    pairs = torch.split(order, counts.tolist())
    slots = ids.shape[1]
    return [(e, p // slots, p % slots) for e, p in zip(used.tolist(), pairs, strict=True)]


def expert(x: Tensor, gate_up: Matrix, down: Matrix) -> Tensor:
    """One SwiGLU expert on x [T, H]: gate_up [2F, H] holds the gate's rows, then up's."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(torch.nn.functional.silu(gate) * up, down)


def combine(products: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over slots of products [T, k, H] by weights [T, k], slot after slot."""
    total = products[:, 0] * weights[:, :1]
    for slot in range(1, weights.shape[1]):
        total = total + products[:, slot] * weights[:, slot : slot + 1]
    return total


def experts(x: Tensor, routing: tuple[Tensor, Tensor], gate_up: Matrix, down: Matrix) -> Tensor:
    """The routed experts of x [T, H]: stacks gate_up [E, 2F, H] and down [E, H, F]; float32."""
    weights, ids = routing
    products = x.new_zeros((*ids.shape, x.shape[1]), dtype=torch.float32)
    for index, tokens, slots in dispatch(ids):
        products[tokens, slots] = expert(x[tokens], gate_up[index], down[index])
    return combine(products, weights)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float
) -> Tensor:
    """Causal attention of query [T, heads, D] over a paged cache [blocks, size, kv_heads, D].

    A token sees the positions up to its own of its own sequence. Heads share kv heads in groups
    (GQA). Returns float32 [T, heads, D].
    """
    out = torch.empty_like(query, dtype=torch.float32)
    starts, lengths = batch.sequence_starts.tolist(), batch.context_lengths.tolist()
    for index, length in enumerate(lengths):
        span = slice(starts[index], starts[index + 1])
        blocks = batch.block_tables[index, : -(-length // keys.shape[1])].long()
        key = keys[blocks].flatten(0, 1)[:length].float()
        value = values[blocks].flatten(0, 1)[:length].float()
        out[span] = _attend(query[span].float() * scale, key, value, batch.positions[span])
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, positions: Tensor) -> Tensor:
    tokens, heads, width = query.shape
    grouped = query.view(tokens, key.shape[1], heads // key.shape[1], width)
    scores = torch.einsum("tgqd,cgd->gqtc", grouped, key)
    hidden = torch.arange(key.shape[0], device=key.device) > positions[:, None]
    chances = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("gqtc,cgd->tgqd", chances, value).reshape(tokens, heads, width)


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of the decoder's operations; the functions here define each field."""

    name: str
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear: Callable[[Tensor, Matrix], Tensor]
    route: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    experts: Callable[[Tensor, tuple[Tensor, Tensor], Matrix, Matrix], Tensor]
    attention: Callable[[Tensor, Tensor, Tensor, ForwardBatch, float], Tensor]


KERNELS: Final = Kernels("torch", rms_norm, rotate, linear, route, experts, attention)
