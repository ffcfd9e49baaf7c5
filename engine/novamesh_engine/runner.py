"""Turns a step's chunks into tensors and runs the model on them.

Rules: it decides nothing; a chunk of a prompt is one sequence of the batch, in the order given.
Tokens of an answer that are computed again, because they are a forced prefix or gave way before,
are a sequence each: attention then adds up in the order in which it did when they were chosen, and
an answer that goes on is the one that was not interrupted. The cache's memory is its own, the block
numbers are the scheduler's.
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
        # Triton's kernel for lone tokens writes and reads keys in one launch, where tokens of one
        # sequence would race: there an answer that goes on is the same but for rounding.
        self._apart = not getattr(forward, "name", "").startswith("triton")

    def run(self, chunks: Items[Chunk]) -> Tensor:
        """Compute the chunks; logits float32 [R, vocab] of the last token of each `last` chunk."""
        return self.forward.forward(self.batch(chunks), self._kv)

    def batch(self, chunks: Items[Chunk]) -> ForwardBatch:
        """The chunks as one flat batch, on the host: a forward brings it to its device."""
        spans = [(chunk.sequence, span) for chunk in chunks for span in self._spans(chunk)]
        lasts = list(accumulate(chunk.count for chunk in chunks))
        ends = list(accumulate(len(span) for _, span in spans))
        tables = [sequence.blocks for sequence, _ in spans]
        widest = max(map(len, tables))
        return ForwardBatch(
            token_ids=self._int64(
                token
                for sequence, span in spans
                for token in sequence.tokens[span.start : span.stop]
            ),
            positions=self._int64(at for _, span in spans for at in span),
            sequence_starts=self._int32([0, *ends]),
            context_lengths=self._int32([span.stop for _, span in spans]),
            block_tables=self._int32([[*table, *[0] * (widest - len(table))] for table in tables]),
            slots=self._int64(self._slot(sequence, at) for sequence, span in spans for at in span),
            rope_lengths=self._int64(
                max(sequence.prompt_count, at + 1) for sequence, span in spans for at in span
            ),
            logit_rows=self._int64(
                end - 1 for chunk, end in zip(chunks, lasts, strict=True) if chunk.last
            ),
        )

    def _spans(self, chunk: Chunk) -> list[range]:
        """The positions of a chunk: its part of the prompt, then each token of the answer."""
        stop = chunk.start + chunk.count
        if not self._apart:
            return [range(chunk.start, stop)]
        asked = range(chunk.start, max(chunk.start, min(stop, chunk.sequence.prompt_count)))
        return [asked] * bool(asked) + [range(at, at + 1) for at in range(asked.stop, stop)]

    def _slot(self, sequence: Sequence, position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return sequence.blocks[block] * self._block_size + offset

    def _int64(self, values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64)

    def _int32(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)
