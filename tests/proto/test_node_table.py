"""Whatever comes, the table holds the newest verified descriptor of whoever is here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS, DESCRIPTOR_BYTES_MAX, DESCRIPTOR_LIFE_MS
from novamesh_proto.messages import Envelope
from novamesh_proto.node_table import NodeTable, Source
from support.parties import NETWORK, NODE, OFFER, START_MS, descriptor, party

LIFE_MS = DESCRIPTOR_LIFE_MS


@contextmanager
def refused(code: Code, beginning: str = "") -> Iterator[None]:
    with pytest.raises(NovaMeshError, match=f"^{beginning}") as caught:
        yield
    assert caught.value.code is code


def advert(
    name: str = "node",
    sequence: int = 1,
    at_ms: int = START_MS,
    life_ms: int = LIFE_MS,
    **changes: Any,
) -> Envelope:
    key = NODE if name == "node" else party(name)
    head = envelope.header(key, NETWORK, (), at_ms, life_ms)
    return envelope.seal(descriptor(key, header=head, sequence=sequence, **changes), key)


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(NETWORK)


def test_the_newest_sequence_wins_whatever_way_it_comes(table: NodeTable) -> None:
    assert table.take(advert(sequence=2), Source.MQTT, START_MS)
    assert table.take(advert(sequence=3), Source.LIBP2P, START_MS)
    with refused(Code.STALE, "descriptor 2 of this node is not newer than 3"):
        table.take(advert(sequence=2), Source.COORDINATOR, START_MS)
    with refused(Code.STALE):  # another one with the same number
        table.take(advert(sequence=3), Source.COORDINATOR, START_MS)
    held = table.get(NODE.node_id, START_MS)
    assert held is not None
    assert held.message.sequence == 3
    assert table.refused == {Code.STALE: 2}


def test_who_told_of_it_adds_up(table: NodeTable) -> None:
    sealed = advert()
    assert table.take(sealed, Source.MQTT, START_MS)
    assert not table.take(sealed, Source.STATIC, START_MS)
    (entry,) = table.fresh(START_MS)
    assert entry.sources == {Source.MQTT, Source.STATIC}
    assert entry.node == NODE.node_id


def test_expired_means_absent_and_a_replay_does_not_bring_it_back(table: NodeTable) -> None:
    sealed = advert()
    table.take(sealed, Source.MQTT, START_MS)
    gone_ms = START_MS + LIFE_MS
    assert table.get(NODE.node_id, gone_ms - 1) is not None
    assert table.get(NODE.node_id, gone_ms) is None
    table.forget(gone_ms)
    assert not table.take(sealed, Source.MQTT, gone_ms)  # fresh enough for a clock that is wrong
    assert table.get(NODE.node_id, gone_ms) is None
    assert len(table) == 1
    table.forget(gone_ms + CLOCK_SKEW_MS + 1)
    assert len(table) == 0
    with refused(Code.NOT_FRESH):
        table.take(sealed, Source.MQTT, gone_ms + CLOCK_SKEW_MS + 1)


def test_a_clock_ahead_keeps_nobody_here_longer(table: NodeTable) -> None:
    table.take(advert(at_ms=START_MS + CLOCK_SKEW_MS), Source.MQTT, START_MS)
    assert table.get(NODE.node_id, START_MS + LIFE_MS - 1) is not None
    assert table.get(NODE.node_id, START_MS + LIFE_MS) is None


def test_a_clock_behind_is_believed_within_the_skew(table: NodeTable) -> None:
    table.take(advert(at_ms=START_MS - LIFE_MS), Source.MQTT, START_MS)
    assert table.get(NODE.node_id, START_MS + CLOCK_SKEW_MS - 1) is not None


def test_what_is_too_long_lived_too_large_forged_or_of_another_pool_is_counted(
    table: NodeTable,
) -> None:
    with refused(Code.NOT_FRESH, "a descriptor lives 120 s at most, this one 121 s"):
        table.take(advert(life_ms=LIFE_MS + 1_000), Source.MQTT, START_MS)
    many = tuple(replace(OFFER, model_profile=bytes([i]) * 32) for i in range(40))
    with refused(Code.TOO_LARGE, f"a descriptor has at most {DESCRIPTOR_BYTES_MAX} bytes"):
        table.take(advert(models=many), Source.MQTT, START_MS)
    honest = advert()
    with refused(Code.BAD_SIGNATURE):
        table.take(replace(honest, payload=honest.payload + b"\0"), Source.MQTT, START_MS)
    with refused(Code.WRONG_NETWORK):
        NodeTable("elsewhere").take(honest, Source.MQTT, START_MS)
    assert table.refused == {Code.NOT_FRESH: 1, Code.TOO_LARGE: 1, Code.BAD_SIGNATURE: 1}


def test_sixteen_models_and_endpoints_fit() -> None:
    offers = tuple(replace(OFFER, model_profile=bytes([i]) * 32, name="m" * 20) for i in range(16))
    sealed = advert(models=offers, endpoints=("203.0.113.7:7702",), policy_digest=bytes(32))
    assert NodeTable(NETWORK).take(sealed, Source.MQTT, START_MS)


def test_who_expires_first_makes_room() -> None:
    table = NodeTable(NETWORK, capacity=2)
    table.take(advert("a", at_ms=START_MS - 50_000), Source.MQTT, START_MS - 50_000)
    table.take(advert("b"), Source.MQTT, START_MS)
    table.take(advert("c"), Source.MQTT, START_MS)
    names = {entry.node for entry in table.fresh(START_MS)}
    assert names == {party("b").node_id, party("c").node_id}


def test_who_is_not_here_any_more_makes_room_first() -> None:
    table = NodeTable(NETWORK, capacity=1)
    table.take(advert("a"), Source.COORDINATOR, START_MS)
    later_ms = START_MS + 120_000
    table.take(advert("b", at_ms=later_ms), Source.LIBP2P, later_ms)
    assert {entry.node for entry in table.fresh(later_ms)} == {party("b").node_id}


def test_what_strangers_pass_on_displaces_nobody() -> None:
    table = NodeTable(NETWORK, capacity=2)
    table.take(advert("a", at_ms=START_MS - 50_000), Source.COORDINATOR, START_MS - 50_000)
    table.take(advert("b"), Source.LIBP2P, START_MS)
    with refused(Code.BUSY, "2 nodes are known already"):
        table.take(advert("c"), Source.LIBP2P, START_MS)
    table.take(advert("d"), Source.MQTT, START_MS)
    names = {entry.node for entry in table.fresh(START_MS)}
    assert names == {party("a").node_id, party("d").node_id}, "gossip gives way"


def test_who_is_a_stranger_is_for_the_owner_of_the_table_to_say() -> None:
    table = NodeTable(NETWORK, capacity=2, strangers=frozenset({Source.LIBP2P, Source.MQTT}))
    both_ways = advert("a")
    table.take(both_ways, Source.LIBP2P, START_MS)
    table.take(both_ways, Source.MQTT, START_MS)
    table.take(advert("b"), Source.COORDINATOR, START_MS)
    with refused(Code.BUSY, "2 nodes are known already"):
        table.take(advert("c"), Source.MQTT, START_MS)
    table.take(advert("d"), Source.STATIC, START_MS)
    names = {entry.node for entry in table.fresh(START_MS)}
    assert names == {party("b").node_id, party("d").node_id}


def test_a_node_is_ranked_by_its_own_word_only(table: NodeTable) -> None:
    table.take(advert(free_slots=9), Source.STATIC, START_MS)
    (entry,) = table.fresh(START_MS)
    assert entry.state.free_slots == entry.state.descriptor.slots == 4
    assert entry.state.witnessed_tokens_per_s == 0


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(Source)), max_size=12))
def test_any_order_ends_in_the_highest_sequence(arrivals: list[tuple[int, Source]]) -> None:
    table, made = NodeTable(NETWORK), {n: advert(sequence=n) for n in range(1, 5)}
    best = 0
    for sequence, source in arrivals:
        if sequence < best:
            with refused(Code.STALE):
                table.take(made[sequence], source, START_MS)
        else:
            assert table.take(made[sequence], source, START_MS) == (sequence > best)
        best = max(best, sequence)
    held = table.get(NODE.node_id, START_MS)
    assert (held.message.sequence if held else 0) == best
