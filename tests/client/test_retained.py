"""Nodes found at a broker, without any coordinator: a real Mosquitto, open and as we deploy it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novamesh import discovery
from novamesh.clock import Clock
from novamesh.discovery import Finder
from novamesh.known_nodes import KnownNodes
from novamesh.retained import Retained
from novamesh_broker.entrance import open_entrance
from novamesh_broker.message import Message
from novamesh_proto import wire
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import Envelope, NodeId
from novamesh_proto.names import GONE, HERE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic
from novamesh_proto.node_table import Source
from support import found_nodes
from support.mosquitto import Mosquitto
from support.mqtt import (
    PEER,
    WALL,
    a_broker,
    advertise,
    node_presence,
    reading,
    retain,
    running,
    until,
)
from support.parties import NETWORK, NODE, party

ONE, LIAR = party("one"), party("liar")


def advert(key: PrivateKey, *, now_ms: int, network: str = NETWORK, sequence: int = 1) -> Envelope:
    return found_nodes.advert(key, now_ms=now_ms, network=network, sequence=sequence)


def topic(key: PrivateKey, kind: str = TOPIC_DESCRIPTOR) -> str:
    return node_topic(NETWORK, format_node_id(key.node_id), kind)


@contextlib.asynccontextmanager
async def finding(folder: Path, broker: Broker) -> AsyncIterator[tuple[Finder, Retained]]:
    """A finder whose only way is that broker."""
    way = Retained(open_entrance(broker), NETWORK)
    known = KnownNodes(folder / "nodes.json")
    finder = Finder(NETWORK, Clock.system(), (way,), known, lambda node, said: None)
    async with running(finder):
        yield finder, way


def here(finder: Finder) -> set[NodeId]:
    return {entry.node for entry in finder.table.fresh(WALL())}


async def found(finder: Finder, *keys: PrivateKey) -> bool:
    return await finder.wait(lambda: here(finder) >= {key.node_id for key in keys}, 15)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_a_node_is_found_renewed_and_not_forgotten_when_it_leaves(
    kind: str, tmp_path: Path
) -> None:
    """That its descriptor was taken away may be a lie; that it expires is its own word."""
    advertiser = advertise()
    async with a_broker(kind, tmp_path) as broker, finding(tmp_path, broker) as (finder, way):
        node = node_presence(broker, lambda: advertiser.current(WALL()))
        async with running(node):
            assert await found(finder, NODE)
            (entry,) = finder.table.fresh(WALL())
            assert entry.sources == {Source.MQTT}
            newest = advertiser.renew(WALL())
            await until(lambda: next(finder.table.fresh(WALL())).descriptor.envelope == newest)
            node.leave()
            await until(lambda: not node._task or node._task.done())
        assert here(finder) == {NODE.node_id}
        assert way.refused == {}


async def test_what_is_retained_for_a_client_that_comes_later_is_looked_at(tmp_path: Path) -> None:
    """Oversized and foreign before it is a descriptor at all, forged and old by the table."""
    now_ms = WALL()
    good = wire.encode(advert(ONE, now_ms=now_ms))
    replayed = wire.encode(advert(NODE, now_ms=now_ms - 600_000))
    forged = bytearray(wire.encode(advert(party("forger"), now_ms=now_ms)))
    forged[-1] ^= 1
    elsewhere = wire.encode(advert(party("elsewhere"), now_ms=now_ms, network="elsewhere"))
    with Mosquitto(tmp_path) as mosquitto:
        await retain(
            mosquitto.broker(),
            {
                topic(ONE): good,
                topic(LIAR): good,
                topic(NODE): replayed,
                topic(party("forger")): bytes(forged),
                topic(party("elsewhere")): elsewhere,
                topic(party("large")): bytes(3000),
                topic(party("huge")): bytes(100_000),  # never sent to who speaks MQTT 5
                topic(party("noise")): b"\xff\xfe",
                node_topic(NETWORK, "nobody", TOPIC_DESCRIPTOR): b"x",
            },
        )
        async with finding(tmp_path, mosquitto.broker()) as (finder, way):
            assert await found(finder, ONE)
            await until(lambda: sum((way.refused + finder.table.refused).values()) == 7)
    assert here(finder) == {ONE.node_id}
    assert way.refused == {Code.BAD_KEY: 1, Code.TOO_LARGE: 1, Code.BAD_REQUEST: 2}
    assert finder.table.refused == {
        Code.NOT_FRESH: 1, Code.BAD_SIGNATURE: 1, Code.WRONG_NETWORK: 1,
    }  # fmt: skip


def test_only_descriptors_are_read_and_one_that_was_taken_away_is_no_fault() -> None:
    way = Retained(open_entrance(Broker("127.0.0.1", 1, False)), NETWORK)
    for kind, payload in ((TOPIC_PRESENCE, GONE), (TOPIC_PRESENCE, HERE), (TOPIC_DESCRIPTOR, b"")):
        assert way._read(Message(topic(ONE, kind), payload, False)) is None
    assert way.refused == {Code.BAD_REQUEST: 2}


async def test_a_broker_that_is_away_is_a_way_that_is_closed_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "PAUSES_S", (0.1,))
    with Mosquitto(tmp_path) as mosquitto:
        mosquitto.kill()
        way = Retained(open_entrance(mosquitto.broker()), NETWORK)
        with pytest.raises(NovaMeshError) as caught:
            await anext(way.descriptors())
        assert caught.value.code is Code.UNAVAILABLE
        async with finding(tmp_path, mosquitto.broker()) as (finder, _):
            for sequence in (1, 2):
                mosquitto.start()
                said = advert(ONE, now_ms=WALL(), sequence=sequence)
                await retain(mosquitto.broker(), {topic(ONE): wire.encode(said)})
                await until(
                    lambda said=said: any(
                        entry.descriptor.envelope == said for entry in finder.table.fresh(WALL())
                    )
                )
                mosquitto.kill()
            assert here(finder) == {ONE.node_id}, "who was found stays until he expires"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    accounts = {PEER: "secret", "coordinator": "ears", "client": "eyes"}
    with Mosquitto(tmp_path_factory.mktemp("deployed"), accounts) as mosquitto:
        yield mosquitto


async def test_as_deployed_a_client_reads_descriptors_and_nothing_else(
    deployed: Mosquitto, tmp_path: Path
) -> None:
    advertiser, broker = advertise(), deployed.broker("client")
    node = node_presence(deployed.broker(PEER), lambda: advertiser.current(WALL()))
    async with finding(tmp_path, broker) as (finder, way), running(node):
        assert await found(finder, NODE)
        # A second one with the same account throws the first out, which waits before it is back.
        async with finding(tmp_path, broker) as (other, _):
            assert await found(other, NODE)
        assert way.refused == {}
    async with reading(deployed.broker("coordinator", "coordinator")) as ears:
        async with reading(deployed.broker("client", "client")) as eyes:
            for kind in (TOPIC_DESCRIPTOR, TOPIC_PRESENCE):
                await eyes.client.publish(topic(NODE, kind), b"by a client", 1)
            async with running(
                node_presence(deployed.broker(PEER), lambda: advertiser.renew(WALL()))
            ):
                await ears.until("presence", HERE)
                await eyes.until("descriptor", await ears.until("descriptor"))
        assert b"by a client" not in [payload for _, payload, _ in ears.seen]
        assert all(where.endswith(TOPIC_DESCRIPTOR) for where, _, _ in eyes.seen)


async def test_nobody_is_read_for_once_the_search_has_ended(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with Mosquitto(tmp_path) as mosquitto:
        await retain(mosquitto.broker(), {topic(ONE): wire.encode(advert(ONE, now_ms=WALL()))})
        async with finding(tmp_path, mosquitto.broker()) as (finder, _):
            assert await found(finder, ONE)
        await until(lambda: asyncio.all_tasks() == before)
