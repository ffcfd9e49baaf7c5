"""Turns a step's chunks into tensors and runs the model on them.

Rules: it decides nothing; one chunk, one sequence of the batch, in the order given. The cache's
memory is its own, the block numbers are the scheduler's.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from itertools import accumulate

import torch
from torch import Tensor

from novamesh_engine.kernels.choice import Forward
from novamesh_engine.kv_cache import PagedKV
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.scheduler import Chunk
from novamesh_engine.sequence import Sequence


class Runner:
    """One way to run a decoder, with its cache."""

    def __init__(self, forward: Forward, kv: PagedKV, block_size: int) -> None:
        self.forward = forward
        self._kv = kv
        self._block_size = block_size

    def run(self, chunks: Items[Chunk]) -> Tensor:
        """Compute the chunks; logits float32 [R, vocab] of the last token of each `last` chunk."""
        return self.forward.forward(self.batch(chunks), self._kv)

    def batch(self, chunks: Items[Chunk]) -> ForwardBatch:
        """The chunks as one flat batch, on the host: a forward brings it to its device."""
        positions = [range(chunk.start, chunk.start + chunk.count) for chunk in chunks]
        ends = list(accumulate(chunk.count for chunk in chunks))
        tables = [chunk.sequence.blocks for chunk in chunks]
        widest = max(map(len, tables))
        return ForwardBatch(
            token_ids=self._int64(
                token
                for chunk, span in zip(chunks, positions, strict=True)
                for token in chunk.sequence.tokens[span.start : span.stop]
            ),
            positions=self._int64(at for span in positions for at in span),
            sequence_starts=self._int32([0, *ends]),
            context_lengths=self._int32([span.stop for span in positions]),
            block_tables=self._int32([[*table, *[0] * (widest - len(table))] for table in tables]),
            slots=self._int64(
                self._slot(chunk.sequence, at)
                for chunk, span in zip(chunks, positions, strict=True)
                for at in span
            ),
            rope_lengths=self._int64(
                max(chunk.sequence.prompt_count, at + 1)
                for chunk, span in zip(chunks, positions, strict=True)
                for at in span
            ),
            logit_rows=self._int64(
                end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.last
            ),
        )

    def _slot(self, sequence: Sequence, position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return sequence.blocks[block] * self._block_size + offset

    def _int64(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64)

    def _int32(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)
