"""What is correct: every operation of the decoder in plain torch, float32 arithmetic.

Each fast kernel is held to these functions within its stated bound. Rules: inputs may be of any
floating type, arithmetic and results are float32; a matrix that is not float32 is widened by tiles
of rows and dropped, never whole; no function keeps state. It also runs where nothing faster can.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import torch
from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.quant.codebook import NF4Matrix, dequantize

Matrix: TypeAlias = Tensor | NF4Matrix
ROW_TILE: Final = 1024  # rows widened at a time: 16 MiB at a width of 4096
SCORES_MAX: Final = 1 << 21  # attention scores of a tile: 8 MiB, some five times over at work


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of x [..., H] to a root mean square of one, then by weight [H]."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Shift and scale each row of x [..., H] to mean 0 and variance 1, then by weight and bias."""
    x = x.float()
    x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()
    return x if bias is None else x + bias.float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [T, heads, D] by angles given as cos and sin, each [T, D / 2].

    Element i is paired with element i + D / 2 (the layout of Hugging Face's checkpoints).
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the rows of weight [N, K], plus bias [N]: float32 [T, N]."""
    x = x.float()
    if isinstance(weight, Tensor) and weight.dtype == torch.float32:
        return torch.nn.functional.linear(x, weight, bias)
    rows = weight.shape[0]
    out = x.new_empty((x.shape[0], rows))
    for start in range(0, rows, ROW_TILE):
        stop = min(start + ROW_TILE, rows)
        out[:, start:stop] = x @ _widen(weight, start, stop).T
    return out if bias is None else out + bias.float()


def _widen(weight: Matrix, start: int, stop: int) -> Tensor:
    if isinstance(weight, NF4Matrix):
        return dequantize(weight.rows(start, stop))
    return weight[start:stop].float()


def route(
    x: Tensor, router: Tensor, experts_per_token: int, renormalise: bool = True
) -> tuple[Tensor, Tensor]:
    """Softmax over all experts, the k largest, scaled to sum to one if `renormalise`.

    Returns weights float32 [T, k] and expert ids int64 [T, k], largest weight first.
    """
    chances = torch.softmax(linear(x, router), dim=-1)
    weights, ids = torch.topk(chances, experts_per_token, dim=-1)
    return (weights / weights.sum(-1, keepdim=True) if renormalise else weights), ids


def sparsemixer(x: Tensor, router: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The two best experts, each weighed against those whose score is nearly its own.

    GRIN (Liu et al. 2024, arXiv:2409.12136), eq. 7 without its noise: of the scores s, those with
    (max - s) / max(|s|, max) > 2 jitter drop out and a softmax over the rest weighs the best; then
    the same without the best. Usually both weights are close to one.
    Returns weights float32 [T, 2] and expert ids int64 [T, 2], the best first.
    """
    scores = left = linear(x, router)
    weights, ids = [], []
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - scores) / scores.abs().maximum(best) > 2 * jitter
        chances = torch.softmax(left.masked_fill(far, float("-inf")), dim=-1)
        weights.append(chances.gather(-1, index))
        ids.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(weights, dim=-1), torch.cat(ids, dim=-1)


