"""A whole coordinator over gRPC: one job from match to settlement, restarts, TLS, what is told."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.owner_link import open_owner_link
from novamesh_coordinator.server import run_coordinator
from novamesh_coordinator.store import open_store
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobAssignment, JobState, JobView, WatchResponse
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.memory_channel import AttachCall, Caller, serve_in_memory
from support.parties import COORDINATOR, NETWORK, party


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def client_actor(name: str = "client") -> ClientActor:
    return ClientActor(name, COORDINATOR.node_id)


async def attach(channel: grpc.aio.Channel, name: str = "node") -> AttachCall:
    node = NodeActor(name, COORDINATOR.node_id)
    await Caller(channel).join(node.claim(now_ms()))
    call = AttachCall(channel, node)
    await call.open(now_ms())
    return call


async def order_job(caller: Caller, client: ClientActor, key: str = "job-1") -> Order:
    candidates = await caller.match(client.match(now_ms()))
    order = client.seal([one.descriptor for one in candidates], now_ms(), key)
    view = await caller.submit(order, tuple(one.reservation for one in candidates))
    assert view.job == order.id
    return order


async def take(call: AttachCall) -> Attempt:
    message = await call.read()
    assert message.assignment is not None
    attempt = call.node.take(message.assignment.assignment, message.assignment.job)
    await call.send(decision=attempt.decide(now_ms()))
    return attempt


async def answer(call: AttachCall, attempt: Attempt, chunks: int = 3) -> None:
    for index in range(chunks):
        await call.send(chunk=attempt.chunk(final=index == chunks - 1))
    await call.send(attestation=attempt.attest(now_ms()))


async def follow(caller: Caller, query: envelope.Envelope) -> list[WatchResponse]:
    return [event async for event in caller.watch(query)]


def kinds(events: list[WatchResponse]) -> list[str]:
    names = WatchResponse.__slots__
    return [name for event in events for name in names if getattr(event, name) is not None]


async def test_one_job_from_match_to_settlement(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, client = Caller(channel), client_actor()
        await caller.join(client.claim(now_ms()))
        node = await attach(channel)
        models = await caller.models(client.ask_models(now_ms()))
        assert [(model.name, model.nodes, model.free_slots) for model in models] == [
            ("nova-pico", 1, 2)
        ]
        order = await order_job(caller, client)
        attempt = await take(node)
        await node.send(chunk=attempt.chunk())
        await node.send(checkpoint=attempt.checkpoint(now_ms()))
        events = []
        async for event in caller.watch(client.watch(order.id, now_ms())):
            events.append(event)
            if event.checkpoint is not None:
                await caller.acknowledge(client.acknowledge(attempt, now_ms(), chunks=1))
                assert (await node.read()).ack is not None
                await answer(node, attempt)
        told = kinds(events)
        assert told[0] == told[-1] == "job"
        assert [kind for kind in told if kind != "job"] == [
            "assignment",
            "chunk",
            "checkpoint",
            *["chunk"] * 3,
            "attestation",
            "relay_receipt",
            "settlement",
        ]
        assert events[-1].job is not None
        assert events[-1].job.state is JobState.SETTLED
        opened = [event.assignment for event in events if event.assignment]
        assigned = envelope.open(opened[0], JobAssignment, network=NETWORK)
        opener = order.opener(assigned)
        text = [opener.open(event.chunk).text for event in events if event.chunk]
        assert ("".join(text), opener.finished) == ("xxxx", True)
        await caller.countersign(client.countersign(attempt, now_ms()))
        again = await follow(caller, client.watch(order.id, now_ms(), 1, 3))
        assert kinds(again) == [
            "assignment",
            "chunk",
            "attestation",
            "relay_receipt",
            "settlement",
            "job",
        ]
        await node.close()


async def test_the_coordinator_restarts_between_and_during_jobs(tmp_path: Path) -> None:
    client = client_actor()
    async with serve_in_memory(tmp_path) as (running, channel):
        caller = Caller(channel)
        await caller.join(client.claim(now_ms()))
        node = await attach(channel)
        first = await order_job(caller, client)
        await answer(node, await take(node))
        await follow(caller, client.watch(first.id, now_ms()))
        second = await order_job(caller, client, "job-2")
        attempt = await take(node)
        await node.send(chunk=attempt.chunk())
        running_jobs = await caller.jobs(client.ask_all(now_ms()))
        assert [view.job for view in running_jobs] == [second.id, first.id]
        running.door.hub.say_goodbye(Code.UNAVAILABLE, "the coordinator stops")
        assert (await node.read()).goodbye is not None
    async with serve_in_memory(tmp_path) as (running, channel):
        caller = Caller(channel)
        view = await caller.job(client.ask(first.id, now_ms()))
        assert view.state is JobState.SETTLED
        events = await follow(caller, client.watch(first.id, now_ms()))
        assert kinds(events) == ["attestation", "relay_receipt", "settlement", "job"]
        back = AttachCall(channel, attempt.node)
        await back.open(now_ms(), (attempt.running,))
        assert [(run.job, run.chunks) for run in back.resumed] == [(second.id, 0)]
        for chunk in attempt.sent:
            await back.send(chunk=chunk)
        await answer(back, attempt)
        events = await follow(caller, client.watch(second.id, now_ms()))
        assert events[-1].job is not None
        assert events[-1].job.state is JobState.SETTLED
        assert running.door.sequencer.core.ledger.jobs_settled == 2
        await back.close()


async def test_a_node_that_breaks_off_is_replaced(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, client = Caller(channel), client_actor()
        await caller.join(client.claim(now_ms()))
        calls = {call.node.id: call for call in [await attach(channel, n) for n in ("a", "b")]}
        order = await order_job(caller, client)
        view = await caller.job(client.ask(order.id, now_ms()))
        first = calls.pop(view.node)  # type: ignore[arg-type]
        await take(first)
        await first.close()
        (second,) = calls.values()
        await answer(second, await take(second))
        events = await follow(caller, client.watch(order.id, now_ms()))
        last = events[-1].job
        assert isinstance(last, JobView)
        assert (last.state, last.attempt, last.node) == (JobState.SETTLED, 2, second.node.id)
        await second.close()


async def test_refusals_name_code_and_hint(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, client = Caller(channel), client_actor()
        with pytest.raises(NovaMeshError) as refused:
            await caller.match(client.match(now_ms()))
        assert (refused.value.code, refused.value.hint) == (
            Code.NOT_A_MEMBER,
            "novamesh pool join CODE",
        )
        await caller.join(client.claim(now_ms()))
        with pytest.raises(NovaMeshError) as refused:
            await caller.match(client.match(now_ms()))
        assert refused.value.code is Code.MODEL_NOT_FOUND
        query = client.ask_models(now_ms())
        await caller.models(query)
        with pytest.raises(NovaMeshError) as refused:
            await caller.models(query)
        assert refused.value.code is Code.REPLAYED
        with pytest.raises(NovaMeshError) as refused:
            await caller.models(client.ask_models(now_ms() - 3_600_000))
        assert refused.value.code is Code.NOT_FRESH


async def test_a_copied_descriptor_captures_nothing(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        victim = await attach(channel, "victim")
        thief = NodeActor("thief", COORDINATOR.node_id)
        await Caller(channel).join(thief.claim(now_ms()))
        call = AttachCall(channel, thief)
        challenge = (await call.read()).challenge
        assert challenge is not None
        copied = victim.node.descriptor(now_ms())
        await call.send(hello=thief.hello(challenge.nonce, bytes(32), now_ms(), (), copied))
        with pytest.raises(NovaMeshError) as refused:
            await call.read()
        assert refused.value.code is Code.FORBIDDEN
        other = AttachCall(channel, victim.node)
        with pytest.raises(NovaMeshError) as refused:
            await other.open(now_ms(), digest=b"\1" * 32)
        assert refused.value.code is Code.PIN_MISMATCH
        await victim.close()


async def test_a_full_pool_says_when_to_come_again(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, client = Caller(channel), client_actor()
        await caller.join(client.claim(now_ms()))
        node = await attach(channel)
        for key in ("one", "two"):
            await order_job(caller, client, key)
        with pytest.raises(NovaMeshError) as refused:
            await caller.match(client.match(now_ms()))
        assert refused.value.code is Code.BUSY
        assert refused.value.retry_after_ms > 0
        await node.close()


async def test_tls_pins_the_identity_and_serves_health(tmp_path: Path) -> None:
    identity = PoolIdentity(COORDINATOR, NETWORK, open=True)
    config = CoordinatorConfig(network=NETWORK, listen="127.0.0.1:0", http="127.0.0.1:0", open=True)
    store = await open_store(tmp_path / "coordinator.db")
    async with run_coordinator(identity, store, config) as running:
        address = f"127.0.0.1:{running.grpc_port}"

        def ask() -> str:
            with open_owner_link(address, COORDINATOR, NETWORK) as link:
                assert link.nodes() == ()
                link.ban(party("spammer").node_id, "spam", lift=False)
                return link.health().version

        def pin() -> None:
            with open_owner_link(address, party("other"), NETWORK):
                pass

        assert await asyncio.to_thread(ask) == running.door.version
        with pytest.raises(NovaMeshError) as refused:
            await asyncio.to_thread(pin)
        assert refused.value.code is Code.PIN_MISMATCH
        assert running.http_port > 0
        reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        page = await reader.read()
        writer.close()
        assert b"novamesh_storage_healthy 1.0" in page
    await store.close()


async def test_health_is_the_standard_service(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service="novamesh.v1.PoolService"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("flag", ["listen", "http"])
@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
async def test_an_address_of_another_machine_is_named(
    tmp_path: Path, flag: str, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    addresses = {"listen": "127.0.0.1:0", "http": "", flag: f"{host}:7700"}
    config = CoordinatorConfig(network=NETWORK, **addresses)
    store = await open_store(tmp_path / "coordinator.db")
    with pytest.raises(NovaMeshError, match=f"{host} is no address of this machine") as refused:
        async with run_coordinator(PoolIdentity(COORDINATOR, NETWORK), store, config):
            pass
    assert f"--{flag} 0.0.0.0:7700" in refused.value.hint
    assert capfd.readouterr().err == ""
    await store.close()


@pytest.mark.parametrize("taken", ["listen", "http"])
async def test_a_port_that_is_taken_is_named(
    tmp_path: Path, taken: str, capfd: pytest.CaptureFixture[str]
) -> None:
    other = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    addresses = {"listen": "127.0.0.1:0", "http": "", taken: f"127.0.0.1:{port}"}
    config = CoordinatorConfig(network=NETWORK, **addresses)
    store = await open_store(tmp_path / "coordinator.db")
    with pytest.raises(NovaMeshError, match=str(port)) as refused:
        async with run_coordinator(PoolIdentity(COORDINATOR, NETWORK), store, config):
            pass
    assert refused.value.code is Code.CONFLICT
    assert f"another program uses port {port}" in refused.value.message
    assert f"--{taken}" in refused.value.hint
    assert capfd.readouterr().err == ""  # gRPC would say it first, in its own words
    await store.close()
    other.close()
    await other.wait_closed()


async def test_a_damaged_log_is_not_served(tmp_path: Path) -> None:
    async with serve_in_memory(tmp_path) as (_, channel):
        await Caller(channel).join(client_actor().claim(now_ms()))
    with sqlite3.connect(tmp_path / "coordinator.db") as database:
        database.execute("delete from snapshots")
        database.execute("update events set body = x'00'")
    database.close()
    with pytest.raises(NovaMeshError) as refused:
        async with serve_in_memory(tmp_path):
            pass
    assert refused.value.code is Code.CORRUPT


async def test_a_clean_stop_leaves_a_snapshot(tmp_path: Path) -> None:
    for _ in range(2):
        async with serve_in_memory(tmp_path) as (running, channel):
            await Caller(channel).join(client_actor().claim(now_ms()))
            assert len(running.door.sequencer.core.membership) == 1
    with sqlite3.connect(tmp_path / "coordinator.db") as database:
        assert database.execute("select seq from snapshots").fetchall() == [(1,)]
    database.close()
