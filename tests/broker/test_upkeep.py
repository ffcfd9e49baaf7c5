"""A connection that is made again: told of once each way, and ended by who keeps it only."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import structlog

from novamesh_broker.connection import Connection, Visitor
from novamesh_broker.entrance import open_entrance
from novamesh_broker.upkeep import Upkeep
from novamesh_proto.broker import Broker
from support.mosquitto import Mosquitto
from support.mqtt import until

VISITOR = Visitor("visitor", "visitor")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_LEAST_S", 0.05)
    monkeypatch.setattr("novamesh_proto.broker.PAUSE_MOST_S", 0.1)


def upkeep(broker: Broker) -> Upkeep:
    return Upkeep(open_entrance(broker), asyncio.get_running_loop().time, random.Random(0))


async def test_it_is_made_again_and_told_of_once_each_way(tmp_path: Path) -> None:
    visits = 0

    async def stay(broker: Connection) -> None:
        nonlocal visits
        visits += 1
        async for _ in broker.messages():
            raise AssertionError("nothing was asked for")

    with Mosquitto(tmp_path) as mosquitto, structlog.testing.capture_logs() as logs:
        kept = upkeep(mosquitto.broker())
        task = asyncio.create_task(kept.run(VISITOR, stay))
        await until(lambda: kept.contact.reached)
        assert kept.describe() == f"{mosquitto.broker()}, reached (MQTT 5)"
        mosquitto.kill()
        await until(lambda: kept.contact._failures > 2)
        mosquitto.start()
        await until(lambda: kept.contact.reached)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert visits == 2
    away, back = "broker not reached, trying again", "broker reached"
    assert [line["event"] for line in logs] == [back, away, back]


async def test_a_bug_is_one_more_broken_connection_and_who_returns_is_done(tmp_path: Path) -> None:
    faults = [ZeroDivisionError("a bug")]

    async def stay(broker: Connection) -> None:
        if faults:
            raise faults.pop()

    with Mosquitto(tmp_path) as mosquitto, structlog.testing.capture_logs() as logs:
        kept = upkeep(mosquitto.broker())
        await asyncio.wait_for(kept.run(VISITOR, stay), 15)
    assert [line["event"] for line in logs] == [
        "broker reached", "presence failed", "broker not reached, trying again", "broker reached",
    ]  # fmt: skip
    assert logs[1]["kind"] == logs[2]["error"] == "ZeroDivisionError"
