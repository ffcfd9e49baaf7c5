"""The table of who is here, filled from real brokers: what is taken, refused, and asked about."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_broker import dialling
from novamesh_broker.entrance import open_entrance
from novamesh_broker.message import Message
from novamesh_coordinator import presence as module
from novamesh_coordinator.presence import Doors, Presence
from novamesh_node import presence as node_side
from novamesh_proto import envelope, wire
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import Envelope, NodeId
from novamesh_proto.names import GONE, HERE, node_topic
from novamesh_proto.node_table import NodeTable
from support.clock import START_MS
from support.mosquitto import DEPLOYED, Mosquitto
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
from support.parties import NETWORK, NODE, descriptor, head, party


@dataclass
class Hall:
    """A coordinator, as far as presence sees one; the pool knows everybody but `strangers`."""

    now_ms: int = START_MS
    now_s: float = 100.0
    strangers: set[NodeId] = field(default_factory=set)
    renewed: list[NodeId] = field(default_factory=list)
    probed: list[NodeId] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    table: NodeTable = field(default_factory=lambda: NodeTable(NETWORK))

    def presence(self, broker: Broker | None = None, *, live: bool = False) -> Presence:
        wall = WALL if live else lambda: self.now_ms
        monotonic = asyncio.get_running_loop().time if live else lambda: self.now_s
        doors = Doors(self._admit, self._renew, self._probe, self._refuse, wall, monotonic)
        entrance = open_entrance(broker or Broker("127.0.0.1", 1, False))
        return Presence(entrance, NETWORK, self.table, doors, random.Random(0))

    def _admit(self, node: NodeId) -> None:
        if node in self.strangers:
            raise NovaMeshError(Code.NOT_A_MEMBER, "who are you?")

    def _refuse(self, code: str) -> None:
        self.refused[code] += 1

    async def _renew(self, node: NodeId) -> None:
        self.renewed.append(node)

    async def _probe(self, node: NodeId) -> None:
        self.probed.append(node)


def sealed(key: PrivateKey = NODE, sequence: int = 1, now_ms: int = START_MS) -> Envelope:
    """A node's descriptor of a sequence."""
    header = head(key, label=f"{sequence}", now_ms=now_ms, life_ms=120_000)
    return envelope.seal(descriptor(key, header=header, sequence=sequence), key)


def topic(kind: str = "descriptor", key: PrivateKey = NODE, network: str = NETWORK) -> str:
    return node_topic(network, format_node_id(key.node_id), kind)


OTHER = party("other")
CURIOUS = format_node_id(party("curious").node_id)
GOOD = wire.encode(sealed())


def forged() -> bytes:
    good = sealed()
    bad = replace(good.signatures[0], sig=bytes(64))
    return wire.encode(replace(good, signatures=(bad,)))


@pytest.mark.parametrize(
    ("where", "payload", "code"),
    [
        (topic(), forged(), Code.BAD_SIGNATURE),
        (topic(), b"\xff" * 100, Code.BAD_REQUEST),
        (topic(), bytes(4096), Code.TOO_LARGE),
        ("elsewhere", bytes(4096), Code.TOO_LARGE),
        (topic(key=OTHER), GOOD, Code.BAD_KEY),
        (topic(), wire.encode(sealed(now_ms=START_MS - 300_000)), Code.NOT_FRESH),
        (topic(key=party("stranger")), wire.encode(sealed(party("stranger"))), Code.NOT_A_MEMBER),
        (topic(network="another"), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, "12D3KooW", "descriptor"), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, "1" * 52, "descriptor"), GOOD, Code.BAD_KEY),
        ("elsewhere", GOOD, Code.BAD_REQUEST),
        (topic("presence"), b"what", Code.BAD_REQUEST),
        (topic("presence"), b"", Code.BAD_REQUEST),
    ],
)
async def test_what_is_refused_is_counted_and_changes_nothing(
    where: str, payload: bytes, code: Code
) -> None:
    hall = Hall(strangers={party("stranger").node_id})
    await hall.presence().take(Message(where, payload, True))
    assert hall.refused == {code.value: 1}
    assert len(hall.table) == 0
    assert hall.probed == []


@settings(max_examples=50)
@given(st.text(max_size=80), st.sampled_from(["descriptor", "presence", "x"]), st.binary())
def test_no_bytes_of_a_broker_do_more_than_be_refused(node: str, kind: str, payload: bytes) -> None:
    async def take() -> Hall:
        hall = Hall()
        presence = hall.presence()
        for where in (node, node_topic(NETWORK, node, kind), topic(kind)):
            await presence.take(Message(where, payload, True))
        return hall

    hall = asyncio.run(take())
    assert len(hall.table) == 0
    assert set(hall.probed) <= {NODE.node_id}


