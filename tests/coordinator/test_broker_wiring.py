"""A whole coordinator with its small broker: whom it finds there, and what it says is missing."""

from __future__ import annotations

import sys
import urllib.request
from asyncio import sleep, to_thread
from pathlib import Path

import pytest

from novamesh_coordinator import broker_wiring
from novamesh_coordinator.broker_wiring import small_broker
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_proto import wire
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.names import GONE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic
from novamesh_proto.node_table import Source
from support.actors import NodeActor
from support.memory_channel import AttachCall, Caller, serve_in_memory
from support.mqtt import PEER, WALL, advertise, node_presence, reading, running, until
from support.parties import COORDINATOR, NETWORK
from support.ports import free_port


async def page(port: int) -> str:
    """The coordinator's figures."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())

    return await to_thread(read)


async def until_shown(port: int, *lines: str) -> None:
    shown = ""
    for _ in range(300):
        shown = await page(port)
        if all(f"\n{line}\n" in shown for line in lines):
            return
        await sleep(0.05)
    raise AssertionError(f"{lines} not in {shown}")


async def test_a_member_is_found_by_the_small_broker_and_a_stranger_is_not(tmp_path: Path) -> None:
    port, advertiser = free_port(), advertise()
    config = CoordinatorConfig(
        NETWORK, http="127.0.0.1:0", open=True, embedded_broker=True,
        broker_listen=f"127.0.0.1:{port}",
    )  # fmt: skip
    broker = Broker("127.0.0.1", port, False)
    async with serve_in_memory(tmp_path, config=config) as (pool, channel):
        node = node_presence(broker, lambda: advertiser.current(WALL()))
        await until_shown(pool.http_port, "novamesh_broker_reached 1.0")  # else it misses the birth
        async with running(node), reading(broker) as writer:
            await until_shown(
                pool.http_port,
                'novamesh_broker_refusals_total{code="not_a_member"} 2.0',  # birth and descriptor
                "novamesh_broker_nodes 0.0",
            )
            actor = NodeActor("node", COORDINATOR.node_id)
            await Caller(channel).join(actor.claim(WALL()))
            advertiser.renew(WALL())
            await until_shown(pool.http_port, "novamesh_broker_nodes 1.0")
            call = AttachCall(channel, actor)
            await call.open(WALL())
            await writer.client.publish(node_topic(NETWORK, PEER, TOPIC_PRESENCE), GONE, 1)
            assert (await call.read()).probe is not None
            # What came by the broker is newer than what came down the stream, so it counts.
            session = pool.door.sequencer.core.registry.sessions.get(actor.id)
            assert session is not None
            newer = actor.descriptor(WALL(), sequence=1 << 62)
            where = node_topic(NETWORK, PEER, TOPIC_DESCRIPTOR)
            await writer.client.publish(where, wire.encode(newer), 1)
            await until(lambda: session.descriptor.envelope == newer)
            await until_shown(pool.http_port, "novamesh_broker_nodes 1.0")


async def test_without_its_library_the_small_broker_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "amqtt"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "novamesh_coordinator.embedded_broker", raising=False)
    with pytest.raises(NovaMeshError, match="amqtt") as caught:
        async with small_broker(CoordinatorConfig(embedded_broker=True), NETWORK):
            raise AssertionError("it runs without its library")
    assert caught.value.code is Code.UNSUPPORTED
    assert "novamesh[broker]" in caught.value.hint


async def test_the_table_forgets_who_is_long_gone_without_any_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_wiring, "SWEEP_S", 0.01)
    async with serve_in_memory(tmp_path, config=CoordinatorConfig(NETWORK)) as (pool, _):
        table, node = pool.door.table, NodeActor("node", COORDINATOR.node_id)
        long_ago_ms = WALL() - 600_000
        assert table.take(node.descriptor(long_ago_ms), Source.MQTT, long_ago_ms)
        await until(lambda: len(table) == 0)


async def test_no_small_broker_is_nothing() -> None:
    async with small_broker(CoordinatorConfig(), NETWORK):
        pass
