"""Outboxes and watchers: bounded, and nobody else's session is touched."""

from __future__ import annotations

import pytest

from novamesh_coordinator.effects import Assign, EndSession, PassAck, Publish, StopAttempt, Wake
from novamesh_coordinator.hub import LARGE_BYTES, OUTBOX_MAX, WATCHERS_MAX, Hub
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState, JobView, ProfileDigest
from support.parties import CLIENT, NODE, descriptor, party, sealed_job, sign

JOB = JobId(bytes(32))
ADVERT = sign(descriptor(), NODE)
SEALED = sealed_job(ADVERT)[0]
ACK = PassAck(NODE.node_id, b"s1", SEALED.terms)


def assign(job: JobId, attempt: int = 1, body_bytes: int = 100) -> Assign:
    return Assign(NODE.node_id, b"s1", job, SEALED.terms, attempt, body_bytes)


def view(state: JobState) -> JobView:
    return JobView(JOB, state, 1, NODE.node_id, ProfileDigest(bytes(32)), 0)


async def test_effects_reach_the_session_they_name() -> None:
    hub = Hub()
    old, new = hub.connect(NODE.node_id, b"s1"), hub.connect(NODE.node_id, b"s2")
    hub.deliver(ACK)
    hub.deliver(assign(JOB))
    hub.deliver(StopAttempt(NODE.node_id, b"s2", JOB, 1, 7, Code.STALE))
    hub.deliver(StopAttempt(party("other").node_id, b"s2", JOB, 1, 7, Code.STALE))
    hub.deliver(EndSession(NODE.node_id, b"s1", Code.STALE, "newer"))
    hub.deliver(EndSession(NODE.node_id, b"s9", Code.STALE, "newer"))
    first = await old.next()
    assert not isinstance(first, Assign)
    assert first is not None
    assert first.ack == SEALED.terms
    assert isinstance(await old.next(), Assign)
    assert await old.next() is None
    assert old.closed is not None
    assert old.closed.code == Code.STALE
    stop = await new.next()
    assert not isinstance(stop, Assign)
    assert stop is not None
    assert stop.cancel is not None
    assert new.closed is None


async def test_what_is_small_does_not_wait_for_large_jobs() -> None:
    hub = Hub()
    outbox = hub.connect(NODE.node_id, b"s1")
    first, second, small = (JobId(bytes([n]) * 32) for n in range(3))
    hub.deliver(assign(first, body_bytes=LARGE_BYTES + 1))
    hub.deliver(assign(second, body_bytes=LARGE_BYTES + 1))
    hub.deliver(assign(small, body_bytes=LARGE_BYTES))
    hub.deliver(ACK)
    outbox.close(Code.UNAVAILABLE, "the coordinator stops")
    sent = [await outbox.next() for _ in range(4)]
    jobs = [one.job if isinstance(one, Assign) else None for one in sent]
    assert jobs == [small, None, first, second]
    assert await outbox.next() is None


async def test_a_cancel_takes_the_large_job_that_it_overtakes_out() -> None:
    hub = Hub()
    outbox = hub.connect(NODE.node_id, b"s1")
    hub.deliver(assign(JOB, attempt=2, body_bytes=LARGE_BYTES + 1))
    hub.deliver(StopAttempt(NODE.node_id, b"s1", JOB, 1, 7, Code.STALE))  # of an older attempt
    hub.deliver(assign(JOB, attempt=3, body_bytes=LARGE_BYTES + 1))
    hub.deliver(StopAttempt(NODE.node_id, b"s1", JOB, 2, 8, Code.STALE))
    outbox.close(Code.UNAVAILABLE, "the coordinator stops")
    for attempt in (1, 2):
        stop = await outbox.next()
        assert stop is not None
        assert not isinstance(stop, Assign)
        assert stop.cancel is not None
        assert stop.cancel.attempt == attempt
    last = await outbox.next()
    assert isinstance(last, Assign)
    assert last.attempt == 3
    assert await outbox.next() is None


async def test_a_node_that_does_not_read_loses_its_session() -> None:
    hub = Hub()
    outbox = hub.connect(NODE.node_id, b"s1")
    for _ in range(OUTBOX_MAX + 10):
        hub.deliver(ACK)
    assert outbox.closed is not None
    assert outbox.closed.code == Code.BUSY
    for _ in range(OUTBOX_MAX):
        assert await outbox.next() is not None
    assert await outbox.next() is None
    hub.disconnect(outbox)
    hub.disconnect(outbox)
    hub.deliver(ACK)


def test_watchers_see_the_newest_state() -> None:
    hub = Hub()
    watcher = hub.watch(JOB)
    hub.deliver(Wake(JOB))
    assert watcher.bell.is_set()
    hub.deliver(Publish(view(JobState.ASSIGNED)))
    hub.deliver(Publish(view(JobState.RUNNING)))
    assert watcher.seen == Publish(view(JobState.RUNNING))
    hub.unwatch(watcher)
    hub.deliver(Publish(view(JobState.SETTLED)))
    assert watcher.seen == Publish(view(JobState.RUNNING))


def test_a_job_has_so_many_watchers() -> None:
    hub = Hub()
    watchers = [hub.watch(JOB) for _ in range(WATCHERS_MAX)]
    with pytest.raises(NovaMeshError) as refused:
        hub.watch(JOB)
    assert refused.value.code is Code.BUSY
    for watcher in watchers:
        hub.unwatch(watcher)
    hub.unwatch(hub.watch(JOB))


async def test_everybody_is_told_goodbye() -> None:
    hub = Hub()
    outboxes = [hub.connect(key.node_id, b"s") for key in (NODE, CLIENT)]
    hub.say_goodbye(Code.UNAVAILABLE, "the coordinator stops")
    assert [await outbox.next() for outbox in outboxes] == [None, None]
