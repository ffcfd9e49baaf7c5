"""Forged, stale and borrowed messages against real servers: each refusal has its own code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novamesh import Client, transport
from novamesh.config import load_config
from novamesh.keys import load_or_create_key
from novamesh.pool import Wanted
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    AttachHello,
    AttachRequest,
    AttachResponse,
    BanOrder,
    Envelope,
    Header,
    ModelsQuery,
)
from novamesh_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, node_pb2_grpc
from support.processes import NETWORK, RealPool

pytestmark = pytest.mark.timeout(180)
MINUTE_MS = 60_000


class Caller:
    """A member that says whatever it likes to the coordinator."""

    def __init__(self, pool: RealPool, key: PrivateKey) -> None:
        configured = load_config(pool.home("client")).require_pool()
        self.key = key
        self.coordinator = configured.coordinator_id
        self.address = configured.address

    def header(self, age_ms: int = 0, network: str = NETWORK) -> Header:
        now_ms = int(time.time() * 1000) - age_ms
        return envelope.header(self.key, network, (self.coordinator,), now_ms)

    async def dial(self) -> transport.Channel:
        return await transport.open_channel(self.address, self.coordinator, 10)

    async def list_models(self, query: Envelope) -> None:
        """One call whose refusal is raised as our error."""
        channel = await self.dial()
        try:
            stub = coordinator_pb2_grpc.PoolServiceStub(channel.channel)
            request = coordinator_pb2.ListModelsRequest(query=wire.to_pb(query))
            await stub.ListModels(request, timeout=10)
        except transport.grpc.aio.AioRpcError as error:
            raise transport.error_from_rpc(error) from None
        finally:
            await channel.close()

    async def ban(self, order: Envelope) -> None:
        """The same for an order of the pool's owner."""
        channel = await self.dial()
        try:
            stub = coordinator_pb2_grpc.AdminServiceStub(channel.channel)
            await stub.Ban(coordinator_pb2.BanRequest(order=wire.to_pb(order)), timeout=10)
        except transport.grpc.aio.AioRpcError as error:
            raise transport.error_from_rpc(error) from None
        finally:
            await channel.close()


@pytest.fixture
def caller(pool: RealPool) -> Caller:
    return Caller(pool, load_or_create_key(pool.home("client") / "client.key"))


async def _refusal(attempt: object) -> Code:
    with pytest.raises(NovaMeshError) as refused:
        await attempt  # type: ignore[misc]
    return refused.value.code


async def test_expired_early_and_foreign_envelopes_are_refused(caller: Caller) -> None:
    def query(**wrong: object) -> Envelope:
        return envelope.seal(ModelsQuery(caller.header(**wrong)), caller.key)  # type: ignore[arg-type]

    assert await _refusal(caller.list_models(query(age_ms=20 * MINUTE_MS))) is Code.NOT_FRESH
    assert await _refusal(caller.list_models(query(age_ms=-20 * MINUTE_MS))) is Code.NOT_FRESH
    assert await _refusal(caller.list_models(query(network="other"))) is Code.WRONG_NETWORK


async def test_replayed_query_is_refused(caller: Caller) -> None:
    query = envelope.seal(ModelsQuery(caller.header()), caller.key)
    await caller.list_models(query)
    assert await _refusal(caller.list_models(query)) is Code.REPLAYED


async def test_replayed_ban_is_refused_across_a_restart(pool: RealPool, caller: Caller) -> None:
    owner = Caller(pool, PrivateKey.from_bytes(_secret(pool.home("pool"))))
    member = PrivateKey.generate().node_id
    ban = envelope.seal(BanOrder(owner.header(), member, "noise"), owner.key)
    await owner.ban(ban)
    lift = BanOrder(owner.header(), member, lift=True)
    await owner.ban(envelope.seal(lift, owner.key))
    assert await _refusal(owner.ban(ban)) is Code.REPLAYED
    pool.coordinator.kill()
    pool.start_coordinator()
    assert await _refusal(owner.ban(ban)) is Code.REPLAYED
    pool.await_nodes(2)


