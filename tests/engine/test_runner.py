"""What a step's chunks become as tensors."""

from __future__ import annotations

from typing import Any

import torch

from novamesh_engine.kv_cache import PagedKV
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.runner import Runner
from novamesh_engine.scheduler import Chunk
from novamesh_engine.sequence import Sequence
from support.scripted_decoder import ScriptedDecoder, scripted_config


def sequence(tokens: range, blocks: list[int]) -> Sequence:
    one = Sequence(Request("a", tuple(tokens), SamplingParams()), 0, 0)
    one.blocks = blocks
    return one


def runner() -> Runner:
    decoder: Any = ScriptedDecoder(384, 4, {9: 77})
    return Runner(decoder, PagedKV(scripted_config(384), 8, 4, torch.float32, "cpu"), 4)


def test_a_batch_is_flat_and_names_its_slots() -> None:
    chunks = [
        Chunk(sequence(range(10, 16), [5, 2]), 0, 3, False),
        Chunk(sequence(range(20, 29), [1, 7, 0]), 8, 1, True),
    ]
    batch = runner().batch(chunks)
    assert batch.token_ids.tolist() == [10, 11, 12, 28]
    assert batch.positions.tolist() == [0, 1, 2, 8]
    assert batch.sequence_starts.tolist() == [0, 3, 4]
    assert batch.context_lengths.tolist() == [3, 9]
    assert batch.block_tables.tolist() == [[5, 2, 0], [1, 7, 0]]
    assert batch.slots.tolist() == [20, 21, 22, 0]
    assert batch.rope_lengths.tolist() == [6, 6, 6, 9]
    assert batch.logit_rows.tolist() == [3]
    assert batch.token_ids.dtype == batch.positions.dtype == batch.slots.dtype == torch.int64
    assert batch.sequence_starts.dtype == batch.block_tables.dtype == torch.int32


def test_logits_come_for_last_chunks_only() -> None:
    one = runner()
    assert one.run([Chunk(sequence(range(9), [0, 1, 2]), 0, 8, False)]).shape == (0, 384)
    logits = one.run([Chunk(sequence(range(9), [0, 1, 2]), 8, 1, True)])
    assert logits.argmax(-1).tolist() == [77]


def test_tokens_of_an_answer_are_computed_again_as_they_were_chosen() -> None:
    going_on = Sequence(Request("a", (1, 2, 3), SamplingParams(), prefix=(4, 5)), 0, 0)
    going_on.blocks = [6, 3]
    chunks = [
        Chunk(going_on, 1, 4, True),
        Chunk(sequence(range(20, 29), [1, 7, 0]), 8, 1, True),
    ]
    batch = runner().batch(chunks)
    assert batch.token_ids.tolist() == [2, 3, 4, 5, 28]
    assert batch.sequence_starts.tolist() == [0, 2, 3, 4, 5]
    assert batch.context_lengths.tolist() == [3, 4, 5, 9]
    assert batch.block_tables.tolist() == [[6, 3, 0]] * 3 + [[1, 7, 0]]
    assert batch.logit_rows.tolist() == [3, 4]
