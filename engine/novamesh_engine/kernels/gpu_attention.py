"""Attention on a device: lone tokens by one kernel of ours, chunks of prompts by torch's own.

Rules: as `Attention.__call__` defines it, from the projected row to what the output projection
reads; the cache is written before it is read. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
import triton
from torch import Tensor

from novamesh_engine.kernels.device_step import DeviceStep
from novamesh_engine.kernels.gpu import COMPUTE, Gpu
from novamesh_engine.kernels.reference import gather_pages
from novamesh_engine.kernels.triton import attention as kernels
from novamesh_engine.kernels.triton import heads
from novamesh_engine.kernels.tuning import Cut
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.batch import KVCache

SPLITS_MAX: Final = 16
MASK_BYTES: Final = 32 << 20  # of a prompt's mask at a time, in 16 bits
PART_MIN: Final = 128  # tokens of a part below which merging costs more than it saves

_sdpa = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of a step are the last of a sequence of `length`, table `row`."""

    start: int
    stop: int
    length: int
    row: int


Angles: TypeAlias = tuple[Tensor, Tensor]
# Chunks; how many tokens before them are alone; in how many parts these see their context.
Plan: TypeAlias = tuple[Sequence[Span], int, int]


class GpuAttention:
    """The attention of one layer. `angles` are cos and sin, each float32 [T, D / 2]."""

    def __init__(self, gpu: Gpu, attention: Attention) -> None:
        self._gpu = gpu
        self._of = attention
        norms = attention.query_norm, attention.key_norm
        width = attention.head_dim
        self._norm = ""
        if norms[0] is not None:
            self._norm = "head" if norms[0].weight.shape[0] == width else "full"
        self._shape: dict[str, Any] = {
            "QKV": attention.qkv.weight.shape[0], "HEADS": attention.heads,
            "KV_HEADS": attention.kv_heads, "D": width,
            "HALF": max(16, triton.next_power_of_2(width // 2)),
            "QUERY_WIDTH": triton.next_power_of_2(attention.heads * width),
            "KEY_WIDTH": triton.next_power_of_2(attention.kv_heads * width),
            "NORM": self._norm, "CLIP": attention.clip is not None,
        }  # fmt: skip

    def __call__(
        self, qkv: Tensor, angles: Angles, step: DeviceStep, kv: KVCache, plan: Plan
    ) -> Tensor:
        """What the output projection reads, float32 [T, heads * D]; writes the tokens' K and V."""
        spans, lone, splits = plan
        if not spans:
            return self.lone(qkv, angles, step, kv, splits)
        if not lone:
            return self.chunks(qkv, angles, step, kv, spans)
        ones = self.lone(qkv[:lone], angles, step, kv, splits)
        return torch.cat((ones, self.chunks(qkv, angles, step, kv, spans)))

    def lone(
        self, qkv: Tensor, angles: Angles, step: DeviceStep, kv: KVCache, splits: int
    ) -> Tensor:
        """The first tokens, each a sequence's last: float32 [T, heads * D].

        How the grid is cut depends on no length, so that a recording does for all.
        """
        of, tokens = self._of, qkv.shape[0]
        parts = qkv.new_empty((tokens, of.heads, splits, of.head_dim))
        weights = qkv.new_empty((tokens, of.heads, splits, 2))
        group = max(16, triton.next_power_of_2(of.heads // of.kv_heads))

        def run(cut: Cut) -> None:
            kernels.attend_kernel[tokens, of.kv_heads, splits](
                qkv, *self._inputs(qkv, angles, kv), step.slots, step.tables,
                step.tables.shape[1], step.lengths, of.head_dim**-0.5, parts, weights,
                of.window or 0, GROUP=group, **self._shape, **self._cache(kv),
                COMPUTE=COMPUTE[self._gpu.compute], SPLITS=splits, BLOCK=cut.rows, **cut.launch,
            )  # fmt: skip

        shape = (of.heads, of.kv_heads, of.head_dim, splits, kv.keys(of.layer).itemsize)
        run(self._gpu.cut("attend", shape, 1, run))
        if splits == 1:
            return parts.view(tokens, -1)
        out = qkv.new_empty((tokens, of.heads * of.head_dim))
        kernels.merge_kernel[(tokens * of.heads,)](
            parts, weights, out, D=of.head_dim, WIDTH=triton.next_power_of_2(of.head_dim),
            SPLITS=splits,
        )  # fmt: skip
        return out

    def chunks(
        self, qkv: Tensor, angles: Angles, step: DeviceStep, kv: KVCache, spans: Sequence[Span]
    ) -> Tensor:
        """Chunks of any length, up to the last token: float32 [their tokens, heads * D]."""
        of, first = self._of, spans[0].start
        query = qkv.new_empty((qkv.shape[0] - first, of.heads, of.head_dim))
        cosines, sines = angles
        rows = qkv[first:], (cosines[first:], sines[first:])
        heads.place_kernel[query.shape[0], of.heads + of.kv_heads](
            qkv[first:], *self._inputs(*rows, kv), step.slots[first:], query=query,
            **self._shape, **self._cache(kv),
        )  # fmt: skip
        out = torch.empty_like(query)
        for span in spans:
            own = slice(span.start - first, span.stop - first)
            out[own] = self._chunk(query[own], step.tables[span.row], span.length, kv)
        return out.view(query.shape[0], -1)

    def _chunk(self, query: Tensor, table: Tensor, length: int, kv: KVCache) -> Tensor:
        """The last tokens of a sequence of `length`, which are in the cache already."""
        of, kind = self._of, self._gpu.compute
        pages = table[: -(-length // kv.keys(of.layer).shape[2])].long()
        key = gather_pages(kv.keys(of.layer), kv.key_scales(of.layer), pages, length, kind)
        value = gather_pages(kv.values(of.layer), kv.value_scales(of.layer), pages, length, kind)
        key, value, query = key[None], value[None], query.to(kind)
        count, group, scale = query.shape[0], of.heads // of.kv_heads, of.head_dim**-0.5
        if count == length and of.window is None:
            found = _sdpa(
                query.transpose(0, 1)[None], key.repeat_interleave(group, 1),
                value.repeat_interleave(group, 1), is_causal=True, scale=scale,
            )  # fmt: skip
            return found[0].transpose(0, 1).float()
        # With a mask, torch has no fast way for grouped heads: those of a group become rows. The
        # mask is as large as the rows are long, so that few enough are taken at a time.
        out = query.new_empty(query.shape, dtype=torch.float32)
        places = torch.arange(length, device=query.device)
        step = max(16, MASK_BYTES // (2 * group * length))
        for at in range(0, count, step):
            some = query[at : at + step]
            own = places[length - count + at :][: some.shape[0], None]
            mask = places <= own
            if of.window is not None:
                mask &= places > own - of.window
            found = _sdpa(
                _by_group(some, of.kv_heads), key, value,
                attn_mask=mask.repeat(group, 1), scale=scale,
            )  # fmt: skip
            parts = found.view(of.kv_heads, group, some.shape[0], -1)
            out[at : at + step] = parts.permute(2, 0, 1, 3).reshape(some.shape)
        return out

    def _inputs(self, qkv: Tensor, angles: Angles, kv: KVCache) -> tuple[Any, ...]:
        of = self._of
        norms = [qkv if norm is None else norm.weight for norm in (of.query_norm, of.key_norm)]
        eps = 0.0 if of.query_norm is None else of.query_norm.eps
        keys, scales = kv.keys(of.layer), kv.key_scales(of.layer)
        return (
            *norms, eps, of.clip or 0.0, *angles, keys, kv.values(of.layer),
            qkv if scales is None else scales,
            qkv if scales is None else kv.value_scales(of.layer),
        )  # fmt: skip

    def _cache(self, kv: KVCache) -> dict[str, Any]:
        keys = kv.keys(self._of.layer)
        return {"INT8": keys.dtype == torch.int8, "PAGE": keys.shape[2]}


def _by_group(query: Tensor, kv_heads: int) -> Tensor:
    """query [T, heads, D] as [1, kv_heads, group * T, D]: a group's heads one after another."""
    tokens, heads, width = query.shape
    parts = query.view(tokens, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3)
    return parts.reshape(1, kv_heads, -1, width)


def choose_splits(programs: int, processors: int, context: int) -> int:
    """Parts of a context of so many tokens, a power of 2: enough that all processors have work."""
    splits = 1
    while splits < SPLITS_MAX and programs * splits < processors and splits * PART_MIN < context:
        splits *= 2
    return splits
