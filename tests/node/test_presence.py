"""A node's presence at real brokers: Mosquitto, open and as we deploy it, and the small one."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest
import structlog

from novamesh_broker import connection, dialling
from novamesh_broker.entrance import Entrance
from novamesh_node import presence as module
from novamesh_proto import envelope, wire
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import Envelope, NodeDescriptor
from novamesh_proto.names import GONE, HERE
from support.mosquitto import Mosquitto
from support.mqtt import PEER, WALL, a_broker, advertise, node_presence, reading, running, until
from support.parties import NETWORK, NODE, party

V5 = aiomqtt.ProtocolVersion.V5


def breaks(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that a presence opens, to be cut as a dead machine cuts them."""
    lines: list[socket.socket] = []
    opened = dialling.open_line

    def open_line(entrance: Entrance) -> socket.socket:
        line = opened(entrance)
        lines.append(line)
        return line

    monkeypatch.setattr(dialling, "open_line", open_line)
    return lines


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
async def test_a_node_is_present_renews_and_takes_its_descriptor_away(
    kind: str, tmp_path: Path
) -> None:
    advertiser = advertise()
    async with a_broker(kind, tmp_path) as broker, reading(broker) as early:
        presence = node_presence(broker, lambda: advertiser.current(WALL()))
        assert "dialling" in presence.describe()
        async with running(presence) as task:
            await early.until("presence", HERE)
            first = await early.until("descriptor")
            async with reading(broker) as late:
                assert await late.until("descriptor") == first
                assert late.seen == [(early.seen[-1][0], first, True)]
            spoken = "5" if kind == "mosquitto" else "3.1.1"
            assert presence.describe() == f"{broker}, reached (MQTT {spoken})"
            renewed = advertiser.renew(WALL())
            second = await early.until("descriptor")
            assert wire.decode(Envelope, second) == renewed
            opened = envelope.open(
                wire.decode(Envelope, second), NodeDescriptor, network=NETWORK, now_ms=WALL()
            )
            assert opened.issuer == NODE.node_id
            presence.leave()
            assert await early.until("descriptor") == b""
            await asyncio.wait_for(task, 5)
        async with reading(broker) as late:
            await late.client.publish(f"novamesh/v1/{NETWORK}/nodes/{PEER}/presence", b"end")
            await late.until("presence", b"end")
            assert [topic for topic, _, kept in late.seen if kept] == []
        assert GONE not in [payload for _, payload, _ in early.seen]


async def test_a_descriptor_expires_at_the_broker_with_its_life(tmp_path: Path) -> None:
    old = advertise().renew(WALL() - 118_000)
    with Mosquitto(tmp_path) as mosquitto:
        broker = mosquitto.broker()
        async with reading(broker) as early, running(node_presence(broker, lambda: old)):
            await early.until("descriptor")
            async with asyncio.timeout(15):
                while True:
                    await asyncio.sleep(0.5)
                    async with reading(broker) as late:
                        topic = f"novamesh/v1/{NETWORK}/nodes/{PEER}/presence"
                        await late.client.publish(topic, b"end")
                        await late.until("presence", b"end")
                    if len(late.seen) == 1:
                        return


async def test_a_will_comes_late_and_only_of_who_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WILL_DELAY_S", 2)
    advertiser = advertise()
    with Mosquitto(tmp_path) as mosquitto:
        broker = mosquitto.broker()
        presence = node_presence(broker, lambda: advertiser.current(WALL()))
        lines = breaks(monkeypatch)
        async with reading(broker, protocol=V5) as early, running(presence):
            await early.until("descriptor")
            lines[0].shutdown(socket.SHUT_RDWR)
            await early.until("presence", HERE)  # it is back before its will is due
            await asyncio.sleep(2.5)
            topic = f"novamesh/v1/{NETWORK}/nodes/{PEER}/presence"
            await early.client.publish(topic, b"end")
            await early.until("presence", b"end")
            assert GONE not in [payload for _, payload, _ in early.seen]
            monkeypatch.setattr(dialling, "open_line", _refuse)
            lines[1].shutdown(socket.SHUT_RDWR)
            await early.until("presence", GONE)


def _refuse(entrance: Entrance) -> socket.socket:
    raise ConnectionRefusedError("refused")


async def test_a_broker_that_is_down_goes_and_comes_is_told_of_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    advertiser = advertise()
    with Mosquitto(tmp_path) as mosquitto, structlog.testing.capture_logs() as logs:
        broker = mosquitto.broker()
        mosquitto.kill()
        presence = node_presence(broker, lambda: advertiser.current(WALL()))
        async with running(presence) as task:
            for _ in range(2):
                await until(lambda: presence.contact._failures > 2)
                mosquitto.start()
                async with reading(broker) as reader:
                    await reader.until("descriptor")
                mosquitto.kill()
                await until(lambda: not presence.contact.reached)
            assert not task.done()
    said = [line["event"] for line in logs]
    away, back = "broker not reached, trying again", "broker reached"
    assert said == [away, back, away, back, away]
    assert "not reached: " in presence.describe()


