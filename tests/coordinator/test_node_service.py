"""A node's stream: what is said in which order, and what ends it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from novamesh_coordinator import node_service
from novamesh_coordinator.body_cache import BodyCache
from novamesh_coordinator.server import Running
from novamesh_coordinator.service import Limits
from novamesh_proto.buckets import Buckets
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    IdleQuery,
    JobDecision,
    JobProgress,
    JobState,
    NodeLoad,
)
from novamesh_proto.node_table import Source
from support.actors import ClientActor, NodeActor
from support.memory_channel import AttachCall, Caller, serve_in_memory
from support.parties import COORDINATOR
from support.waiting import wait_until

Pool = tuple[Running, grpc.aio.Channel]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with serve_in_memory(tmp_path) as running:
        yield running


async def attached(pool: Pool, name: str = "node", slots: int = 2) -> AttachCall:
    node = NodeActor(name, COORDINATOR.node_id, slots=slots)
    await Caller(pool[1]).join(node.claim(now_ms()))
    call = AttachCall(pool[1], node)
    await call.open(now_ms())
    return call


async def ended(call: AttachCall) -> Code:
    """The code that a stream ends with."""
    while True:
        try:
            await call.read()
        except NovaMeshError as error:
            return error.code


async def test_a_stream_begins_with_a_hello(pool: Pool) -> None:
    call = AttachCall(pool[1], NodeActor("node", COORDINATOR.node_id))
    await call.read()
    await call.send(load=NodeLoad(1, True))
    assert await ended(call) is Code.WRONG_TYPE


async def test_a_stream_has_one_hello(pool: Pool) -> None:
    call = await attached(pool)
    await call.send(hello=call.node.hello(bytes(32), bytes(32), now_ms()))
    assert await ended(call) is Code.WRONG_TYPE
    await wait_until(lambda: not len(pool[0].door.sequencer.core.registry.sessions))


async def test_who_says_nothing_is_sent_away(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_service, "HELLO_S", 0.05)
    call = AttachCall(pool[1], NodeActor("node", COORDINATOR.node_id))
    assert await ended(call) is Code.EXPIRED


async def test_who_hangs_up_before_the_hello_is_forgotten(pool: Pool) -> None:
    call = AttachCall(pool[1], NodeActor("node", COORDINATOR.node_id))
    await call.read()
    await call.stream.done_writing()
    assert await ended(call) is Code.WRONG_TYPE


async def test_a_stranger_is_refused_by_name(pool: Pool) -> None:
    call = AttachCall(pool[1], NodeActor("stranger", COORDINATOR.node_id))
    with pytest.raises(NovaMeshError) as refused:
        await call.open(now_ms())
    assert refused.value.code is Code.NOT_A_MEMBER


async def test_a_node_asks_why_it_has_no_work(pool: Pool) -> None:
    call = await attached(pool)
    await call.send(load=NodeLoad(0, False, "paused by its owner"))
    await call.send(idle_query=IdleQuery())
    report = (await call.read()).idle_report
    assert report is not None
    assert (report.considered, report.reasons) == (0, ())
    client, caller = ClientActor("client", COORDINATOR.node_id), Caller(pool[1])
    await caller.join(client.claim(now_ms()))
    with pytest.raises(NovaMeshError):
        await caller.match(client.match(now_ms()))
    await call.send(idle_query=IdleQuery())
    report = (await call.read()).idle_report
    assert report is not None
    assert report.reasons[0].reason == "takes no work: paused by its owner"


async def test_a_node_that_ends_its_side_is_detached(pool: Pool) -> None:
    call = await attached(pool)
    await call.stream.done_writing()
    assert await call.stream.read() is grpc.aio.EOF
    assert await call.stream.code() is grpc.StatusCode.OK
    assert not len(pool[0].door.sequencer.core.registry.sessions)


async def test_a_forged_statement_ends_the_stream(pool: Pool) -> None:
    call, other = await attached(pool), NodeActor("other", COORDINATOR.node_id)
    forged = JobDecision(other.header(now_ms()), bytes(32), 1, 1, True)  # type: ignore[arg-type]
    await call.send(decision=other.sign(forged))
    assert await ended(call) is Code.FORBIDDEN


async def test_what_is_said_of_an_unknown_attempt_is_answered_with_stop_once(pool: Pool) -> None:
    call = await attached(pool)
    for _ in range(3):
        await call.send(progress=JobProgress(b"j" * 32, 1, 9, 5))  # type: ignore[arg-type]
    await call.send(idle_query=IdleQuery())
    stop = (await call.read()).cancel
    assert stop is not None
    assert (stop.fence, stop.code) == (9, "stale")
    assert (await call.read()).idle_report is not None


async def test_an_older_descriptor_is_only_noted(pool: Pool) -> None:
    call = await attached(pool)
    await call.send(descriptor=call.node.descriptor(now_ms(), sequence=9, slots=5))
    await call.send(descriptor=call.node.descriptor(now_ms(), sequence=8, slots=7))
    await call.send(idle_query=IdleQuery())
    assert (await call.read()).idle_report is not None
    known = pool[0].door.sequencer.core.registry.descriptor(call.node.id)
    assert known is not None
    assert known.slots == 5


async def test_who_attaches_is_in_the_table_with_what_it_says_last(pool: Pool) -> None:
    table = pool[0].door.table
    call = await attached(pool)
    (entry,) = table.fresh(now_ms())
    assert (entry.descriptor.envelope, entry.sources) == (call.node.advert, {Source.COORDINATOR})
    newest = call.node.descriptor(now_ms(), sequence=9, slots=5)
    await call.send(descriptor=newest)
    await call.send(descriptor=call.node.descriptor(now_ms(), sequence=8, slots=7))
    await call.send(idle_query=IdleQuery())
    assert (await call.read()).idle_report is not None
    (entry,) = table.fresh(now_ms())
    assert entry.descriptor.envelope == newest


async def test_the_newer_stream_of_a_node_ends_the_older_one(pool: Pool) -> None:
    first = await attached(pool)
    second = AttachCall(pool[1], first.node)
    await second.open(now_ms())
    goodbye = (await first.read()).goodbye
    assert goodbye is not None
    assert goodbye.code == "stale"
    await second.send(idle_query=IdleQuery())
    assert (await second.read()).idle_report is not None


async def test_the_sealed_job_comes_from_the_store_if_it_is_not_at_hand(pool: Pool) -> None:
    call, client = await attached(pool), ClientActor("client", COORDINATOR.node_id)
    other = await attached(pool, "other")
    caller, door = Caller(pool[1]), pool[0].door
    await caller.join(client.claim(now_ms()))
    adverts = [one.node.advert for one in (call, other)]
    order = client.seal([advert for advert in adverts if advert], now_ms())
    door.store._bodies = BodyCache(bytes_max=0)
    await caller.submit(order)
    assignment = (await call.read()).assignment
    assert assignment is not None
    assert [wrap.node for wrap in assignment.job.wraps] == [call.node.id]
    attempt = call.node.take(assignment.assignment, assignment.job)
    await call.send(decision=attempt.decide(now_ms(), accepted=False))
    assert (await other.read()).assignment is not None
    view = await caller.job(client.ask(order.id, now_ms()))
    assert (view.state, view.attempt) == (JobState.ASSIGNED, 2)


def test_a_flood_is_slowed_down() -> None:
    bucket = Buckets(Limits().stream)
    waits = [node_service._pause(bucket, 0.0) for _ in range(8_001)]
    assert waits[:8_000] == [0.0] * 8_000
    assert waits[8_000] > 0


async def test_verified_statements_reach_the_core(pool: Pool) -> None:
    call, client = await attached(pool), ClientActor("client", COORDINATOR.node_id)
    caller = Caller(pool[1])
    await caller.join(client.claim(now_ms()))
    assert call.node.advert is not None
    order = client.seal([call.node.advert], now_ms())
    await caller.submit(order)
    assignment = (await call.read()).assignment
    assert assignment is not None
    attempt = call.node.take(assignment.assignment, assignment.job)
    await call.send(progress=JobProgress(**attempt.ids, prompt_tokens_done=5))
    await call.send(failure=attempt.fail(now_ms(), "policy"))
    events = [event async for event in caller.watch(client.watch(order.id, now_ms()))]
    assert events[-1].job is not None
    assert (events[-1].job.state, events[-1].job.code) == (JobState.FAILED, "policy")


async def test_a_node_that_does_not_read_is_dropped(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = await attached(pool)
    monkeypatch.setattr(node_service, "WRITE_S", 0.0)
    await call.send(idle_query=IdleQuery())
    assert await ended(call) is Code.EXPIRED
    assert not len(pool[0].door.sequencer.core.registry.sessions)
