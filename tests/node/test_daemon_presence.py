"""A whole node with a broker: found there, stopped in order, and at work where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from novamesh_engine import roofline
from novamesh_node.screens import describe_status
from novamesh_proto import wire
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope
from support.fake_coordinator import coordinator
from support.mosquitto import Mosquitto
from support.mqtt import reading
from support.ports import free_port
from support.running_node import configure, job, node
from support.tiny_profile import save_tiny_profile


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_profile(folder)
    return folder


async def test_a_node_shows_the_broker_what_it_shows_the_pool(tmp_path: Path, model: Path) -> None:
    with Mosquitto(tmp_path / "mosquitto") as mosquitto:
        async with coordinator() as pool, reading(mosquitto.broker()) as reader:
            config = replace(configure(tmp_path, pool, model), broker=mosquitto.broker())
            async with node(config) as made:
                await made.ready()
                at = await pool.next()
                shown = wire.decode(Envelope, await reader.until("descriptor"))
                assert shown == at.descriptor.envelope
                status = await made.ask("status")
                assert status["broker"] == f"{mosquitto.broker()}, reached (MQTT 5)"
                assert status["broker"] in describe_status(status)
                await made.ask("stop")
                assert await reader.until("descriptor") == b""
                await made.over()


async def test_a_node_works_and_stops_where_no_broker_answers(tmp_path: Path, model: Path) -> None:
    nobody = Broker("127.0.0.1", free_port(), False)
    async with coordinator() as pool:
        config = replace(configure(tmp_path, pool, model), broker=nobody)
        async with node(config) as made:
            await made.ready()
            at = await pool.next()
            work = job(at)
            await at.say(assignment=work.offer)
            assert work.read(await at.until("attestation"))
            status = await made.ask("status")
            assert status["broker"].startswith(f"{nobody}, not reached: ")
            await made.ask("stop")
            await made.over()


async def test_a_brokers_file_that_is_missing_is_told_before_anything_is_loaded(
    tmp_path: Path, model: Path
) -> None:
    async with coordinator() as pool:
        lost = Broker("127.0.0.1", 1, True, password_file=str(tmp_path / "gone"))
        config = replace(configure(tmp_path, pool, model), broker=lost)
        with pytest.raises(NovaMeshError) as caught:
            async with node(config) as made:
                await made.task
        assert caught.value.code is Code.BAD_CONFIG
        assert made.heard.lines == []
