"""Plans for real cards against arithmetic by hand, and what holds for every plan."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pytest

from novamesh_engine.catalogue import CATALOGUE, find_entry
from novamesh_engine.weights.footprint import Footprint
from novamesh_engine.weights.place import (
    CONTEXT_BYTES,
    KVWish,
    Machine,
    Placement,
    hot_experts,
    place,
    swaps,
)
from novamesh_proto.errors import Code, NovaMeshError

GB = 10**9
CARDS_GB = (6, 8, 12, 16, 24)
RTX_3060, RTX_4090, DDR4 = 360 * GB, 1008 * GB, 45 * GB  # bytes a second


class Shape(NamedTuple):
    """Published numbers; heads are 128 wide. `floats` are a layer's weights that stay float32."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    width: int
    shared: int
    floats: int
    outer_floats: int


# A layer's router, norms and biases; the last norm, and a head's bias, are outside of layers.
SHAPES = {
    "phi-tiny-moe-instruct": Shape(
        32064, 4096, 32, 16, 4, 16, 448, 0,
        16 * 4096 + 4 * 4096 + (16 + 8) * 128 + 4096, 2 * 4096 + 32064,
    ),
    "phi-mini-moe-instruct": Shape(
        32064, 4096, 32, 32, 8, 16, 960, 0,
        16 * 4096 + 4 * 4096 + (32 + 16) * 128 + 4096, 2 * 4096 + 32064,
    ),
    "olmoe-1b-7b-0125-instruct": Shape(
        50304, 2048, 16, 16, 16, 64, 1024, 0, 64 * 2048 + 2 * 2048 + 2 * 2048, 2048,
    ),
    "qwen1.5-moe-a2.7b-chat": Shape(
        151936, 2048, 24, 16, 16, 60, 1408, 5632, 60 * 2048 + 2 * 2048 + 48 * 128 + 2048, 2048,
    ),
    "qwen3-30b-a3b-instruct-2507": Shape(
        151936, 2048, 48, 32, 4, 128, 768, 0, 128 * 2048 + 2 * 2048 + 2 * 128, 2048,
    ),
}  # fmt: skip


class Plan(NamedTuple):
    mode: str
    experts: int  # of each layer on the device
    kv_dtype: str
    kv_tokens: int


# With 1 GiB for KV at most: 4096 tokens at least, weights first, then tokens.
PLANS = {
    "phi-tiny-moe-instruct": [Plan("all", 16, "bf16", 16384)] * 5,
    "phi-mini-moe-instruct": [
        Plan("all", 16, "bf16", 4458), *[Plan("all", 16, "bf16", 8192)] * 4,
    ],
    "olmoe-1b-7b-0125-instruct": [
        Plan("all", 64, "bf16", 7881), *[Plan("all", 64, "bf16", 8192)] * 4,
    ],
    "qwen1.5-moe-a2.7b-chat": [
        Plan("hot", 29, "bf16", 4213), Plan("hot", 47, "bf16", 4288),
        *[Plan("all", 60, "bf16", 5461)] * 3,
    ],
    "qwen3-30b-a3b-instruct-2507": [
        Plan("hot", 31, "bf16", 4528), Plan("hot", 47, "bf16", 5289),
        Plan("hot", 81, "bf16", 4363), Plan("hot", 114, "bf16", 4661),
        Plan("all", 128, "bf16", 10922),
    ],
}  # fmt: skip


