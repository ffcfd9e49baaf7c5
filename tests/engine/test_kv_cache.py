"""The cache's shape, its price, and that a page nobody wrote holds no NaN."""

from __future__ import annotations

import torch

from novamesh_engine.kv_cache import PagedKV, slot_bytes
from novamesh_engine.models.config import ModelConfig
from support.scripted_decoder import scripted_config
from support.tiny_moe import nova_config


def test_layers_are_apart_and_zero() -> None:
    config = ModelConfig.from_dict(nova_config())
    kv = PagedKV(config, 5, 4, torch.float32, "cpu")
    assert kv.keys(0).shape == kv.values(1).shape == (5, config.kv_heads, 4, config.head_dim)
    assert kv.keys(0).is_contiguous()
    kv.keys(0).fill_(1.0)
    assert not kv.keys(1).any()
    assert not kv.values(0).any()


def test_a_slot_costs_what_its_tensors_take() -> None:
    for config in (ModelConfig.from_dict(nova_config()), scripted_config(384)):
        for dtype in (torch.float32, torch.bfloat16):
            kv = PagedKV(config, 3, 8, dtype, "cpu")
            taken = sum(kv.keys(i).nbytes + kv.values(i).nbytes for i in range(config.layers))
            assert taken == 3 * 8 * slot_bytes(config, dtype)
