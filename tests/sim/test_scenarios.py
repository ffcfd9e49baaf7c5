"""One thing that goes wrong at a time, at a moment that is chosen: in the middle of an answer.

A node, perhaps a second one, and a client that reaches them; nobody lies. Whatever breaks, the
client has its whole answer within its deadline, and no promise is broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from novamesh.desk import Desk
from novamesh.direct_lines import AWAY_S
from support.sim.client import Wish
from support.sim.direct import DirectClient
from support.sim.direct_faults import DirectFaults
from support.sim.invariants import broken
from support.sim.node import Node, Pace
from support.sim.swarm import Swarm

DEADLINE_S = 90.0
TOKENS = 30
PACE = Pace(prefill_s=0.3, token_s=0.2)

LINKS = ("node → pool", "client → node", "client → pool")

Happening = Callable[["Scene"], None]


class Patient(DirectClient):
    """It asks again when nodes that were out of reach are tried again."""

    async def before(self, desk: Desk) -> None:
        """Wait, but for the first time."""
        if self.wishes[-1].over:
            await asyncio.sleep(AWAY_S)


class Scene(Swarm):
    """A world in which one thing happens, once the answer is under way."""

    def __init__(self, folder: Path, happen: Happening, nodes: int) -> None:
        super().__init__(0, folder, direct=True)
        self._happen = happen
        self.nodes[:] = [Node(self.world, number, 2, PACE) for number in range(nodes)]
        addresses = tuple((node.key.node_id, (node.address,)) for node in self.nodes)
        self.client = Patient(self.world, 0, addresses, alone=True)
        self.clients[:] = [self.client]
        for node in self.nodes:
            node.listens, node.honest = True, True
        self.first, self.second = Wish(TOKENS, DEADLINE_S), Wish(TOKENS, DEADLINE_S, tries=3)
        self.client.wishes = [self.first, self.second]
        self.calm = False

    @property
    def links(self) -> DirectFaults:
        """What can be broken."""
        assert isinstance(self.faults, DirectFaults)
        return self.faults

    @property
    def busy(self) -> Node:
        """The node that answers."""
        found = self.links.answering()
        assert found is not None
        return found[1]

    async def strike(self, began_s: float) -> None:
        """The one thing."""
        del began_s
        while len(self.first.pieces) < 3:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.05)
        self.quiet = self.nodes_spared = False
        self._happen(self)


def play(folder: Path, happen: Happening, nodes: int = 2) -> Scene:
    """Live through it; both answers are whole, and no promise is broken."""
    scene = Scene(folder, happen, nodes)
    scene.run()
    assert not broken(scene), scene.trace
    for wish in (scene.first, scene.second):
        assert wish.completion is not None, (wish.error, scene.trace)
        assert len(wish.completion.token_ids) == TOKENS
    return scene


def path(wish: Wish) -> str:
    """How the last part of an answer came."""
    assert wish.completion is not None
    return wish.completion.parts[-1].path


@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_a_laptop_that_slept_goes_on(seconds: float, tmp_path: Path) -> None:
    scene = play(tmp_path, lambda scene: scene.links.sleep(scene.busy, seconds), nodes=1)
    assert path(scene.second) == "direct"


@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_a_laptop_that_wakes_elsewhere_is_found_there(seconds: float, tmp_path: Path) -> None:
    """Nothing answers at its old address, so what comes directly comes from the new one."""

    def carry(scene: Scene) -> None:
        scene.links.sleep(scene.busy, seconds, moves=True)

    scene = play(tmp_path, carry, nodes=1)
    (node,) = scene.nodes
    assert node.moves == 1
    assert scene.told_of(node) == {"the pool": (node.address,), "the broker": (node.address,)}
    assert path(scene.second) == "direct"


def test_two_laptops_that_trade_addresses_are_told_apart(tmp_path: Path) -> None:
    def trade(scene: Scene) -> None:
        one, other = scene.nodes
        scene.links.sleep(one, 3.0, moves=True)
        scene.links.sleep(other, 5.0, moves=True, leased=True)

    scene = play(tmp_path, trade)
    assert scene.nodes[1].address == "node-0.sim:7800"


@pytest.mark.parametrize("seconds", [3.0, 60.0])
def test_a_node_that_is_stopped_goes_on_or_is_passed_over(seconds: float, tmp_path: Path) -> None:
    play(tmp_path, lambda scene: scene.links.freeze(scene.busy, seconds))


def test_no_answer_notices_that_the_broker_was_killed(tmp_path: Path) -> None:
    """Nor is anybody blamed whose last will it sends when it is back."""

    def kill(scene: Scene) -> None:
        scene.nodes_spared = True
        broker = scene.broker
        assert broker is not None
        scene.loop.create_task(broker.kill())
        scene.loop.call_later(8.0, lambda: scene.loop.create_task(broker.start()))

    scene = play(tmp_path, kill)
    assert not scene.first.survived
    assert path(scene.first) == path(scene.second) == "direct"


@pytest.mark.parametrize("turned", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_that_is_cut_one_way_in_mid_answer(link: str, turned: bool, tmp_path: Path) -> None:
    """One end hears and is not heard; the other one is heard and hears nothing."""

    def cut(scene: Scene) -> None:
        scene.links.cut_link(link, scene.client, scene.busy, turned=turned, seconds=20.0)

    play(tmp_path, cut)
