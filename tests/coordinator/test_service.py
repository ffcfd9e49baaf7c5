"""The door: deadlines, rates, sizes, and bugs that show nothing."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest

from novamesh.transport import KEEPALIVE_MS
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import Core
from novamesh_coordinator.service import SERVER_OPTIONS
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import MESSAGE_BYTES_MAX
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import ClientActor
from support.memory_channel import Caller, call, our_error, serve_in_memory
from support.parties import COORDINATOR, NETWORK


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def actor(name: str = "client") -> ClientActor:
    return ClientActor(name, COORDINATOR.node_id)


@pytest.mark.parametrize("timeout_s", [None, 3_600])
async def test_a_call_needs_a_deadline(tmp_path: Path, timeout_s: float | None) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await Caller(channel).pool.Hello(pb.HelloRequest(), timeout=timeout_s)
        error = our_error(failed.value)
        assert isinstance(error, NovaMeshError)
        assert (error.code, error.hint) == (Code.BAD_REQUEST, "set a timeout on the call")


async def test_a_party_that_asks_too_often_is_slowed_down(tmp_path: Path) -> None:
    config = CoordinatorConfig(network=NETWORK, http="", open=True, requests_per_s=2)
    async with serve_in_memory(tmp_path, config=config) as (_, channel):
        caller, client, other = Caller(channel), actor(), actor("other")
        await caller.join(other.claim(now_ms()))
        await caller.join(client.claim(now_ms()))
        for _ in range(7):
            await caller.models(client.ask_models(now_ms()))
        with pytest.raises(NovaMeshError) as refused:
            await caller.models(client.ask_models(now_ms()))
        assert refused.value.code is Code.BUSY
        assert 0 < refused.value.retry_after_ms <= 500
        await caller.models(other.ask_models(now_ms()))


async def test_a_message_too_large_is_refused_and_the_connection_lives(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller = Caller(channel)
        big = pb.SubmitRequest(reservations=[bytes(MESSAGE_BYTES_MAX)])
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await caller.pool.Submit(big, timeout=5)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await caller.pool.Hello(pb.HelloRequest(), timeout=5)


async def test_an_empty_envelope_is_refused(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        with pytest.raises(NovaMeshError) as refused:
            await call(Caller(channel).pool.Join, pb.JoinRequest())
        assert refused.value.code is Code.BAD_REQUEST


async def test_a_bug_shows_nothing_and_costs_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_in_memory(tmp_path) as (running, channel):
        caller, client = Caller(channel), actor()
        await caller.join(client.claim(now_ms()))

        def explode(*_: object) -> None:
            raise RuntimeError("secret insides")

        monkeypatch.setattr(Core, "step", explode)
        with pytest.raises(NovaMeshError) as refused:
            await caller.models(client.ask_models(now_ms()))
        assert refused.value.code is Code.INTERNAL
        assert "secret" not in refused.value.message
        monkeypatch.undo()
        await caller.models(client.ask_models(now_ms()))
        page = running.door.metrics.collect(running.door.sequencer.core, True, 0)
        assert b'novamesh_call_seconds_count{code="internal",method="ListModels"} 1.0' in page
        assert b"novamesh_members 1.0" in page
    assert "secret insides" in capsys.readouterr().out


async def test_only_the_owner_may_ask_the_admin_service(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, client = Caller(channel), actor()
        await caller.join(client.claim(now_ms()))
        query = client.ask_models(now_ms())
        request = pb.ListNodesRequest()
        request.query.payload_type = query.payload_type
        request.query.payload = query.payload
        request.query.signatures.add(keyid=query.signatures[0].keyid, sig=query.signatures[0].sig)
        with pytest.raises(NovaMeshError) as refused:
            await call(caller.admin.ListNodes, request)
        assert refused.value.code is Code.WRONG_TYPE


def test_the_server_is_hardened() -> None:
    options = dict(SERVER_OPTIONS)
    assert options["grpc.so_reuseport"] == 0
    assert options["grpc.max_receive_message_length"] == MESSAGE_BYTES_MAX
    assert options["grpc.max_concurrent_streams"] == 64
    assert options["grpc.server_handshake_timeout_ms"] == 3_000
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 10_000
    # A node pings every 12 s: that must never look like a flood, nor be pinged in return.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < KEEPALIVE_MS
    assert options["grpc.keepalive_time_ms"] > KEEPALIVE_MS
