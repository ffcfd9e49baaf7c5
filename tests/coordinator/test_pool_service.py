"""Watching over gRPC: resumed, cut short, slow, bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from novamesh_coordinator import pool_service
from novamesh_coordinator.hub import WATCHERS_MAX
from novamesh_coordinator.server import Running
from novamesh_proto import envelope, sealing, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    DescriptorsQuery,
    Envelope,
    JobId,
    JobState,
    NodeDescriptor,
    PoolCard,
)
from novamesh_proto.node_table import Source
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.memory_channel import AttachCall, Caller, call, serve_in_memory
from support.parties import COORDINATOR, NETWORK, PROFILE
from support.waiting import wait_until


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Scene:
    """A job at work over gRPC."""

    def __init__(self, running: Running, channel: grpc.aio.Channel) -> None:
        self.running = running
        self.caller = Caller(channel)
        self.client = ClientActor("client", COORDINATOR.node_id)
        self.node = NodeActor("node", COORDINATOR.node_id)
        self.stream = AttachCall(channel, self.node)
        self.order: Order
        self.attempt: Attempt

    async def begin(self) -> None:
        await self.caller.join(self.client.claim(now_ms()))
        await self.caller.join(self.node.claim(now_ms()))
        await self.stream.open(now_ms())
        assert self.node.advert is not None
        self.order = self.client.seal([self.node.advert], now_ms())
        await self.caller.submit(self.order)
        given = (await self.stream.read()).assignment
        assert given is not None
        self.attempt = self.node.take(given.assignment, given.job)
        await self.stream.send(decision=self.attempt.decide(now_ms()))

    def query(self, attempt: int = 0, from_chunk: int = 0) -> Envelope:
        return self.client.watch(self.order.id, now_ms(), attempt, from_chunk)

    async def watch(self, attempt: int = 0, from_chunk: int = 0) -> list[Any]:
        events = []
        async for event in self.caller.watch(self.query(attempt, from_chunk)):
            events.append(event.chunk.index if event.chunk else event)
        return [event for event in events if isinstance(event, int)]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with serve_in_memory(tmp_path) as (running, channel):
        made = Scene(running, channel)
        await made.begin()
        yield made
        await made.stream.close()


async def test_the_card_tells_who_and_when(scene: Scene) -> None:
    reply = await call(scene.caller.pool.Hello, pb.HelloRequest())
    card = envelope.open(wire.from_pb(Envelope, reply.card), PoolCard, network=NETWORK)
    assert card.issuer == COORDINATOR.node_id
    assert abs(card.message.now_ms - now_ms()) < 5_000
    assert card.message.open is True


async def test_many_may_follow_a_job_each_from_its_place(scene: Scene) -> None:
    watching = [
        asyncio.create_task(scene.watch()),
        asyncio.create_task(scene.watch(1, 2)),
        asyncio.create_task(scene.watch(1, 9)),
    ]
    for index in range(4):
        await scene.stream.send(chunk=scene.attempt.chunk(final=index == 3))
    await scene.stream.send(attestation=scene.attempt.attest(now_ms()))
    assert await asyncio.gather(*watching) == [[0, 1, 2, 3], [2, 3], []]
    assert await scene.watch(1, 3) == [3]


async def test_a_watch_ends_with_the_cancel(scene: Scene) -> None:
    await scene.stream.send(chunk=scene.attempt.chunk())
    async for event in scene.caller.watch(scene.query()):
        if event.chunk is not None:
            order = scene.client.cancel(scene.order.id, now_ms())
            assert (await scene.caller.cancel(order)).state is JobState.CANCELLED
    assert event.job is not None
    assert (event.job.state, event.job.tokens) == (JobState.CANCELLED, 1)
    stop = (await scene.stream.read()).cancel
    assert stop is not None
    assert stop.code == "cancelled"


async def test_a_client_that_hangs_up_leaves_nothing_behind(scene: Scene) -> None:
    stream = scene.caller.watch(scene.query())
    assert (await anext(stream)).job is not None
    await stream.aclose()  # type: ignore[attr-defined]
    await wait_until(lambda: not scene.running.door.hub._watchers)


async def test_too_many_streams_of_one_job_are_refused(scene: Scene) -> None:
    streams = [scene.caller.watch(scene.query()) for _ in range(WATCHERS_MAX)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(NovaMeshError) as refused:
        await scene.watch()
    assert refused.value.code is Code.BUSY
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_client_that_does_not_read_is_cut_off(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_service, "WRITE_S", 0.0)
    with pytest.raises(NovaMeshError) as refused:
        await scene.watch()
    assert refused.value.code is Code.EXPIRED


async def test_a_foreign_job_is_not_found(scene: Scene) -> None:
    other = ClientActor("other", COORDINATOR.node_id)
    await scene.caller.join(other.claim(now_ms()))
    for job in (scene.order.id, JobId(bytes(32))):
        with pytest.raises(NovaMeshError) as refused:
            async for _ in scene.caller.watch(other.watch(job, now_ms())):
                pass
        assert refused.value.code is Code.NOT_FOUND
    assert not scene.running.door.hub._watchers


async def test_a_refused_job_leaves_no_body_at_hand(scene: Scene) -> None:
    stranger = ClientActor("stranger", COORDINATOR.node_id)
    assert scene.node.advert is not None
    order = stranger.seal([scene.node.advert], now_ms())
    with pytest.raises(NovaMeshError):
        await scene.caller.submit(order)
    store = scene.running.door.store
    assert await store.body(order.id) is None
    assert await store.body(scene.order.id) is not None


async def test_a_job_that_is_handed_in_again_keeps_the_wraps_it_came_with(scene: Scene) -> None:
    store = scene.running.door.store
    before = await store.body(scene.order.id)
    other = NodeActor("other", COORDINATOR.node_id)
    advert = other.descriptor(now_ms())
    stranger = envelope.open(advert, NodeDescriptor, network=NETWORK)
    wrapped = sealing.wrap_key(bytes(32), scene.order.id, stranger)
    again = replace(scene.order.job, wraps=(wrapped,))
    await scene.caller.submit(replace(scene.order, job=again))
    assert await store.body(scene.order.id) == before


async def test_members_may_keep_the_descriptors_of_whoever_is_here(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with a stream to us, and those that were found at a broker."""
    client, table = scene.client, scene.running.door.table
    elsewhere = NodeActor("elsewhere", COORDINATOR.node_id).descriptor(now_ms())
    assert table.take(elsewhere, Source.MQTT, now_ms())
    assert scene.node.advert is not None
    here = scene.node.id

    async def listed(profile: bytes = b"") -> list[Envelope]:
        query = DescriptorsQuery(client.header(now_ms()), profile)
        return await scene.caller.descriptors(client.sign(query))

    assert set(await listed()) == {scene.node.advert, elsewhere}
    assert set(await listed(PROFILE)) == {scene.node.advert, elsewhere}
    assert await listed(bytes(32)) == []
    membership = scene.running.door.sequencer.core.membership
    monkeypatch.setattr(membership, "ban_reason", lambda node: "" if node == here else "it lied")
    assert await listed() == [scene.node.advert]
    stranger = ClientActor("stranger", COORDINATOR.node_id)
    with pytest.raises(NovaMeshError) as refused:
        await scene.caller.descriptors(stranger.sign(DescriptorsQuery(stranger.header(now_ms()))))
    assert refused.value.code is Code.NOT_A_MEMBER


async def test_each_node_is_listed_once_and_those_with_a_stream_before_all_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a broker knew of it first, and says something newer of it."""
    client, table, node = scene.client, scene.running.door.table, scene.node
    elsewhere = [NodeActor(f"away-{i}", COORDINATOR.node_id).descriptor(now_ms()) for i in range(2)]
    for sealed in elsewhere:
        assert table.take(sealed, Source.MQTT, now_ms())
    table._entries[node.id] = table._entries.pop(node.id)  # the last to come
    node.sequence += 1
    newer = node.descriptor(now_ms())
    assert table.take(newer, Source.MQTT, now_ms())

    async def listed() -> list[Envelope]:
        return await scene.caller.descriptors(
            client.sign(DescriptorsQuery(client.header(now_ms()), b""))
        )

    assert await listed() == [newer, *elsewhere]
    monkeypatch.setattr(pool_service, "DESCRIPTORS_LISTED_MAX", 2)
    assert await listed() == [newer, elsewhere[0]]
