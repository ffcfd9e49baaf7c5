"""A node's own service, over TLS by its PeerId: the SDK's connection to a pool of one."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.pool import PoolConnection
from novamesh_node import direct_service, doorway
from novamesh_node.direct_service import listen
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import (
    Envelope,
    JobState,
    NodeDescriptor,
    StreamChunk,
    WatchResponse,
)
from support.clock import START_MS
from support.fake_engine import FIRST_TOKEN
from support.own_front import Counter, open_front
from support.parties import CLIENT, NETWORK, NODE, party
from support.working_desk import LONG

CLOCK = Clock(lambda: START_MS, time.monotonic)


@asynccontextmanager
async def reached(
    folder: Path, key: PrivateKey = NODE, unix_socket: Path | None = None
) -> AsyncIterator[tuple[Counter, PoolConnection]]:
    """A node that listens, and a client's connection that expects NODE there."""
    address = "" if unix_socket else "127.0.0.1:0"
    async with (
        open_front(folder) as counter,
        listen(counter.front, key, address, unix_socket) as listener,
    ):
        there = f"unix:{unix_socket}" if unix_socket else f"127.0.0.1:{listener.port}"
        pool = Pool(there, format_node_id(NODE.node_id), NETWORK)
        connection = PoolConnection(pool, CLIENT, CLOCK, 5.0)
        try:
            yield counter, connection
        finally:
            await connection.close()


@pytest.mark.parametrize("tunnel", [False, True])
async def test_a_job_is_handed_in_followed_and_confirmed(tmp_path: Path, tunnel: bool) -> None:
    end = tmp_path / "s" if tunnel else None
    async with reached(tmp_path, unix_socket=end) as (counter, line):
        card = await line.hello()
        assert card.issuer == NODE.node_id
        (sealed,) = await line.list_descriptors()
        assert envelope.open(sealed, NodeDescriptor, network=NETWORK).issuer == NODE.node_id
        alone = counter.order(max_tokens=50)
        assert (await line.submit(alone.job, ())).state is JobState.RUNNING
        async with asyncio.timeout(10), aclosing(line.watch(alone.id, 0, 0)) as stream:
            events = [event async for event in stream]
        assert alone.read(events) == list(range(FIRST_TOKEN, FIRST_TOKEN + 50))
        await line.acknowledge(alone.ack())
        await line.submit_receipt(alone.receipt(events))
        assert (await line.get_job(alone.id)).state is JobState.SETTLED
        assert len(counter.donations.pending()) == 1


async def test_a_job_is_stopped(tmp_path: Path) -> None:
    async with reached(tmp_path) as (counter, line):
        counter.gate.clear()
        alone = counter.order(max_tokens=LONG)
        await line.submit(alone.job, ())
        await counter.begun()
        assert (await line.cancel(alone.id)).job == alone.id
        counter.gate.set()
        await counter.node.idle()
        assert (await line.get_job(alone.id)).state is JobState.CANCELLED


async def test_what_only_pools_do_is_refused(tmp_path: Path) -> None:
    async with reached(tmp_path) as (_, line):
        for call in (line.join, line.list_models, lambda: line.list_jobs(5)):
            with pytest.raises(NovaMeshError) as caught:
                await call()
            assert caught.value.code is Code.UNSUPPORTED
            assert caught.value.hint


async def test_refusals_arrive_whole_and_a_bug_ends_its_call_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reached(tmp_path) as (counter, line):
        with pytest.raises(NovaMeshError) as caught:
            await line.get_job(counter.order().id)
        assert caught.value.code is Code.NOT_FOUND

        def broken() -> None:
            raise ValueError("secret")

        monkeypatch.setattr(counter.front, "card", broken)
        with pytest.raises(NovaMeshError) as caught:
            await line.hello()
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in str(caught.value)
        assert await line.list_descriptors()


async def test_another_identity_at_the_same_address_is_refused(tmp_path: Path) -> None:
    async with reached(tmp_path, party("somebody else")) as (_, line):
        with pytest.raises(NovaMeshError) as caught:
            await line.hello()
        assert caught.value.code is Code.PIN_MISMATCH


async def test_who_does_not_read_on_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine works on: what its client lacks stays in the tail."""
    monkeypatch.setattr(direct_service, "WRITE_S", 0.2)
    async with reached(tmp_path) as (counter, line):
        alone = counter.order(max_tokens=400)
        await line.submit(alone.job, ())
        stream = line.watch(alone.id, 0, 0)
        assert (await anext(stream)).assignment is not None
        await counter.node.idle()
        await stream.aclose()
        async with asyncio.timeout(10), aclosing(line.watch(alone.id, 0, 0)) as again:
            events = [event async for event in again]
        assert len(alone.read(events)) == 400


async def test_a_client_that_does_not_read_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call would stay for as long as it likes: gRPC ends none with a write under way."""
    monkeypatch.setattr(direct_service, "WRITE_S", 0.3)
    monkeypatch.setattr(doorway, "EACH_MAX", 1)
    ended = asyncio.Event()

    async def endless(_: Envelope) -> AsyncGenerator[WatchResponse]:
        try:
            while True:
                yield WatchResponse(chunk=StreamChunk(0, 1, False, bytes(16_000)))
        finally:
            ended.set()

    async with reached(tmp_path) as (counter, line):
        monkeypatch.setattr(counter.front, "watch", endless)
        async with aclosing(line.watch(counter.order().id, 0, 0)) as stream:
            assert (await anext(stream)).chunk is not None
            await asyncio.wait_for(ended.wait(), 10)
            await asyncio.wait_for(_answered(line), 10)


async def _answered(line: PoolConnection) -> None:
    """Until the call that was held is free again."""
    while True:
        with suppress(NovaMeshError):
            await line.hello()
            return
        await asyncio.sleep(0.05)


async def test_a_port_that_is_taken_is_said_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with open_front(tmp_path) as counter:
            with pytest.raises(NovaMeshError) as caught:
                async with listen(counter.front, NODE, address):
                    raise AssertionError("two listen at one port")
    assert caught.value.code is Code.CONFLICT
    assert "--listen" in caught.value.hint


async def test_who_listens_nowhere_has_no_port(tmp_path: Path) -> None:
    async with open_front(tmp_path) as counter, listen(counter.front, NODE, "") as listener:
        assert listener.port == 0
