"""What holds for every plan and every swap, whatever the model, the machine and the counts."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.weights.footprint import Footprint
from novamesh_engine.weights.place import KVWish, Machine, place, swaps

GB = 10**9
# Bytes a second; at eight chosen experts the host is still never the faster one.
DEVICE, HOST = 360 * GB, 45 * GB
RANKS = {"none": 0, "hot": 1, "all": 2}

# In steps of a little less than a megabyte, for large ranges draw mostly small numbers.
BYTES = st.integers(1, 30_000).map(lambda steps: steps * 999_983)
MODELS = st.builds(
    Footprint, embedding=st.integers(0, GB), core=st.integers(1, 2 * GB),
    expert=st.integers(1, GB // 20), sparse_layers=st.integers(0, 40), experts=st.integers(1, 64),
    experts_per_token=st.integers(1, 8), kv_heads=st.integers(1, 512),
    head_dim=st.integers(1, 256),
)  # fmt: skip
WISHES = st.builds(
    KVWish, context=st.integers(1, 9999), bytes_max=BYTES, tokens_min=st.integers(1, 9999),
    dtypes=st.permutations(["fp32", "bf16", "int8"]).flatmap(
        lambda order: st.integers(1, 3).map(lambda count: tuple(order[:count]))
    ),
)  # fmt: skip


@given(MODELS, BYTES, WISHES)
def test_a_plan_keeps_to_the_memory_and_is_one_line(
    model: Footprint, memory: int, wish: KVWish
) -> None:
    found = place(model, Machine(memory, 8 * GB, DEVICE, HOST), wish)
    assert found.device_bytes <= memory
    assert 0 <= found.weight_bytes <= model.total
    assert found.kv_bytes <= wish.bytes_max
    assert len(found.line.splitlines()) == 1
    if found.mode == "none":
        assert found.device_bytes == 0
        return
    slot = model.slot(found.kv_dtype)
    assert found.kv_tokens >= min(wish.tokens_min, wish.context, wish.bytes_max // slot)
    assert found.kv_bytes + slot > wish.bytes_max or found.device_bytes + slot > memory
    if found.mode == "hot":
        assert 1 <= found.experts_resident < model.experts
        least = wish.least_bytes(slot)
        assert found.device_bytes - found.kv_bytes + model.expert_row + least > memory


@given(MODELS, BYTES, BYTES, WISHES)
def test_more_memory_never_means_less_on_the_device(
    model: Footprint, one: int, other: int, wish: KVWish
) -> None:
    less, more = (
        place(model, Machine(memory, 0, DEVICE, HOST), wish) for memory in sorted((one, other))
    )
    assert (RANKS[less.mode], less.experts_resident) <= (RANKS[more.mode], more.experts_resident)
    if less.tokens_per_s is not None and less.mode != "none":
        assert more.tokens_per_s is not None
        assert less.tokens_per_s <= more.tokens_per_s * (1 + 1e-9)


@given(MODELS, BYTES, WISHES, st.integers(0, 9999), st.integers(0, GB), st.integers(0, 9999))
def test_more_kv_never_means_more_experts(
    model: Footprint, memory: int, wish: KVWish, context: int, size: int, least: int
) -> None:
    greedier = dataclasses.replace(
        wish, context=wish.context + context, bytes_max=wish.bytes_max + size,
        tokens_min=wish.tokens_min + least,
    )  # fmt: skip
    found, greedy = (place(model, Machine(memory), each) for each in (wish, greedier))
    assert greedy.experts_resident <= found.experts_resident
    assert RANKS[greedy.mode] <= RANKS[found.mode]


@given(MODELS, WISHES)
def test_the_least_that_a_reason_names_is_enough(model: Footprint, wish: KVWish) -> None:
    none = place(model, Machine(0), wish)
    least = int(none.reason.split()[2]) * 10**6
    assert place(model, Machine(least), wish).mode != "none"
    assert place(model, Machine(least - 10**6), wish).mode == "none"


LAYERS = st.lists(st.integers(0, 1000), min_size=2, max_size=16)


@given(LAYERS, st.data())
def test_swaps_settle_and_small_drifts_undo_nothing(counts: list[int], data: st.DataObject) -> None:
    size = len(counts)
    resident = data.draw(st.sets(st.integers(0, size - 1), max_size=size))
    most = data.draw(st.integers(0, size))
    proposed = swaps(counts, resident, most)
    evicted, admitted = {pair[0] for pair in proposed}, {pair[1] for pair in proposed}
    assert len(proposed) == len(evicted) == len(admitted) <= most
    assert evicted <= resident
    assert not admitted & resident
    after = (resident - evicted) | admitted
    if most == size:
        assert swaps(counts, after, most) == []
        assert sum(counts[one] for one in after) >= sum(counts[one] for one in resident)
    drifted = [round(count * data.draw(st.floats(0.9, 1.1))) for count in counts]
    undone = {(admit, evict) for evict, admit in proposed}
    assert not undone & set(swaps(drifted, after, size))