def by_hand(shape: Shape, memory_bytes: int) -> Plan:
    """The first plan that fits, tried from the best one down."""
    packed = 17 / 32  # of a byte: half for a weight, 2 / 64 for its scale
    heads = (2 * shape.heads + 2 * shape.kv_heads) * 128  # query and output, keys and values
    dense = shape.layers * shape.hidden * (heads + 3 * shape.shared)
    dense += shape.vocab * shape.hidden  # the head
    floats = 4 * (shape.layers * shape.floats + shape.outer_floats)
    expert = 3 * shape.hidden * shape.width * packed
    kv_heads = 2 * shape.layers * shape.kv_heads
    slots = {"bf16": kv_heads * 256, "int8": kv_heads * (128 + 4)}
    room = memory_bytes - 1_112_000_000 - 6 * expert - dense * packed - floats
    tries = [(shape.experts, dtype, way) for dtype in slots for way in (1, 0)]
    tries += [(count, "bf16", 0) for count in range(shape.experts - 1, 0, -1)]
    for count, dtype, embedding in tries:
        left = room - count * shape.layers * expert - embedding * shape.vocab * shape.hidden * 2
        if left >= 4096 * slots[dtype]:
            mode = "all" if count == shape.experts else "hot"
            return Plan(mode, count, dtype, int(min(left, 1 << 30) // slots[dtype]))
    return Plan("none", 0, "", 0)


def footprint(name: str) -> Footprint:
    entry = find_entry(name)
    assert entry is not None
    return entry.footprint


MINI = footprint("phi-mini-moe-instruct")
QWEN3 = footprint("qwen3-30b-a3b-instruct-2507")


def plan_of(found: Placement) -> Plan:
    return Plan(found.mode, found.experts_resident, found.kv_dtype, found.kv_tokens)


@pytest.mark.parametrize("name", SHAPES)
def test_plans_of_the_catalogue(name: str) -> None:
    wish = KVWish(context=4096)
    for size, wanted in zip(CARDS_GB, PLANS[name], strict=True):
        found = place(footprint(name), Machine(size * GB), wish)
        assert plan_of(found) == wanted == by_hand(SHAPES[name], size * GB)
    for memory in range(GB, 24 * GB, 77_777_777):
        assert plan_of(place(footprint(name), Machine(memory), wish)) == by_hand(
            SHAPES[name], memory
        )


def test_every_model_of_the_catalogue_has_plans() -> None:
    assert {entry.name for entry in CATALOGUE} == set(SHAPES) == set(PLANS)


def test_phi_mini_is_whole_on_six_gigabytes_and_the_embedding_makes_room_first() -> None:
    """The next room is made by int8 KV, then experts go."""
    cards_mb = (6000, 5946, 5556, 5356)
    lines = [place(MINI, Machine(mb * 10**6), KVWish(4096)).line for mb in cards_mb]
    assert lines == [
        "all: every weight on the device, 6.0 GB of 6.0 GB, of it KV 0.6 GB (4458 tokens, bf16)",
        "all: every weight but the embedding on the device, 5.9 GB of 5.9 GB, of it KV 0.8 GB"
        " (6050 tokens, bf16)",
        "all: every weight but the embedding on the device, 5.6 GB of 5.6 GB, of it KV 0.4 GB"
        " (5962 tokens, int8)",
        "hot: 14 of 16 experts a layer on the device, 5.4 GB of 5.4 GB, of it KV 0.6 GB"
        " (4608 tokens, bf16)",
    ]


def test_whoever_insists_on_bf16_gets_experts_on_the_host_instead() -> None:
    found = place(MINI, Machine(5556 * 10**6), KVWish(4096, dtypes=("bf16",)))
    assert (found.mode, found.kv_dtype, found.experts_resident) == ("hot", "bf16", 15)


def test_a_context_below_the_least_asks_for_less() -> None:
    short = place(QWEN3, Machine(6 * GB), KVWish(context=512))
    assert short.experts_resident > place(QWEN3, Machine(6 * GB), KVWish(4096)).experts_resident
    assert short.kv_tokens >= 512
    tiny = place(QWEN3, Machine(6 * GB), KVWish(4096, bytes_max=100 * QWEN3.slot("bf16")))
    assert tiny.kv_tokens == 100


def test_a_device_opened_before_has_its_context_paid() -> None:
    wish = KVWish(4096)
    opened = place(QWEN3, Machine(12 * GB - CONTEXT_BYTES, context_bytes=0), wish)
    assert plan_of(opened) == plan_of(place(QWEN3, Machine(12 * GB), wish))


def test_nothing_fits_and_the_reason_says_what_would() -> None:
    found = place(MINI, Machine(2 * GB, host_read_bytes_per_s=DDR4), KVWish(4096))
    assert found.line == (
        "none: the CPU computes, for at least 2682 MB must fit on the device, which has 2000,"
        " memory allows about 38 tokens/s"
    )
    assert (found.weight_bytes, found.device_bytes, found.host_bytes) == (0, 0, MINI.total)
    assert place(MINI, Machine(2682 * 10**6), KVWish(4096)).mode == "hot"
    assert place(MINI, Machine(2681 * 10**6), KVWish(4096)).mode == "none"


def test_a_model_without_routed_experts_is_whole_or_not_there() -> None:
    for dense in (Footprint(0, GB, 0, 0, 8, 2, 64, 128), Footprint(0, 10, GB, 1, 1, 1, 64, 128)):
        least = next(
            mb for mb in range(1000, 10000)
            if place(dense, Machine(mb * 10**6), KVWish(4096)).mode != "none"
        )  # fmt: skip
        assert place(dense, Machine(least * 10**6), KVWish(4096)).mode == "all"
        assert f"at least {least} MB" in place(dense, Machine(1), KVWish(4096)).reason


@pytest.mark.parametrize(("name", "card", "tokens_per_s"), [
    # The roofline table of the research, at short context.
    ("phi-mini-moe-instruct", RTX_3060, 303), ("phi-mini-moe-instruct", RTX_4090, 848),
    ("phi-tiny-moe-instruct", RTX_4090, 1632), ("olmoe-1b-7b-0125-instruct", RTX_4090, 1602),
    ("qwen3-30b-a3b-instruct-2507", RTX_4090, 617),
])  # fmt: skip
def test_all_on_the_device_reads_at_its_bandwidth(
    name: str, card: int, tokens_per_s: float
) -> None:
    machine = Machine(24 * GB, device_read_bytes_per_s=card)
    found = place(footprint(name), machine, KVWish(4096))
    assert found.tokens_per_s == pytest.approx(tokens_per_s, rel=0.025)  # routers in bf16 there
    assert found.line.endswith(f"memory allows about {found.tokens_per_s:.0f} tokens/s")


def test_hot_waits_for_the_slower_side_of_each_layer() -> None:
    """Phi-mini has two experts a token: both hit, one of each, or both missed."""
    machine = Machine(4_256_000_000, 16 * GB, RTX_3060, DDR4)
    found = place(MINI, machine, KVWish(4096))
    assert (found.mode, found.experts_resident) == ("hot", 8)
    hit, miss = MINI.expert / RTX_3060, MINI.expert / DDR4
    layer_s = 0.25 * 2 * hit + 0.5 * max(hit, miss) + 0.25 * 2 * miss
    seconds = MINI.core / RTX_3060 + 32 * layer_s
    assert found.tokens_per_s == pytest.approx(1 / seconds)
    assert found.line == (
        "hot: 8 of 16 experts a layer on the device, 4.3 GB of 4.3 GB, of it KV 0.7 GB"
        " (5396 tokens, bf16), memory allows about 144 tokens/s"
    )
    assert found.host_bytes == MINI.embedding + 8 * 32 * MINI.expert


def test_counts_choose_the_experts_and_tell_how_often_one_is_missed() -> None:
    machine = Machine(4_256_000_000, 16 * GB, RTX_3060, DDR4)
    even = [10] * 16
    skewed = [1] * 8 + [20] * 4 + [29] * 4  # the last eight are chosen 196 of 204 times
    counts = [even] * 16 + [skewed] * 15 + [[0] * 16]  # nothing was counted in the last layer
    found = place(MINI, machine, KVWish(4096), counts)
    assert found.resident == ((0, 1, 2, 3, 4, 5, 6, 7),) * 16 + (
        (8, 9, 10, 11, 12, 13, 14, 15),
    ) * 15 + ((0, 1, 2, 3, 4, 5, 6, 7),)
    hit, miss = MINI.expert / RTX_3060, MINI.expert / DDR4

    def layer_s(share: float) -> float:
        both = (1 - share) ** 2 * 2 * hit + share**2 * 2 * miss
        return both + 2 * share * (1 - share) * max(hit, miss)

    seconds = MINI.core / RTX_3060 + 17 * layer_s(0.5) + 15 * layer_s(8 / 204)
    assert found.tokens_per_s == pytest.approx(1 / seconds)


def test_experts_that_nobody_chooses_are_never_missed() -> None:
    counts = [[1] * 8 + [0] * 8] * 32
    machine = Machine(4_256_000_000, device_read_bytes_per_s=RTX_3060)
    found = place(MINI, machine, KVWish(4096), counts)
    assert found.mode == "hot"
    assert found.tokens_per_s == pytest.approx(RTX_3060 / MINI.step)


def test_a_rate_needs_the_bandwidths_it_is_made_of() -> None:
    wish = KVWish(4096)
    for memory, machine in (
        (1, Machine(0, device_read_bytes_per_s=RTX_3060)),
        (4, Machine(0, device_read_bytes_per_s=RTX_3060)),
        (4, Machine(0, host_read_bytes_per_s=DDR4)),
        (8, Machine(0, host_read_bytes_per_s=DDR4)),
    ):
        found = place(MINI, dataclasses.replace(machine, device_bytes=memory * GB), wish)
        assert found.tokens_per_s is None
        assert "tokens/s" not in found.line


def test_what_no_memory_holds_is_said_and_no_rate_is_claimed() -> None:
    machine = Machine(6 * GB, 8 * GB, RTX_3060, DDR4)
    found = place(QWEN3, machine, KVWish(4096))
    assert found.disk_bytes == QWEN3.total - found.weight_bytes - 8 * GB
    assert found.line == (
        "hot: 31 of 128 experts a layer on the device, 6.0 GB of 6.0 GB, of it KV 0.4 GB"
        " (4528 tokens, bf16), 4.3 GB read from the disk again and again"
    )
    none = place(QWEN3, dataclasses.replace(machine, device_bytes=GB), KVWish(4096))
    assert none.line.endswith("8.7 GB read from the disk again and again")


def test_a_rate_below_ten_has_a_decimal() -> None:
    found = place(QWEN3, Machine(GB, host_read_bytes_per_s=10 * GB), KVWish(4096))
    assert found.line.endswith("memory allows about 6.0 tokens/s")


def test_what_makes_no_sense_is_refused() -> None:
    for attempt in (
        lambda: Machine(-1),
        lambda: Machine(1, host_read_bytes_per_s=-1),
        lambda: KVWish(0),
        lambda: KVWish(1, bytes_max=0),
        lambda: KVWish(1, tokens_min=0),
        lambda: KVWish(1, dtypes=()),
        lambda: KVWish(1, dtypes=("bf16", "fp8")),
    ):
        with pytest.raises(NovaMeshError) as refused:
            attempt()
        assert refused.value.code is Code.BAD_CONFIG
        assert refused.value.hint


def test_many_chosen_experts_do_not_overflow() -> None:
    model = Footprint(0, GB, 1000, 2, 4096, 4096, 64, 128)
    # With int8 all would fit before some do.
    machine, wish = Machine(2_183_000_000, 0, RTX_3060, DDR4), KVWish(4096, dtypes=("bf16",))
    found = place(model, machine, wish)
    assert found.mode == "hot", "none is missed, so nothing could overflow"
    assert found.tokens_per_s is not None
    assert math.isfinite(found.tokens_per_s)


def test_the_hot_ones_are_the_most_chosen_and_the_lower_of_equals() -> None:
    assert hot_experts([5, 9, 5, 5, 1], 3) == (0, 1, 2)
    assert hot_experts([1, 2, 3, 3], 3) == (1, 2, 3)
    assert hot_experts([0, 0, 0], 2) == (0, 1)
    assert hot_experts([1, 2], 0) == ()


def test_swaps_bring_in_what_is_clearly_used_more() -> None:
    counts = [100, 10, 50, 90, 200, 20]
    assert swaps(counts, (0, 1, 2), 3) == [(1, 4), (2, 3)]
    assert swaps(counts, (0, 1, 2), 1) == [(1, 4)]
    assert swaps(counts, (0, 1, 2), 0) == swaps(counts, (), 3) == swaps(counts, range(6), 3) == []
    assert swaps([0, 17, 17], (0,), 2) == [(0, 1)]


def test_what_may_be_luck_is_no_reason_to_copy() -> None:
    assert swaps([0, 16], (0,), 1) == []  # few were counted
    assert swaps([1000, 1200], (0,), 1) == []  # many, and nearly as many
    assert swaps([1000, 1267], (0,), 1) == [(0, 1)]