def _secret(home: Path) -> bytes:
    return bytes.fromhex((home / "coordinator" / "coordinator.key").read_text().strip())


async def test_cancelling_again_changes_nothing(pool: RealPool, caller: Caller) -> None:
    async with Client(home=pool.home("client")) as client:
        run = client.run("nova-pico", "What is 5 plus 6?", max_tokens=150, ignore_eos=True)
        async for _ in run:
            break
        await run.cancel()
        before = (await client.jobs(1))[0]
        assert before.state.terminal
        assert await client.cancel(before.job) == before


async def test_stranger_is_no_member(pool: RealPool) -> None:
    stranger = Caller(pool, PrivateKey.generate())
    query = envelope.seal(ModelsQuery(stranger.header()), stranger.key)
    assert await _refusal(stranger.list_models(query)) is Code.NOT_A_MEMBER


async def test_descriptor_copied_by_another_node_attaches_nowhere(
    pool: RealPool, caller: Caller
) -> None:
    descriptor = await _any_descriptor(pool)
    thief = Caller(pool, load_or_create_key(pool.home("thief") / "client.key"))
    pool.join("thief")
    assert descriptor.signatures[0].keyid != thief.key.node_id
    assert await _attach(thief, descriptor) not in {None, Code.INTERNAL}
    async with Client(home=pool.home("client")) as client:
        assert (await client.complete("nova-pico", "What is 5 plus 6?")).text


async def _any_descriptor(pool: RealPool) -> Envelope:
    """What any client gets to see: the signed descriptor of a node."""
    async with asyncio.timeout(60):
        while True:
            async with Client(home=pool.home("client")) as client:
                if models := await client.models():
                    wanted = Wanted(models[0].model_profile, 10, 10)
                    desk = client._require_desk()
                    return (await desk.pool.match(wanted))[0].descriptor
            await asyncio.sleep(0.5)


async def _attach(thief: Caller, descriptor: Envelope) -> Code | None:
    """Attach with a stolen descriptor; the code it is refused with, None if it is welcome."""
    channel = await thief.dial()
    said: asyncio.Queue[AttachRequest] = asyncio.Queue(1)

    async def speak() -> AsyncIterator[object]:
        yield wire.to_pb(await said.get())
        await asyncio.sleep(10)

    try:
        call = node_pb2_grpc.NodeServiceStub(channel.channel).Attach(speak(), timeout=10)
        async for answer in call:
            response = wire.from_pb(AttachResponse, answer)
            if response.challenge is not None:
                nonce = response.challenge.nonce
                hello = AttachHello(
                    thief.header(), nonce, channel.certificate_key_digest, descriptor
                )
                await said.put(AttachRequest(hello=envelope.seal(hello, thief.key)))
            elif response.goodbye is not None:
                return Code(response.goodbye.code)
            elif response.welcome is not None:
                return None
    except transport.grpc.aio.AioRpcError as error:
        return transport.error_from_rpc(error).code
    finally:
        await channel.close()
    return Code.UNAVAILABLE


def test_another_coordinator_at_the_same_address_is_not_believed(pool: RealPool) -> None:
    pool.coordinator.kill()
    pool.cli("coordinator", "init", "--name", NETWORK, home="impostor")
    pool.start(
        "impostor", ["coordinator", "serve", "--listen", pool.address, "--http", "127.0.0.1:0"]
    )
    refused = pool.cli("run", "nova-pico", "What is 5 plus 6?", check=False)
    pool.daemons.pop("impostor").kill()  # the next test wants the address back
    for node in ("ada", "bob"):
        pool.daemons[node].kill()  # one that met the impostor ends, soon or has: both begin anew
    assert refused.returncode == 77
    assert refused.stderr.startswith("error: ")
    assert "hint: " in refused.stderr
