"""The relay's buffers: bounded, in order, evicted oldest first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator import relay
from novamesh_coordinator.relay import Relay, Stream
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, PeerError
from novamesh_proto.messages import ChunkCheckpoint, WatchResponse
from support.actors import Attempt
from support.table import Table


def begin(table: Table, key: str = "job-1") -> Attempt:
    client = table.client(f"client {key}")
    node = table.node(f"node {key}")
    table.order(client, node, key=key)
    return table.assigned(node)


def open_stream(made: Relay, attempt: Attempt) -> Stream:
    return made.open(attempt.assignment, 1_000, 500)


def checkpoint(table: Table, attempt: Attempt) -> Verified[ChunkCheckpoint]:
    sealed = attempt.checkpoint(table.now_ms)
    return envelope.open(sealed, ChunkCheckpoint, network=attempt.node.network)


def numbers(items: list[WatchResponse]) -> list[Any]:
    return [item.chunk.index if item.chunk else "other" for item in items]


def test_a_stream_keeps_items_in_order_and_says_what_it_saw() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    job = attempt.ids["job"]
    made.add_chunk(job, attempt.chunk(2).chunk, 6_000)
    made.add_checkpoint(job, checkpoint(table, attempt))
    made.add_chunk(job, attempt.chunk(1, final=True).chunk, 9_000)
    assert numbers(stream.items) == ["other", 0, "other", 1]
    assert (stream.first_us, stream.last_us) == (5_000, 8_000)
    assert (stream.chain.chunks, stream.chain.tokens, stream.chain.finished) == (2, 3, True)
    assert stream.chain.head == attempt.sealer.head
    assert [stream.first_wanted(n) for n in (0, 1, 2, 9)] == [0, 3, 4, 4]
    assert made.chunks_relayed == 2


def test_a_chunk_that_is_not_the_next_one_changes_nothing() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    attempt.chunk()
    with pytest.raises(PeerError) as refused:
        made.add_chunk(attempt.ids["job"], attempt.chunk().chunk, 2_000)
    assert refused.value.code is Code.CORRUPT
    assert (stream.chain.chunks, stream.end, made.chunks_relayed) == (0, 1, 0)


def test_a_stream_that_grows_too_long_loses_its_older_half() -> None:
    table, made = Table(), Relay(stream_bytes_max=4_000)
    attempt = begin(table)
    stream = open_stream(made, attempt)
    for _ in range(60):
        made.add_chunk(attempt.ids["job"], attempt.chunk().chunk, 2_000)
    assert stream.first_item > 0
    assert stream.bytes <= 4_000
    assert made.bytes == stream.bytes + relay._MARK_BYTES * stream.chain.chunks
    assert stream.end == 61
    assert stream.chain.chunks == 60


def test_ended_streams_make_room_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    table, made = Table(), Relay()
    first, second, third = (begin(table, key) for key in ("a", "b", "c"))
    for attempt in (first, second, third):
        open_stream(made, attempt)
    made.end(second.ids["job"])
    made.end(first.ids["job"])
    monkeypatch.setattr(relay, "RELAY_BYTES_MAX", made.bytes)
    made.add_chunk(third.ids["job"], third.chunk().chunk, 2_000)
    assert made.get(second.ids["job"]) is None
    assert made.get(first.ids["job"]) is not None
    made.drop(first.ids["job"])
    made.drop(third.ids["job"])
    made.drop(third.ids["job"])
    assert (made.bytes, len(made)) == (0, 0)


def test_a_stream_is_taken_up_only_by_its_own_fence() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    job, fence = attempt.ids["job"], attempt.ids["fence"]
    made.end(job)
    made.add_tail(job, settlement=attempt.assignment.envelope)
    assert not made.take_up(job, fence + 1)
    assert made.take_up(job, fence)
    assert stream.tail == []


def test_a_stream_begins_with_its_assignment() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    assert (stream.sent_us, stream.rtt_us, stream.started, stream.end) == (1_000, 500, False, 1)
    assert [item.assignment for item in stream.items] == [attempt.assignment.envelope]
    assert made.bytes == stream.bytes == 512 + relay._ITEM_BYTES
    assert stream.arrivals() == []
    assert made.open(attempt.assignment, 1_000, 500, resumed=True).started
    assert (made.bytes, len(made)) == (512 + relay._ITEM_BYTES, 1)


def test_a_stream_tells_when_how_many_tokens_came() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    job = attempt.ids["job"]
    for tokens, at_us in ((2, 900), (3, 6_000)):
        made.add_chunk(job, attempt.chunk(tokens).chunk, at_us)
    assert stream.arrivals() == [(0, 2), (5_000, 3)], "never before it was sent"
    assert (stream.first_us, stream.last_us, stream.started) == (0, 5_000, True)


def test_a_checkpoint_is_held_against_the_chain_at_its_place() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    point = checkpoint(table, attempt).message
    assert stream.holds(point, 0)
    assert not stream.holds(point, 1)
    for tokens in (2, 3):
        made.add_chunk(attempt.ids["job"], attempt.chunk(tokens).chunk, 2_000)
    here = checkpoint(table, attempt).message
    assert (here.chunks, here.position) == (2, 5)
    assert stream.holds(here, 0)
    assert stream.holds(point, 0), "an older place of the same chain"
    for lie in ({"chunks": 3}, {"chunks": 1}, {"position": 4}, {"chain_head": bytes(32)}):
        assert not stream.holds(replace(here, **lie), 0)  # type: ignore[arg-type]


def test_what_nobody_has_is_left_alone() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    job = attempt.ids["job"]
    made.end(job)
    assert not made.take_up(job, attempt.ids["fence"])
    open_stream(made, attempt)
    made.drop(job)
    assert (made.bytes, len(made), made.get(job)) == (0, 0, None)


def test_a_stream_at_its_bound_is_whole_and_one_byte_more_halves_it() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    made.add_checkpoint(attempt.ids["job"], checkpoint(table, attempt))
    stream_bytes = stream.bytes
    assert stream_bytes == 2 * (512 + relay._ITEM_BYTES)
    assert stream.checkpoint is not None
    for bytes_max, first in ((stream_bytes, 0), (stream_bytes - 1, 1)):
        short = Relay(stream_bytes_max=bytes_max)
        stream = open_stream(short, attempt)
        short.add_checkpoint(attempt.ids["job"], checkpoint(table, attempt))
        assert (stream.first_item, stream.end) == (first, 2)
        assert short.bytes == stream.bytes == (2 - first) * (512 + relay._ITEM_BYTES)


def test_the_tail_follows_in_the_order_it_was_given() -> None:
    table, made = Table(), Relay()
    attempt = begin(table)
    stream = open_stream(made, attempt)
    sealed = attempt.assignment.envelope
    made.add_tail(attempt.ids["job"], attestation=sealed)
    made.add_tail(attempt.ids["job"], relay_receipt=sealed, settlement=sealed)
    assert stream.tail == [
        WatchResponse(attestation=sealed),
        WatchResponse(relay_receipt=sealed),
        WatchResponse(settlement=sealed),
    ]