async def test_the_newest_counts_and_what_was_before_is_stale() -> None:
    hall = Hall()
    presence = hall.presence()
    again = wire.encode(sealed(sequence=3))
    for payload in (wire.encode(sealed(sequence=2)), again, again):
        await presence.take(Message(topic(), payload, True))
    assert hall.refused == {}
    assert hall.renewed == [NODE.node_id] * 2, "what says nothing new is no news"
    await presence.take(Message(topic(), wire.encode(sealed(sequence=2)), True))
    assert hall.refused == {Code.STALE.value: 1}
    known = hall.table.get(NODE.node_id, START_MS)
    assert known is not None
    assert known.message.sequence == 3
    assert hall.table.get(NODE.node_id, START_MS + 120_000) is None


async def test_births_say_nothing_and_wills_ask_now_and_then() -> None:
    hall = Hall()
    presence = hall.presence()
    await presence.take(Message(topic(), GOOD, True))
    await presence.take(Message(topic("presence"), HERE, False))
    await presence.take(
        Message(topic("presence"), GONE, True)
    )  # nobody retains a will but to annoy
    assert hall.refused == {Code.BAD_REQUEST.value: 1}
    assert hall.probed == []
    for _ in range(3):
        await presence.take(Message(topic("presence"), GONE, False))
        await presence.take(Message(topic(), b"", False))
    assert hall.probed == [NODE.node_id]
    hall.now_s += module.PROBE_EVERY_S
    await presence.take(Message(topic("presence"), GONE, False))
    assert hall.probed == [NODE.node_id] * 2
    assert hall.table.get(NODE.node_id, START_MS) is not None
    assert hall.refused == {Code.BAD_REQUEST.value: 1}


async def test_wills_of_many_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_NODES_MAX", 2)
    hall = Hall()
    presence = hall.presence()
    for name in ("a", "b", "c"):
        await presence.take(Message(topic("presence", party(name)), GONE, False))
    assert len(hall.probed) == 3
    assert len(presence._probed) == 2


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_a_node_comes_dies_and_its_will_changes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_side, "WILL_DELAY_S", 1)
    lines: list[socket.socket] = []
    opened = dialling.open_line
    hall, advertiser = Hall(), advertise()
    async with a_broker(kind, tmp_path) as broker:
        ears = hall.presence(broker, live=True)
        node = node_presence(broker, lambda: advertiser.current(WALL()))
        async with running(ears):
            await until(lambda: ears.contact.reached)
            # From now on only the node dials.
            monkeypatch.setattr(
                dialling, "open_line", lambda e: lines.append(opened(e)) or lines[-1]
            )
            async with running(node) as task:
                await until(lambda: len(hall.table))
                entry = next(iter(hall.table.fresh(WALL())))
                assert entry.descriptor.envelope == advertiser.current(WALL())
                task.cancel()
                lines[-1].shutdown(socket.SHUT_RDWR)
                await until(lambda: hall.probed)
        assert hall.probed == [NODE.node_id]
        assert next(iter(hall.table.fresh(WALL()))) is entry
        assert hall.refused == {}


async def test_hostile_retained_messages_meet_a_coordinator_that_comes_later(
    tmp_path: Path,
) -> None:
    hall = Hall(strangers={party("stranger").node_id})
    now_ms = WALL()
    fine = sealed(OTHER, 7, now_ms)
    retained = {
        topic(key=OTHER): wire.encode(fine),
        topic(): GOOD,  # of last year
        topic(key=party("liar")): wire.encode(fine),
        topic(key=party("large")): bytes(3000),
        topic(key=party("stranger")): wire.encode(sealed(party("stranger"), 1, now_ms)),
        topic(key=party("noise")): b"\xff\xfe",
        node_topic(NETWORK, "nobody", "descriptor"): b"x",
        topic("presence", party("gone")): GONE,
    }
    with Mosquitto(tmp_path) as mosquitto:
        async with reading(mosquitto.broker()) as writer:
            for where, payload in retained.items():
                await writer.client.publish(where, payload, qos=1, retain=True)
            # Beyond what an MQTT 5 coordinator lets a broker send it.
            await writer.client.publish(topic(key=party("huge")), bytes(100_000), 1, retain=True)
            async with running(hall.presence(mosquitto.broker(), live=True)):
                await until(lambda: sum(hall.refused.values()) == 7)
                replay = wire.encode(sealed(OTHER, 6, now_ms))
                await writer.client.publish(topic(key=OTHER), replay, qos=1)
                await until(lambda: hall.refused[Code.STALE.value])
    assert [entry.node for entry in hall.table.fresh(WALL())] == [OTHER.node_id]
    assert hall.refused == {
        Code.NOT_FRESH.value: 1, Code.BAD_KEY.value: 1, Code.TOO_LARGE.value: 1,
        Code.NOT_A_MEMBER.value: 1, Code.BAD_REQUEST.value: 3, Code.STALE.value: 1,
    }  # fmt: skip
    assert hall.probed == []


