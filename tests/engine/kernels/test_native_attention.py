"""Native attention of every instruction set equals the reference, whatever the cache holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import choice, reference
from novamesh_engine.kernels.native import Native, UnsuitedError
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.config import ModelConfig
from support.tiny_moe import Part, PlainKV, make_batch, nova_config

SETS = choice.look().runnable
pytestmark = pytest.mark.skipif(not SETS, reason="installed without a C++ compiler")
KINDS = pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8], ids=str)


@pytest.fixture(params=SETS, scope="module")
def native(request: pytest.FixtureRequest) -> Native:
    return choice.open_native(2, "exact", request.param)


class Pages:
    """One layer's pages of a kind, and a random batch over them."""

    def __init__(self, kind: torch.dtype, heads: int, width: int, size: int, parts: list[Part]):
        config = ModelConfig.from_dict(
            nova_config(num_attention_heads=heads, num_key_value_heads=heads, head_dim=width)
        )
        layout = PlainKV(config, block_size=size)
        self.batch: ForwardBatch = make_batch(layout, parts)
        self.shape = layout.keys(0).shape
        self.keys, self.values = (torch.zeros(self.shape, dtype=kind) for _ in range(2))
        held = kind == torch.int8
        self.scales = [torch.zeros(self.shape[:-1]) if held else None for _ in range(2)]

    def fill(self, seed: int) -> None:
        """Every slot, as the reference writes it."""
        blocks, heads, size, width = self.shape
        slots = torch.arange(blocks * size)
        for number, cache in enumerate((self.keys, self.values)):
            new = random(seed + number, blocks * size, heads, width)
            reference.write_kv(cache, self.scales[number], slots, new)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(native: Native, pages: Pages, query: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    scales = dict(zip(("key_scales", "value_scales"), pages.scales, strict=True))
    found, wanted = (
        attend(query, pages.keys, pages.values, pages.batch, 0.2, window=window, **scales)
        for attend in (native.attention, reference.attention)
    )
    return found, wanted


@KINDS
@given(
    st.integers(1, 70), st.integers(0, 150), st.integers(1, 3), st.sampled_from((1, 2, 4, 7, 16)),
    st.sampled_from((2, 16, 30, 64, 80, 128, 200)), st.sampled_from((1, 5, 16)),
    st.sampled_from((None, 1, 9, 64)), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=25)
def test_chunks_and_lone_tokens(
    native: Native, kind: torch.dtype, new: int, start: int, kv_heads: int, group: int,
    width: int, size: int, window: int | None, seed: int,
) -> None:  # fmt: skip
    new, start = min(new, 16 * size), min(start, 16 * size - min(new, 16 * size))
    parts = [Part(0, start, range(new)), Part(2, 16 * size - 1, [1]), Part(1, 0, [1])]
    pages = Pages(kind, kv_heads, width, size, parts)
    pages.fill(seed)
    query = random(seed + 2, new + 2, kv_heads * group, width)
    found, wanted = both(native, pages, query, window)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@KINDS
def test_a_long_context_is_read_in_parts(native: Native, kind: torch.dtype) -> None:
    pages = Pages(kind, 2, 64, 256, [Part(0, 4000, range(5)), Part(1, 3999, [1])])
    pages.fill(3)
    found, wanted = both(native, pages, random(4, 6, 8, 64) * 3, None)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@KINDS
def test_writing_gives_the_same_bits(native: Native, kind: torch.dtype) -> None:
    parts = [Part(0, 3, range(9)), Part(3, 0, range(4))]
    ours, theirs = (Pages(kind, 3, 48, 4, parts) for _ in range(2))
    keys, values = random(1, 13, 3, 48) * 7, random(2, 13, 3, 48)
    keys[2] = 0.0
    native.write_kv(ours.keys, ours.values, ours.batch, keys, values, *ours.scales)
    for cache, scales, new in (
        (theirs.keys, theirs.scales[0], keys), (theirs.values, theirs.scales[1], values),
    ):  # fmt: skip
        reference.write_kv(cache, scales, theirs.batch.slots, new)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    for one, other in zip(ours.scales, theirs.scales, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_company_changes_no_bit(native: Native) -> None:
    parts = [Part(0, 0, range(30)), Part(1, 200, [1]), Part(2, 7, range(3))]
    together = Pages(torch.bfloat16, 2, 32, 16, parts)
    together.fill(5)
    query = random(6, 34, 6, 32)
    found, _ = both(native, together, query, None)
    at = 0
    for part in parts:
        alone = Pages(torch.bfloat16, 2, 32, 16, [part])
        alone.fill(5)
        count = len(part.tokens)
        mine, _ = both(native, alone, query[at : at + count].contiguous(), None)
        assert torch.equal(mine, found[at : at + count])
        at += count


def test_an_index_out_of_range_is_not_read(native: Native) -> None:
    pages = Pages(torch.float32, 1, 16, 4, [Part(0, 0, [1, 2])])
    pages.batch.block_tables[0, 0] = 64
    with pytest.raises(AssertionError, match="index out of range"):
        both(native, pages, random(1, 2, 1, 16), None)
    pages.batch.slots[0] = 4 * 64
    new = random(2, 2, 1, 16)
    with pytest.raises(AssertionError, match="index out of range"):
        native.write_kv(pages.keys, pages.values, pages.batch, new, new)


def test_what_does_not_fit_is_refused_before_c(native: Native) -> None:
    pages = Pages(torch.float32, 1, 16, 4, [Part(0, 0, [1])])
    with pytest.raises(ValueError, match="do not fit"):
        native.attention(random(1, 1, 1, 8), pages.keys, pages.values, pages.batch, 1.0)
    half = pages.keys.half()
    with pytest.raises(UnsuitedError, match=r"torch\.float16"):
        native.attention(random(1, 1, 1, 16), half, half, pages.batch, 1.0)