def dispatch(ids: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Group the (token, slot) pairs of ids [T, k] by expert: (expert, tokens, slots) of each.

    A slot whose id is -1 is empty and in no group.
    """
    flat = ids.flatten()
    order = torch.argsort(flat, stable=True)
    order = order[flat[order] >= 0]
    used, counts = torch.unique_consecutive(flat[order], return_counts=True)
    pairs = torch.split(order, counts.tolist())
    slots = ids.shape[1]
    return [(e, p // slots, p % slots) for e, p in zip(used.tolist(), pairs, strict=True)]


def expert(x: Tensor, gate_up: Matrix, down: Matrix) -> Tensor:
    """One SwiGLU expert on x [T, H]: gate_up [2F, H] holds the gate's rows, then up's."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(torch.nn.functional.silu(gate) * up, down)


def shared_expert(x: Tensor, gate_up: Matrix, down: Matrix, gate: Tensor) -> Tensor:
    """The expert that every token of x [T, H] gets, times sigmoid of gate [1, H] · x."""
    return torch.sigmoid(linear(x, gate)) * expert(x, gate_up, down)


def combine(products: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over slots of products [T, k, H] by weights [T, k], slot after slot."""
    total = products[:, 0] * weights[:, :1]
    for slot in range(1, weights.shape[1]):
        total = total + products[:, slot] * weights[:, slot : slot + 1]
    return total


def experts(x: Tensor, routing: tuple[Tensor, Tensor], gate_up: Matrix, down: Matrix) -> Tensor:
    """The routed experts of x [T, H]: stacks gate_up [E, 2F, H] and down [E, H, F]; float32.

    routing is weights [T, k] and ids [T, k]; an empty slot (id -1) adds nothing.
    """
    weights, ids = routing
    products = x.new_zeros((*ids.shape, x.shape[1]), dtype=torch.float32)
    for index, tokens, slots in dispatch(ids):
        products[tokens, slots] = expert(x[tokens], gate_up[index], down[index])
    return combine(products, weights)


def write_kv(cache: Tensor, scales: Tensor | None, slots: Tensor, new: Tensor) -> None:
    """Write keys or values of new tokens [T, kv_heads, D] into a cache at their slots.

    cache [blocks, kv_heads, size, D]: float32 as they are, bfloat16 rounded to nearest even, int8
    with scales [blocks, kv_heads, size] = max|x| / 127 over each head's D, x / scale rounded to
    nearest even; a head of zeros has scale 0.
    """
    blocks, offsets = slots // cache.shape[2], slots % cache.shape[2]
    if scales is not None:
        scale = new.abs().amax(-1) / 127
        scales[blocks, :, offsets] = scale
        steps = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
        new = torch.round(new / steps).clamp(-127, 127)
    cache[blocks, :, offsets] = new.to(cache.dtype)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Causal attention of query [T, heads, D] over a paged cache [blocks, kv_heads, size, D].

    A token sees the positions up to its own of its own sequence, the last `window` of them if there
    is one. Heads share kv heads in groups (GQA). Caches of int8 come with their scales. Returns
    float32 [T, heads, D].
    """
    out = torch.empty_like(query, dtype=torch.float32)
    starts, lengths = batch.sequence_starts.tolist(), batch.context_lengths.tolist()
    for index, length in enumerate(lengths):
        blocks = batch.block_tables[index, : -(-length // keys.shape[2])].long()
        key = gather_pages(keys, key_scales, blocks, length)
        value = gather_pages(values, value_scales, blocks, length)
        tile = max(1, SCORES_MAX // (query.shape[1] * length))
        for start in range(starts[index], starts[index + 1], tile):
            span = slice(start, min(start + tile, starts[index + 1]))
            some, positions = query[span].float() * scale, batch.positions[span]
            out[span] = _attend(some, key, value, positions, window)
    return out


def gather_pages(
    cache: Tensor,
    scales: Tensor | None,
    blocks: Tensor,
    length: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A sequence's keys or values as [kv_heads, length, D] of a floating type."""
    found = cache[blocks].to(dtype)
    if scales is not None:
        found = found * scales[blocks].unsqueeze(-1).to(dtype)
    return found.transpose(0, 1).flatten(1, 2)[:, :length]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, window: int | None
) -> Tensor:
    tokens, heads, width = query.shape
    grouped = query.view(tokens, key.shape[0], heads // key.shape[0], width)
    scores = torch.einsum("tgqd,gcd->gqtc", grouped, key)
    places = torch.arange(key.shape[1], device=key.device)
    hidden = places > positions[:, None]
    if window is not None:
        hidden |= places <= positions[:, None] - window
    chances = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("gqtc,gcd->tgqd", chances, value).reshape(tokens, heads, width)
