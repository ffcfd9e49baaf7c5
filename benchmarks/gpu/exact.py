"""What each kernel should give, in float64: `kernels.reference` and `models.attention` once more.

Those compute in float32, whose own rounding is as large as what a kernel in float32 may be off by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from novamesh_engine.kernels.gpu_attention import Span
from novamesh_engine.kernels.reference import Matrix, gather_pages, write_kv
from novamesh_engine.kv_cache import PagedKV
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.layers import Norm
from novamesh_engine.models.moe import Router
from novamesh_engine.quant.codebook import NF4Matrix, dequantize


def widen(matrix: Matrix) -> Tensor:
    """A matrix in float64."""
    return dequantize(matrix).double() if isinstance(matrix, NF4Matrix) else matrix.double()


def linear(
    x: Tensor, weight: Matrix, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """residual + weight · x + bias."""
    out = x.double() @ widen(weight).T
    out = out if bias is None else out + bias.double()
    return out if residual is None else out + residual.double()


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """Layer norm where it is centred, else RMS norm."""
    x = x.double()
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight.double()
    return x if norm.bias is None else x + norm.bias.double()


def route(scores: Tensor, router: Router, efforts: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and ids [T, k] of scores [T, E]; slots from a token's effort on are empty."""
    count = router.experts_per_token
    if router.kind == "sparsemixer":
        weights, ids = _sparsemixer(scores.double(), router.jitter)
    else:
        weights, ids = torch.topk(torch.softmax(scores.double(), -1), count, -1)
        if router.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
    empty = torch.arange(count, device=ids.device) >= efforts[:, None]
    return weights.masked_fill(empty, 0.0), ids.masked_fill(empty, -1)


def _sparsemixer(scores: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    left, weights, ids = scores, [], []
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - scores) / scores.abs().maximum(best) > 2 * jitter
        chances = torch.softmax(left.masked_fill(far, float("-inf")), -1)
        weights.append(chances.gather(-1, index))
        ids.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(weights, -1), torch.cat(ids, -1)


def spread(routing: tuple[Tensor, Tensor], experts: int) -> Tensor:
    """Weights and ids as one row of weights for each token, whatever the order of its slots."""
    weights, ids = routing
    table = torch.zeros((ids.shape[0], experts + 1), dtype=torch.float64, device=ids.device)
    return table.scatter(1, (ids.long() + 1), weights.double())[:, 1:]


def experts(
    x: Tensor, routing: tuple[Tensor, Tensor], stacks: tuple[Matrix, Matrix], residual: Tensor
) -> Tensor:
    """residual + the routed experts of x [T, H], one expert widened at a time."""
    weights, ids = routing
    out, (gate_up, down) = residual.double(), stacks
    for expert in torch.unique(ids[ids >= 0]).tolist():
        tokens, slots = torch.nonzero(ids == expert, as_tuple=True)
        gate, up = linear(x[tokens], gate_up[expert]).chunk(2, -1)
        product = linear(torch.nn.functional.silu(gate) * up, down[expert])
        out = out.index_add(0, tokens, weights[tokens, slots].double()[:, None] * product)
    return out


def place(
    qkv: Tensor, angles: tuple[Tensor, Tensor], attention: Attention, kv: PagedKV, slots: Tensor
) -> Tensor:
    """Rotated queries [T, heads, D] of projected rows; keys and values go to the cache."""
    of, width = attention, attention.head_dim
    sizes = [count * width for count in (of.heads, of.kv_heads, of.kv_heads)]
    query, key, value = torch.split(qkv.double(), sizes, 1)
    query = _rotate(_heads(query, of.query_norm, of), angles)
    key = _rotate(_heads(key, of.key_norm, of), angles)
    value, layer = _heads(value, None, of), of.layer
    write_kv(kv.keys(layer), kv.key_scales(layer), slots.long(), key.float())
    write_kv(kv.values(layer), kv.value_scales(layer), slots.long(), value.float())
    return query


def _heads(x: Tensor, norm: Norm | None, of: Attention) -> Tensor:
    if norm is not None:
        x = normalise(x.reshape(x.shape[0], -1, norm.weight.shape[0]), norm)
    if of.clip is not None:
        x = x.clamp(-of.clip, of.clip)
    return x.reshape(x.shape[0], -1, of.head_dim)


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (angle.double().unsqueeze(1) for angle in angles)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attend(query: Tensor, attention: Attention, kv: PagedKV, span: Span, table: Tensor) -> Tensor:
    """What the last tokens of one sequence see: [their count, heads * D]."""
    of, layer = attention, attention.layer
    pages = table[: -(-span.length // kv.keys(layer).shape[2])].long()
    key = gather_pages(kv.keys(layer), kv.key_scales(layer), pages, span.length).double()
    value = gather_pages(kv.values(layer), kv.value_scales(layer), pages, span.length).double()
    count, shared = query.shape[0], of.heads // of.kv_heads
    key, value = (part.repeat_interleave(shared, 0) for part in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2) * of.head_dim**-0.5
    places = torch.arange(span.length, device=query.device)
    own = places[span.length - count :, None]
    hidden = places > own
    if of.window is not None:
        hidden = hidden | (places <= own - of.window)
    chances = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
    return (chances @ value).transpose(0, 1).reshape(count, -1)
