"""A lone token's attention over pages that no cache holds, beside a pass that only reads them."""

from __future__ import annotations

import time
from typing import Final

import torch

from cpu.shape import CONTEXT, HEAD_DIM, HEADS, KV_HEADS
from novamesh_engine.kernels.native import Native
from novamesh_engine.models.batch import ForwardBatch

BLOCK: Final = 16
POOL_BYTES: Final = 800_000_000  # of keys and values together, far more than any cache
KINDS: Final = {16: torch.bfloat16, 8: torch.int8}


class Attention:
    """Many layers' pages of a sequence as long as the model's context, and one query."""

    def __init__(self, bits: int) -> None:
        blocks = CONTEXT // BLOCK
        self._layers = POOL_BYTES // (2 * CONTEXT * KV_HEADS * HEAD_DIM * bits // 8)
        shape = (self._layers * blocks, KV_HEADS, BLOCK, HEAD_DIM)
        if bits == 8:
            pages = [torch.randint(-127, 127, shape, dtype=torch.int8) for _ in range(2)]
            scales = [torch.full(shape[:-1], 0.01) for _ in range(2)]
            self._scales = dict(zip(("key_scales", "value_scales"), scales, strict=True))
        else:
            pages = [torch.randn(shape).to(KINDS[bits]) for _ in range(2)]
            self._scales = {}
        self._keys, self._values = pages
        self._query = torch.randn(1, HEADS, HEAD_DIM)
        self._batches = [_last_of(layer * blocks, blocks) for layer in range(self._layers)]

    def play(self, native: Native, times: int) -> dict[str, object]:
        """Every layer's attention, `times` over, and reads of the same bytes."""
        scale, attended, read = HEAD_DIM**-0.5, 0.0, 0.0
        for _ in range(times):
            begun = time.perf_counter()
            for batch in self._batches:
                native.attention(
                    self._query, self._keys, self._values, batch, scale, **self._scales
                )
            between = time.perf_counter()
            for pages in (self._keys, self._values):
                native.read(pages)
            attended += between - begun
            read += time.perf_counter() - between
        held = self._keys.nbytes + self._values.nbytes
        return {"attend_s": attended, "read_s": read, "bytes": held * times}


def _last_of(first: int, blocks: int) -> ForwardBatch:
    """The last token of a sequence that fills these pages."""
    one = torch.tensor([0])
    return ForwardBatch(
        token_ids=one,
        positions=torch.tensor([blocks * BLOCK - 1]),
        sequence_starts=torch.tensor([0, 1], dtype=torch.int32),
        context_lengths=torch.tensor([blocks * BLOCK], dtype=torch.int32),
        block_tables=torch.arange(first, first + blocks, dtype=torch.int32)[None],
        slots=one,
        rope_lengths=one,
        logit_rows=one,
    )