async def test_a_broker_that_freezes_is_left_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.5)
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    advertiser = advertise()
    with Mosquitto(tmp_path) as mosquitto:
        presence = node_presence(mosquitto.broker(), lambda: advertiser.current(WALL()))
        async with running(presence):
            await until(lambda: presence.contact.reached)
            mosquitto.signal(signal.SIGSTOP)
            advertiser.renew(WALL())
            await until(lambda: presence.contact._failures > 1)
            mosquitto.signal(signal.SIGCONT)
            async with reading(mosquitto.broker()) as reader:
                await until(lambda: presence.contact.reached)
                newest = wire.encode(advertiser.renew(WALL()))
                await reader.until("descriptor", newest)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    accounts = {PEER: "secret", "coordinator": "ears", format_node_id(party("x").node_id): "other"}
    with Mosquitto(tmp_path_factory.mktemp("deployed"), accounts) as mosquitto:
        yield mosquitto


async def test_as_deployed_a_node_speaks_for_itself_over_tls(deployed: Mosquitto) -> None:
    advertiser, other = advertise(), format_node_id(party("x").node_id)
    async with reading(deployed.broker("coordinator", "coordinator"), protocol=V5) as ears:
        own = node_presence(deployed.broker(PEER), lambda: advertiser.current(WALL()))
        async with running(own):
            await ears.until("descriptor")
            # An account of its own, another's topics: what it publishes reaches nobody.
            thief = node_presence(
                deployed.broker(other, other), lambda: advertiser.current(WALL()), PEER
            )
            async with running(thief):
                await until(lambda: thief.contact.reached)
                advertiser.renew(WALL())
                await ears.until("descriptor")
                await asyncio.sleep(module.LOOK_S + 0.5)
        topics = {topic for topic, _, _ in ears.seen}
        assert topics == {
            f"novamesh/v1/{NETWORK}/nodes/{PEER}/{k}" for k in ("descriptor", "presence")
        }
        descriptors = [topic for topic, _, _ in ears.seen if topic.endswith("descriptor")]
        assert len(descriptors) == 2


@pytest.mark.parametrize("wrong", ["password", "authority"])
async def test_who_is_refused_says_so_once_and_works_on(
    wrong: str, deployed: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    broker, advertiser = deployed.broker(PEER), advertise()
    if wrong == "password":
        (tmp_path / "wrong").write_text("guess")
        broker = replace(broker, password_file=str(tmp_path / "wrong"))
    else:
        broker = replace(broker, ca_file="")
    with structlog.testing.capture_logs() as logs:
        presence = node_presence(broker, lambda: advertiser.current(WALL()))
        async with running(presence):
            await until(lambda: presence.contact._failures > 2)
    assert len(logs) == 1
    words = {"password": "authori", "authority": "certificate"}
    assert words[wrong] in logs[0]["error"].lower()


async def test_a_mute_broker_neither_leaks_nor_keeps_a_node_from_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.2)
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_LEAST_S", 0.01)
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.01)
    advertiser = advertise()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        presence = node_presence(
            Broker("127.0.0.1", mute.getsockname()[1], False), lambda: advertiser.current(WALL())
        )
        async with running(presence) as task:
            await until(lambda: presence.contact._failures > 3)
            names = [each.get_name() for each in asyncio.all_tasks()]
            assert len(names) < 8, names
            presence.leave()
            await asyncio.wait({task}, timeout=2)
            assert task.done()


async def test_leaving_while_tls_is_awaited_takes_no_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = Broker("127.0.0.1", mute.getsockname()[1], True)
        presence = node_presence(broker, lambda: advertise().current(WALL()))
        async with running(presence) as task:
            await until(lambda: any(t.name == "mqtt-dial" for t in threading.enumerate()))
            presence.leave()
            await asyncio.wait({task}, timeout=2)
            assert task.done()
        assert all(t.daemon for t in threading.enumerate() if t.name == "mqtt-dial")


async def test_no_descriptor_and_no_bug_ends_presence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.5)
    advertiser = advertise()
    faults: list[Exception] = [
        NovaMeshError(Code.STORAGE, "the disk is full"), ZeroDivisionError("a bug"),
    ]  # fmt: skip

    def current() -> Envelope:
        if faults:
            raise faults.pop(0)
        return advertiser.current(WALL())

    with Mosquitto(tmp_path) as mosquitto:
        async with reading(mosquitto.broker()) as reader:
            presence = node_presence(mosquitto.broker(), current)
            with structlog.testing.capture_logs() as logs:
                async with running(presence):
                    await reader.until("descriptor")
    assert faults == []
    assert "presence failed" in [line["event"] for line in logs]
