"""The batch is a frozen value, and the test cache keeps the cache's contract."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from novamesh_engine.models.batch import KVCache
from novamesh_engine.models.config import ModelConfig
from support.tiny_moe import Part, PlainKV, make_batch, nova_config


def test_slots_follow_the_block_tables() -> None:
    cache = PlainKV(ModelConfig.from_dict(nova_config()))
    kv: KVCache = cache
    batch = make_batch(cache, [Part(1, 6, [7, 8]), Part(0, 0, [9])])
    size = kv.keys(0).shape[2]
    for row, owner in enumerate((0, 0, 1)):
        at = int(batch.positions[row])
        assert batch.slots[row] == batch.block_tables[owner, at // size] * size + at % size
    assert batch.sequence_starts.tolist() == [0, 2, 3]
    assert batch.context_lengths.tolist() == [8, 1]
    assert len(set(batch.slots.tolist())) == 3
    assert batch.rope_lengths.tolist() == [7, 8, 1]


def test_a_batch_does_not_change() -> None:
    batch = make_batch(PlainKV(ModelConfig.from_dict(nova_config())), [Part(0, 0, [1])])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.slots = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["block_tables", "positions"])
def test_a_tensor_that_kernels_would_misread_is_a_bug(name: str) -> None:
    batch = make_batch(PlainKV(ModelConfig.from_dict(nova_config())), [Part(0, 0, [1, 2])])
    with pytest.raises(AssertionError, match=name):
        dataclasses.replace(batch, **{name: getattr(batch, name).float()})
    with pytest.raises(AssertionError, match="not contiguous"):
        dataclasses.replace(batch, block_tables=batch.block_tables.repeat(2, 1).T)


@pytest.mark.parametrize("starts", [[0, 9], [1, 2], [0, 3, 2]])
def test_sequences_that_do_not_span_the_tokens_are_a_bug(starts: list[int]) -> None:
    batch = make_batch(PlainKV(ModelConfig.from_dict(nova_config())), [Part(0, 0, [1, 2])])
    with pytest.raises(AssertionError, match="sequence_starts"):
        dataclasses.replace(batch, sequence_starts=torch.tensor(starts, dtype=torch.int32))
