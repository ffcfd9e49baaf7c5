"""A batch packed for a device reads as the batch, and its padding is of no sequence."""

from __future__ import annotations

import pytest
import torch

from novamesh_engine.kernels.device_step import COLUMNS, DeviceStep, pack
from novamesh_engine.models.config import ModelConfig
from support.tiny_moe import Part, PlainKV, make_batch, nova_config

KV = PlainKV(ModelConfig.from_dict(nova_config()))
# A lone token and a chunk whose rotary embedding goes by a prompt of 9.
BATCH = make_batch(KV, [Part(0, 4, [1]), Part(1, 2, [5, 6, 7], 9)])


@pytest.mark.parametrize(("tokens", "sequences", "width"), [(4, 2, 16), (8, 8, 32)])
def test_a_packed_batch_reads_as_the_batch(tokens: int, sequences: int, width: int) -> None:
    step = pack(BATCH, 3, tokens, sequences, width)
    assert step.buffer.dtype == torch.int32
    assert step.buffer.numel() == COLUMNS * tokens + sequences * width
    assert step.positions[:4].tolist() == BATCH.positions.tolist() == [4, 2, 3, 4]
    assert step.slots[:4].tolist() == BATCH.slots.tolist()
    assert step.rope_lengths[:4].tolist() == [5, 9, 9, 9]
    assert step.efforts[:4].tolist() == [3] * 4
    assert step.lengths[:2].tolist() == [5, 5]
    assert torch.equal(step.tables[:2, :16], BATCH.block_tables)
    assert (step.lengths.shape, step.tables.shape) == ((sequences,), (sequences, width))


def test_padding_writes_nothing_sees_nothing_and_gets_no_expert() -> None:
    step = pack(BATCH, 3, 8, 4, 32)
    assert step.slots[4:].tolist() == [-1] * 4
    assert step.efforts[4:].tolist() == step.rope_lengths[4:].tolist() == [0] * 4
    assert step.positions[4:].tolist() == [0] * 4
    assert step.lengths[2:].tolist() == [0, 0]
    assert not step.tables[2:].any()
    assert not step.tables[:, 16:].any()


def test_views_are_of_the_buffer() -> None:
    """So that what is copied into it is what kernels read."""
    step, other = pack(BATCH, 3, 4, 2, 16), pack(BATCH, 5, 4, 2, 16)
    here = DeviceStep(step.buffer, 4, 2)
    here.buffer.copy_(other.buffer)
    assert step.efforts.tolist() == [5] * 4
    assert here.tables.data_ptr() == step.buffer.data_ptr() + 4 * COLUMNS * 4
