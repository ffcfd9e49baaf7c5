"""A decoder that reads its cache: each next token follows from all tokens it finds in the pages.

So one wrong, stale or foreign page gives a wrong answer. `wanted` says in one line what is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary

PEAK = 20.0


def wanted(tokens: Sequence[int]) -> int:
    """The token that follows."""
    return 5 + sum(token * (at % 7 + 1) for at, token in enumerate(tokens)) % 300


def continued(prompt: Sequence[int], count: int) -> list[int]:
    """The answer of `count` tokens."""
    tokens = [*prompt]
    for _ in range(count):
        tokens.append(wanted(tokens))
    return tokens[len(prompt) :]


@dataclass
class SummingDecoder:
    """Keeps the decoder's contract with a cache of one layer and one head; raises `faults`.

    A step that raises has spoilt the slots it was to write.
    """

    vocab: int
    block_size: int
    faults: list[Exception] = field(default_factory=list)
    rotary: Rotary = field(default_factory=lambda: Rotary.create(Rope("default", 1e4), 2))

    name = "summing"

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits [R, vocab]; writes each token's id into the cache."""
        blocks, offsets = batch.slots // self.block_size, batch.slots % self.block_size
        kv.keys(0)[blocks, 0, offsets, 0] = -1.0 if self.faults else batch.token_ids.float()
        if self.faults:
            raise self.faults.pop(0)
        starts = batch.sequence_starts.tolist()
        logits = torch.zeros((len(batch.logit_rows), self.vocab))
        for row, token in enumerate(batch.logit_rows.tolist()):
            (index,) = [i for i, start in enumerate(starts[:-1]) if start <= token < starts[i + 1]]
            pages = kv.keys(0)[batch.block_tables[index].long(), 0].flatten(0, 1)[:, 0]
            seen = pages[: int(batch.positions[token]) + 1]
            logits[row, wanted([int(each) for each in seen.tolist()])] = PEAK
        return logits
