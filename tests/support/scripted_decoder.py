"""A decoder that speaks a script: at each absolute position it wants one given token.

It keeps the decoder's contract (logits of the rows asked for, a KV cache to write to), and it
checks what the engine's books promise: a token it is asked about was computed in order, into the
slots that the block table names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary

PEAK = 20.0


@dataclass
class ScriptedDecoder:
    """`script[p]` is the token wanted at position p; other positions want token 2.

    Logits at `broken` positions are NaN; each of `faults` is raised once, by a step of its own.
    """

    vocab: int
    block_size: int
    script: Mapping[int, int]
    broken: frozenset[int] = frozenset()
    faults: list[Exception] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    rotary: Rotary = field(default_factory=lambda: Rotary.create(Rope("default", 1e4), 2))

    name = "scripted"

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits [R, vocab]; writes each token's id and position into the cache."""
        if self.faults:
            raise self.faults.pop(0)
        self.steps.append(len(batch.token_ids))
        written = torch.stack((batch.token_ids, batch.positions), dim=-1).float()
        blocks, offsets = batch.slots // self.block_size, batch.slots % self.block_size
        kv.keys(0)[blocks, 0, offsets, :2] = written
        self._check(batch, kv)
        logits = torch.zeros((len(batch.logit_rows), self.vocab))
        for row, position in enumerate(batch.positions[batch.logit_rows].tolist()):
            logits[row, self.script.get(position + 1, 2)] = PEAK
            if position + 1 in self.broken:
                logits[row] = torch.nan
        return logits

    def _check(self, batch: ForwardBatch, kv: KVCache) -> None:
        for index, length in enumerate(batch.context_lengths.tolist()):
            blocks = batch.block_tables[index, : -(-length // self.block_size)].long()
            seen = kv.keys(0)[blocks, 0].flatten(0, 1)[:length, 1]
            assert seen.tolist() == list(range(length)), "a sequence's pages are not its own"


def scripted_config(vocab: int, max_context: int = 256, eos: tuple[int, ...] = (1,)) -> ModelConfig:
    """A shape with the smallest cache that holds what the decoder writes."""
    return ModelConfig.from_dict({
        "model_type": "nova", "vocab_size": vocab, "hidden_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_experts": 1, "num_experts_per_tok": 1,
        "moe_intermediate_size": 1, "max_position_embeddings": max_context,
        "eos_token_id": list(eos),
    })  # fmt: skip
