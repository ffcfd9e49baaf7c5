"""What an owner may ask of a running node, and that nothing else is obeyed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from novamesh_node import lifecycle
from novamesh_node.clock import Clock
from novamesh_node.keeper import Keeper
from novamesh_node.orders import PAUSE_S_MAX, Nameplate, Orders
from novamesh_node.session import Line, Session
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import IdleReason, IdleReport
from support.clock import START_MS
from support.offers import SIGNER, advertiser

PLATE = Nameplate("12D3KooWnode", "0.1.0", "testnet", "127.0.0.1:7700")
INVENTORY = {"hardware": "a machine", "models": [], "devices": [{"id": "cpu"}]}


class _Session(Session):
    """A session that is never dialled and knows one report."""

    async def ask_idle(self) -> IdleReport:
        return IdleReport(3, 1, (IdleReason("slower than others", 2),))


class Node:
    """Orders and what they reach."""

    def __init__(self, loaded: bool = True) -> None:
        clock = Clock(lambda: START_MS)
        self.keeper = Keeper(2, clock, lifecycle.State(ready=True))
        self.pauses: list[tuple[bool, int]] = []
        unused: Any = None
        line = Line(unused, unused, clock, random.Random(0))
        session = _Session(line, SIGNER, advertiser(), unused, self.keeper.load, unused)
        self.orders = Orders(
            self.keeper, PLATE, lambda on, until: self.pauses.append((on, until)), clock
        )
        if loaded:
            self.orders.complete(session, lambda: dict(INVENTORY))

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await self.orders.handle(command, arguments)

    async def refused(self, command: str, **arguments: Any) -> Code:
        with pytest.raises(NovaMeshError) as caught:
            await self.ask(command, **arguments)
        return caught.value.code


async def test_status_tells_where_the_node_is() -> None:
    status = await Node().ask("status")
    assert (status["phase"], status["free_slots"], status["attached"]) == ("idle", 2, False)
    assert (status["node"], status["pool"], status["trouble"]) == ("12D3KooWnode", "testnet", "")
    assert status.items() >= INVENTORY.items()


@pytest.mark.parametrize("loaded", [False, True])
async def test_clock_is_compared_only_where_the_coordinator_told_its_own(loaded: bool) -> None:
    assert (await Node(loaded).ask("status"))["clock_offset_ms"] is None


async def test_slots_are_those_that_are_left() -> None:
    node = Node()
    node.keeper.lend(1)
    status = await node.ask("status")
    assert (status["slots"], status["free_slots"]) == (1, 1)


async def test_while_models_are_loaded_it_can_be_asked_and_stopped() -> None:
    node = Node(loaded=False)
    status = await node.ask("status")
    assert (status["attached"], status["models"], status["hardware"]) == (False, [], "")
    assert await node.refused("why") is Code.UNAVAILABLE
    assert (await node.ask("stop"))["phase"] == "stopped"


async def test_pause_and_resume_are_remembered() -> None:
    node = Node()
    paused = await node.ask("pause", for_s=7200)
    assert (paused["phase"], paused["resumes_at_ms"]) == ("paused", START_MS + 7_200_000)
    assert (await node.ask("pause"))["resumes_at_ms"] == 0
    assert (await node.ask("resume"))["phase"] == "idle"
    assert node.pauses == [(True, START_MS + 7_200_000), (True, 0), (False, 0)]


async def test_finish_and_stop() -> None:
    node = Node()
    node.keeper.took()
    assert (await node.ask("finish"))["phase"] == "draining"
    assert await node.refused("pause") is Code.CONFLICT
    assert (await node.ask("stop"))["phase"] == "draining"
    assert (await node.ask("stop"))["phase"] == "stopped"
    assert node.keeper.halted.is_set()


async def test_why() -> None:
    assert await Node().ask("why") == {
        "accepting": True,
        "reason": "",
        "considered": 3,
        "chosen": 1,
        "reasons": [{"reason": "slower than others", "count": 2}],
    }


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("explode", {}),
        ("status", {"now": True}),
        ("pause", {"until": 1}),
        ("pause", {"for_s": -1}),
        ("pause", {"for_s": True}),
        ("pause", {"for_s": PAUSE_S_MAX + 1}),
        ("pause", {"now": "yes"}),
    ],
)
async def test_everything_else_is_refused(command: str, arguments: dict[str, Any]) -> None:
    node = Node()
    assert await node.refused(command, **arguments) is Code.BAD_REQUEST
    assert node.keeper.state == lifecycle.State(ready=True)
