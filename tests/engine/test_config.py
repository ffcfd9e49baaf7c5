"""Ranges, and how much cache a configuration gives a model."""

from __future__ import annotations

from typing import Any

import pytest

from novamesh_engine.config import EngineConfig
from novamesh_proto.errors import Code, NovaMeshError


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_size", 0), ("kv_bytes_max", 0), ("max_running", 0), ("max_waiting", -1),
     ("max_step_tokens", 0), ("max_context", -1), ("max_running", 1025)],
)  # fmt: skip
def test_out_of_range_is_refused_by_name(field: str, value: int) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(NovaMeshError, match=field) as refused:
        EngineConfig(**changes)
    assert refused.value.code is Code.BAD_CONFIG
    assert field in refused.value.hint


def test_every_running_request_must_get_a_token() -> None:
    with pytest.raises(NovaMeshError, match="max_step_tokens 4 < max_running 8"):
        EngineConfig(max_step_tokens=4)


def test_the_pool_is_what_all_contexts_need_or_what_fits() -> None:
    config = EngineConfig(block_size=16, kv_bytes_max=16 * 100 * 50, max_running=2)
    assert config.blocks(slot_bytes=1, model_context=100) == 2 * 7
    assert config.blocks(slot_bytes=100, model_context=10_000) == 50


def test_a_pool_without_a_block_is_refused() -> None:
    with pytest.raises(NovaMeshError, match="holds no block of 1600 bytes"):
        EngineConfig(kv_bytes_max=1599).blocks(slot_bytes=100, model_context=64)


@pytest.mark.parametrize(("most", "context"), [(0, 512), (100, 100), (4096, 512)])
def test_the_context_is_the_models_or_less(most: int, context: int) -> None:
    assert EngineConfig(max_context=most).context(512) == context
