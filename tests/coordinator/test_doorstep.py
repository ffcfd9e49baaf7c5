"""Before anybody looks at what a call says: how often, how many, how long, and whether at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest

from novamesh_coordinator import doorstep
from novamesh_coordinator.server import Running
from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.guests import Guests
from support.memory_channel import our_error, serve_in_memory
from support.waiting import wait_until

POOL = "/novamesh.v1.PoolService/"
ATTACH = "/novamesh.v1.NodeService/Attach"
HEALTH = "/grpc.health.v1.Health/"
CALL_S = 10.0


def raw(data: bytes) -> bytes:
    return data


async def send(channel: grpc.aio.Channel, method: str, data: bytes, **options: Any) -> bytes:
    """A call with these bytes, whatever they are."""
    ask: Any = channel.unary_unary(method, raw, raw)
    try:
        answer: bytes = await ask(data, timeout=CALL_S, **options)
    except grpc.aio.AioRpcError as error:
        raise our_error(error) from None
    return answer


def begin(channel: grpc.aio.Channel, method: str) -> Any:
    """A call that says nothing yet."""
    return channel.stream_stream(method, raw, raw)(timeout=CALL_S)


async def refusal(call: Any) -> NovaMeshError:
    """What a call that says nothing is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    error = our_error(failed.value)
    assert isinstance(error, NovaMeshError)
    return error


async def until_guests(running: Running, count: int) -> None:
    await wait_until(lambda: len(running.door.guests) == count)


@pytest.mark.parametrize("method", ["Match", "Watch", "Submit"])
async def test_bytes_that_are_no_message_are_refused_without_a_trace(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        with pytest.raises(NovaMeshError, match="not the message") as refused:
            await send(channel, POOL + method, b"\x0a\x50abc")
        assert refused.value.code is Code.BAD_REQUEST
        stream = begin(channel, ATTACH)
        await stream.read()
        await stream.write(b"\x0a\x50abc")
        assert (await refusal(stream)).code is Code.BAD_REQUEST
    assert not caplog.records


async def test_who_says_nothing_holds_a_slot_and_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorstep, "HEAR_S", 0.05)
    async with serve_in_memory(tmp_path) as (running, channel):
        assert (await refusal(begin(channel, POOL + "Submit"))).code is Code.EXPIRED
        ended = begin(channel, POOL + "Submit")
        await ended.done_writing()
        assert (await refusal(ended)).code is Code.BAD_REQUEST
        await until_guests(running, 0)


async def test_begun_calls_of_one_address_have_a_bound(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (running, channel):
        strike = running.door.bouncer.strike
        object.__setattr__(running.door, "guests", Guests(2, 9, strike))
        calls = [begin(channel, POOL + "Submit"), begin(channel, ATTACH)]
        await calls[1].read()
        await until_guests(running, 2)
        assert (await refusal(begin(channel, POOL + "Submit"))).code is Code.BUSY
        assert running.door.bouncer._strikes == {"unix": 1}
        for call in calls:
            call.cancel()
        await until_guests(running, 0)
        await send(channel, POOL + "Hello", b"")


async def test_who_waits_for_a_refusal_takes_up_a_slot(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (running, channel):
        object.__setattr__(running.door, "addresses", Buckets(Rate(0.001, 1)))
        await send(channel, POOL + "Hello", b"")
        waits = begin(channel, POOL + "Hello")
        await until_guests(running, 1)
        waits.cancel()
        await until_guests(running, 0)


async def test_who_follows_the_health_stays_a_guest(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (running, channel):
        follow = begin(channel, HEALTH + "Watch")
        await follow.write(health_pb2.HealthCheckRequest().SerializeToString())
        assert await follow.read()
        await send(channel, HEALTH + "Check", b"")
        assert len(running.door.guests) == 1
        follow.cancel()
        await until_guests(running, 0)


@pytest.mark.parametrize("method", [POOL + "Hello", ATTACH])
async def test_an_address_that_asks_too_often_waits_and_gets_strikes(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorstep, "PENANCE_S", 0.0)
    async with serve_in_memory(tmp_path) as (running, channel):
        object.__setattr__(running.door, "addresses", Buckets(Rate(0.001, 1)))
        await send(channel, POOL + "Hello", b"")
        assert (await refusal(begin(channel, method))).code is Code.BUSY
        assert running.door.bouncer._strikes == {"unix": 1}
        page = generate_latest(running.door.metrics.registry).decode()
        assert f'code="busy",method="{method.rpartition("/")[2]}"' in page


async def test_what_is_packed_is_refused(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await send(channel, POOL + "Hello", bytes(500), compression=grpc.Compression.Gzip)
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
