"""A batch on its way to a device: one small copy, padded to a bucket, read there through views.

Rules: padding is a token of no sequence: its slot is -1, its length 0, its effort 0, so that it
writes nothing, sees nothing and gets no expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch

COLUMNS: Final = 5  # positions, slots, rope lengths, efforts, and lengths of sequences


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """What kernels read of a batch, int32, all of one buffer.

    positions, slots, rope_lengths, efforts [T]; lengths [S]; tables [S, B], as `ForwardBatch` has
    them; efforts are the slots that a token fills with experts.
    """

    buffer: Tensor
    tokens: int
    sequences: int

    @property
    def positions(self) -> Tensor:
        """Absolute positions."""
        return self._column(0)

    @property
    def slots(self) -> Tensor:
        """Where keys and values go, -1 for nowhere."""
        return self._column(1)

    @property
    def rope_lengths(self) -> Tensor:
        """The lengths that rotary embeddings go by."""
        return self._column(2)

    @property
    def efforts(self) -> Tensor:
        """Slots with experts."""
        return self._column(3)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence in the cache, new ones included."""
        return self._column(4)[: self.sequences]

    @property
    def tables(self) -> Tensor:
        """The pages of each sequence."""
        return self.buffer[COLUMNS * self.tokens :].view(self.sequences, -1)

    def _column(self, index: int) -> Tensor:
        return self.buffer[index * self.tokens : (index + 1) * self.tokens]


def pack(batch: ForwardBatch, effort: int, tokens: int, sequences: int, width: int) -> DeviceStep:
    """A batch on the host, padded to so many tokens, sequences and pages of each."""
    step = DeviceStep(
        torch.zeros((COLUMNS * tokens + sequences * width,), dtype=torch.int32), tokens, sequences
    )
    count, rows, pages = batch.positions.shape[0], *batch.block_tables.shape
    step.positions[:count] = batch.positions
    step.slots.fill_(-1)[:count] = batch.slots
    step.rope_lengths[:count] = batch.rope_lengths
    step.efforts[:count] = effort
    step.lengths[:rows] = batch.context_lengths
    step.tables[:rows, :pages] = batch.block_tables
    return step
