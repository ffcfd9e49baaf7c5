"""Anybody may knock at a node, and nobody holds its calls for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from novamesh_node import doorway
from novamesh_node.admission import Policy
from novamesh_node.direct_service import DirectService
from novamesh_node.doorway import Doorway
from novamesh_proto import guests, wire
from novamesh_proto.errors import Code
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc as rpc
from support.own_front import DONATING, Counter, open_front

SERVICE = pb.DESCRIPTOR.services_by_name["PoolService"].full_name


@dataclass
class House:
    """A node at its door, and a line to it that says whatever it likes."""

    counter: Counter
    door: Doorway
    line: grpc.aio.Channel

    def call(self, method: str, seconds: float | None = 10) -> Any:
        """A call that is begun, and whose message may come."""
        begun = self.line.stream_unary(
            f"/{SERVICE}/{method}",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        return begun(timeout=seconds)

    async def ask(self, method: str, message: bytes = b"", seconds: float | None = 10) -> bytes:
        """A whole call, its message sent at once: whoever is refused first could write no more."""
        whole = self.line.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=bytes, response_deserializer=bytes
        )
        return bytes(await whole(message, timeout=seconds))

    async def held(self, calls: int) -> None:
        """Until so many are under way."""
        async with asyncio.timeout(10):
            while True:
                if len(self.door) == calls:
                    return
                await asyncio.sleep(0.01)

    async def refusal(self, call: Any) -> Code:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call, 10)
        for name, value in caught.value.trailing_metadata() or ():
            if name == ERROR_METADATA:
                return Code(wire.decode(ErrorDetail, value).code)
        raise AssertionError(f"gRPC's own refusal: {caught.value.details()}")


@contextlib.asynccontextmanager
async def house(folder: Path, policy: Policy = DONATING) -> AsyncIterator[House]:
    async with open_front(folder, policy) as counter:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        door = Doorway(server, counter.front.check_donating)
        rpc.add_PoolServiceServicer_to_server(DirectService(counter.front), door)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as line:
                yield House(counter, door, line)
        finally:
            await server.stop(None)


async def test_calls_that_never_say_anything_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "HEAR_S", 0.3)
    monkeypatch.setattr(doorway, "EACH_MAX", 8)
    async with house(tmp_path) as at:
        begun = [at.call("Hello") for _ in range(8)]
        await at.held(8)
        assert await at.refusal(at.ask("Hello")) is Code.BUSY
        assert {await at.refusal(call) for call in begun} == {Code.EXPIRED}
        assert len(at.door) == 0
        assert await at.ask("Hello")


async def test_when_all_calls_are_taken_a_new_place_still_gets_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorway, "CALLS_MAX", 0)
    monkeypatch.setattr(doorway, "CROWD_MAX", 9)
    monkeypatch.setattr(guests, "FEW", 1)
    async with house(tmp_path) as at:
        assert await at.ask("Hello")
        begun = at.call("Hello")
        await at.held(1)
        assert await at.refusal(at.ask("Hello")) is Code.BUSY
        begun.cancel()


@pytest.mark.parametrize("seconds", [None, doorway.CALL_S_MAX + 60])
async def test_a_call_has_a_deadline(tmp_path: Path, seconds: float | None) -> None:
    async with house(tmp_path) as at:
        assert await at.refusal(at.ask("Hello", seconds=seconds)) is Code.BAD_REQUEST
        assert await at.refusal(at.ask("Watch", seconds=None)) is Code.BAD_REQUEST


async def test_jobs_of_a_place_have_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "JOB_RATE", doorway.Rate(0.001, 2))
    async with house(tmp_path) as at:
        for _ in range(2):
            assert await at.refusal(at.ask("Submit")) is Code.BAD_REQUEST
        assert await at.refusal(at.ask("Submit")) is Code.BUSY
        assert await at.ask("Hello")


async def test_many_peers_at_one_address_get_no_more_than_their_crowd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names cost nothing; those who come from elsewhere notice nothing of them."""
    monkeypatch.setattr(doorway, "CROWD_RATE", doorway.Rate(0.001, 3))
    monkeypatch.setattr(doorway, "CROWD_MAX", 3)
    places = itertools.count()
    monkeypatch.setattr(doorway, "place_of", lambda _: f"tunnel origin {next(places)}")
    async with house(tmp_path) as at:
        for _ in range(3):
            assert await at.refusal(at.ask("Submit")) is Code.BAD_REQUEST
        assert await at.refusal(at.ask("Submit")) is Code.BUSY
        begun = [at.call("Hello") for _ in range(3)]
        await at.held(3)
        assert await at.refusal(at.ask("Hello")) is Code.BUSY
        monkeypatch.setattr(doorway, "place_of", lambda _: "tunnel elsewhere 1")
        assert await at.refusal(at.ask("Submit")) is Code.BAD_REQUEST
        assert await at.ask("Hello")
        for call in begun:
            call.cancel()


async def test_who_donates_nothing_reads_no_job(tmp_path: Path) -> None:
    async with house(tmp_path, Policy()) as at:
        assert await at.refusal(at.call("Submit")) is Code.POLICY


async def test_what_is_no_message_is_refused_in_our_words(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        assert await at.refusal(at.ask("Submit", b"\xff\xff\xff")) is Code.BAD_REQUEST
        empty = at.call("Hello")
        await empty.done_writing()
        assert await at.refusal(empty) is Code.BAD_REQUEST
