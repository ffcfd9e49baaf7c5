"""Whoever reads slowly waits for himself: no memory grows for him, and nobody else is held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from novamesh_coordinator.server import Running
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CHUNK_BYTES_MAX, MIB
from novamesh_proto.messages import AttemptChunk, ChunkBody, FinishReason, WatchResponse
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.memory_channel import AttachCall, Caller, serve_in_memory
from support.parties import COORDINATOR
from support.waiting import wait_until

BUFFER_BYTES = MIB // 2
CHUNKS = 250  # eight times as much as the buffer holds
TEXT = "x" * (CHUNK_BYTES_MAX - 512)
SMALL_CHUNKS = 4
# A client takes 64 KiB ahead of its reader, and learns of no reason to take more.
NARROW = (("grpc.http2.bdp_probe", 0),)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Scene:
    """A node with two jobs at work: a long answer and a short one."""

    running: Running
    caller: Caller
    client: ClientActor
    stream: AttachCall

    async def begin(self, key: str) -> tuple[Order, Attempt]:
        """One more job at work."""
        assert self.stream.node.advert is not None
        order = self.client.seal([self.stream.node.advert], now_ms(), key=key)
        await self.caller.submit(order)
        while (given := (await self.stream.read()).assignment) is None:
            pass
        attempt = self.stream.node.take(given.assignment, given.job)
        await self.stream.send(decision=attempt.decide(now_ms()))
        return order, attempt

    def watch(self, order: Order) -> AsyncIterator[WatchResponse]:
        """Follow a job."""
        return self.caller.watch(self.client.watch(order.id, now_ms()))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with serve_in_memory(tmp_path, options=NARROW) as (running, channel):
        running.door.sequencer.core.relay._stream_bytes_max = BUFFER_BYTES
        yield await _open(running, channel)


async def _open(running: Running, channel: grpc.aio.Channel) -> Scene:
    caller = Caller(channel)
    client = ClientActor("client", COORDINATOR.node_id)
    node = NodeActor("node", COORDINATOR.node_id)
    for actor in (client, node):
        await caller.join(actor.claim(now_ms()))
    stream = AttachCall(channel, node)
    await stream.open(now_ms())
    return Scene(running, caller, client, stream)


async def test_a_slow_watcher_costs_no_memory_and_holds_nobody_up(scene: Scene) -> None:
    relay = scene.running.door.sequencer.core.relay
    order, attempt = await scene.begin("long")
    slow = scene.watch(order)
    await anext(slow)  # and then nothing for a long time
    fast = asyncio.create_task(_count(scene.watch(order)))
    for number in range(CHUNKS):
        await scene.stream.send(chunk=_filled(attempt, final=number == CHUNKS - 1))
        # The fast one keeps up: a node's own chunks wait for the engine, ours for nobody.
        await asyncio.sleep(0)
        assert relay.bytes <= BUFFER_BYTES + CHUNKS * 512
    short_order, short = await scene.begin("short")
    for number in range(SMALL_CHUNKS):
        await scene.stream.send(chunk=short.chunk(final=number == SMALL_CHUNKS - 1))
    await scene.stream.send(attestation=short.attest(now_ms()))
    assert await _count(scene.watch(short_order)) == SMALL_CHUNKS
    await scene.stream.send(attestation=attempt.attest(now_ms()))
    assert await fast == CHUNKS
    with pytest.raises(NovaMeshError) as refused:
        await _count(slow)
    assert refused.value.code is Code.STALE


async def test_who_hangs_up_during_a_write_is_no_news(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    order, attempt = await scene.begin("long")
    slow = scene.caller.watch(scene.client.watch(order.id, now_ms()))
    await anext(slow)
    for _ in range(CHUNKS // 4):
        await scene.stream.send(chunk=_filled(attempt, final=False))
    relay = scene.running.door.sequencer.core.relay
    await wait_until(lambda: relay.chunks_relayed == CHUNKS // 4)
    await slow.aclose()  # type: ignore[attr-defined]
    await wait_until(lambda: not scene.running.door.hub._watchers)
    assert "failed" not in capsys.readouterr().out


def _filled(attempt: Attempt, final: bool) -> AttemptChunk:
    """The next chunk, as large as one may be, without a token in it."""
    finish = FinishReason.STOP if final else FinishReason.UNSPECIFIED
    sealed = attempt.sealer.seal(ChunkBody((), TEXT, finish=finish), final)
    return AttemptChunk(**attempt.ids, chunk=sealed)


async def _count(events: AsyncIterator[WatchResponse]) -> int:
    """How many chunks come, to the end."""
    return len([event async for event in events if event.chunk is not None])