async def test_all_that_a_broker_retains_comes_at_once(tmp_path: Path) -> None:
    keys, now_ms = [party(f"crowd {number}") for number in range(1_500)], WALL()
    bound = (DEPLOYED / "mosquitto.conf").read_text()
    extra = "".join(f"{line}\n" for line in bound.splitlines() if line.startswith("max_queued"))
    hall = Hall()
    with Mosquitto(tmp_path, extra=extra) as mosquitto:
        crowd = {topic(key=key): wire.encode(sealed(key, 1, now_ms)) for key in keys}
        await retain(mosquitto.broker(), crowd)
        async with running(hall.presence(mosquitto.broker(), live=True)):
            await until(lambda: len(hall.table) == len(keys))
    assert hall.refused == {}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    accounts = {PEER: "secret", "coordinator": "ears", CURIOUS: "other"}
    with Mosquitto(tmp_path_factory.mktemp("deployed"), accounts) as mosquitto:
        yield mosquitto


async def test_as_deployed_the_coordinator_reads_and_nobody_else(deployed: Mosquitto) -> None:
    hall, deaf, advertiser = Hall(), Hall(), advertise()
    ears = hall.presence(deployed.broker("coordinator"), live=True)
    node = node_presence(deployed.broker(PEER), lambda: advertiser.current(WALL()))
    curious = deaf.presence(deployed.broker(CURIOUS, CURIOUS), live=True)
    async with running(ears), running(curious):
        await until(lambda: ears.contact.reached and curious.contact.reached)
        async with running(node):
            await until(lambda: len(hall.table) == 1)
            node.leave()
            await until(lambda: hall.probed)
    assert len(deaf.table) == 0
    assert (deaf.probed, deaf.refused) == ([], {})


async def test_who_may_subscribe_to_nothing_is_told_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with a_broker("embedded", tmp_path) as broker:
        elsewhere = Hall().presence(broker, live=True)
        monkeypatch.setattr(elsewhere, "_network", "another pool")
        async with running(elsewhere):
            await until(lambda: elsewhere.contact.trouble)
    assert "access list" in elsewhere.contact.trouble


async def test_a_broker_that_is_down_goes_and_comes_is_told_of_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    hall, advertiser = Hall(), advertise()
    with Mosquitto(tmp_path) as mosquitto, structlog.testing.capture_logs() as logs:
        mosquitto.kill()
        presence = hall.presence(mosquitto.broker(), live=True)
        async with running(presence) as task:
            for sequence in (1, 2):
                await until(lambda: presence.contact._failures > 2)
                mosquitto.start()
                sent = advertiser.renew(WALL())
                async with reading(mosquitto.broker()) as writer:
                    await writer.client.publish(topic(), wire.encode(sent), 1, retain=True)
                    await until(
                        lambda s=sent: [e.descriptor.envelope for e in hall.table.fresh(0)] == [s]
                    )
                mosquitto.kill()
                await until(lambda: not presence.contact.reached)
                assert sequence
            assert not task.done()
    away, back = "broker not reached, trying again", "broker reached"
    assert [line["event"] for line in logs] == [away, back, away, back, away]


async def test_a_bug_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    hall, advertiser = Hall(), advertise()
    with Mosquitto(tmp_path) as mosquitto, structlog.testing.capture_logs() as logs:
        presence = hall.presence(mosquitto.broker(), live=True)
        faults = [ZeroDivisionError("a bug")]
        took = presence.take

        async def take(message: Message) -> None:
            if faults:
                raise faults.pop()
            await took(message)

        monkeypatch.setattr(presence, "take", take)
        node = node_presence(mosquitto.broker(), lambda: advertiser.current(WALL()))
        async with running(presence), running(node):
            await until(lambda: len(hall.table))
    assert "presence failed" in [line["event"] for line in logs]
