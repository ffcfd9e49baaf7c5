"""The relay's buffers: bounded, in order, evicted oldest first."""

from __future__ import annotations

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
