"""What goes wrong besides where clients reach nodes themselves: links, laptops and the broker."""

from __future__ import annotations

import asyncio
from typing import Final

from novamesh_broker.message import Message
from novamesh_proto.identity import format_node_id
from novamesh_proto.names import GONE, TOPIC_PRESENCE, node_topic
from support.parties import NETWORK
from support.sim.broker import Broker
from support.sim.client import Client
from support.sim.faults import Faults, Kind, Named
from support.sim.network import KEEPALIVE_S
from support.sim.node import Node
from support.sim.process import Process

CUT_S: Final = (0.5, 5.0, 20.0, 50.0)
STOPPED_S: Final = (3.0, 20.0, 60.0)
SOUGHT_TIMES: Final = 200
SOUGHT_EVERY_S: Final = 0.05
LEASED_SHARE: Final = 0.3  # of those who move, to an address that another node had


class DirectFaults(Faults):
    """The faults of every world, and these; `broker` is None where there is none."""

    broker: Broker | None = None

    def kinds(self) -> tuple[Kind, ...]:
        """What may be drawn, some of it more often."""
        return (
            *super().kinds(),
            self._cut_direct, self._cut_direct, self._cut_answer, self._cut_answer, self._freeze,
            self._sleep, self._sleep_and_move, self._sleep_and_move, self._rumour,
            self._kill_broker, self._kill_broker, self._drop_direct, self._long_absence,
            self._long_absence,
        )  # fmt: skip

    def _cut_direct(self) -> Named:
        """Between a client and a node, one way or both; each still reaches the pool."""
        ends = self.rng.choice(self.clients).name, self.rng.choice(self.nodes).name
        return self._cut_between(*ends)

    def _cut_answer(self) -> Named:
        """One way, between two of those who have to do with an answer that is under way."""
        link = self.rng.choice(("node → pool", "client → node", "client → pool"))
        turned, seconds = self.rng.random() < 0.5, self.rng.choice(CUT_S)

        async def strike() -> None:
            self.returning.append(self.world.loop.create_task(later()))

        async def later() -> None:
            for _ in range(SOUGHT_TIMES):
                if found := self.answering():
                    self.cut_link(link, *found, turned=turned, seconds=seconds)
                    return
                await asyncio.sleep(SOUGHT_EVERY_S)

        turning = " the other way" if turned else ""
        return f"cut {link}{turning} in mid-answer for {seconds} s", strike

    def cut_link(
        self, link: str, client: Client, node: Node, *, turned: bool, seconds: float
    ) -> None:
        """Cut one direction of `A → B`, or the other one."""
        names = {"node": node.name, "client": client.name, "pool": "pool"}
        source, target = (names[one] for one in link.split(" → "))
        ends = (target, source) if turned else (source, target)
        self.world.network.cut(*ends, seconds)

    def answering(self) -> tuple[Client, Node] | None:
        """A client that has a part of an answer, and a node that works for it."""
        for client in self.clients:
            wish = client.waits_for
            if wish is None or not wish.pieces:
                continue
            jobs = client.records.jobs()
            for node in self.nodes:
                if node.works_on(jobs):
                    return client, node
        return None

    def _drop_direct(self) -> Named:
        """A node's connections break, a few times, while it answers."""
        node = self.rng.choice(self.nodes).name
        moments = [self.rng.uniform(0, 3) for _ in range(self.rng.randint(1, 4))]

        async def strike() -> None:
            for moment in moments:
                self.world.loop.call_later(moment, self.world.network.drop, node)

        return f"connections of {node} break", strike

    def _freeze(self) -> Named:
        """SIGSTOP: connections stand and nobody answers, then all goes on where it was."""
        node, seconds = self.rng.choice(self.nodes), self.rng.choice(STOPPED_S)

        async def strike() -> None:
            self.freeze(node, seconds)

        return f"{node.name} is frozen for {seconds} s", strike

    def freeze(self, node: Node, seconds: float) -> None:
        """Stop a node; others notice when their pings are not answered."""
        process, loop = node.process, self.world.loop
        if process is None or process.stopped:
            return
        process.stop()
        loop.call_later(KEEPALIVE_S, self._miss, node, process)
        loop.call_later(seconds, process.go_on)

    def _miss(self, node: Node, process: Process) -> None:
        if process.stopped and node.process is process:
            self.world.network.drop(node.name)

    def _sleep(self) -> Named:
        """A laptop is shut and opened again where it was."""
        node, seconds = self.rng.choice(self.nodes), self.rng.choice(STOPPED_S)

        async def strike() -> None:
            self.sleep(node, seconds)

        return f"{node.name} sleeps for {seconds} s", strike

    def _sleep_and_move(self) -> Named:
        """A laptop is shut, carried away, and opened in another network."""
        node, seconds = self.rng.choice(self.nodes), self.rng.choice(STOPPED_S)
        leased = self.rng.random() < LEASED_SHARE

        async def strike() -> None:
            self.sleep(node, seconds, moves=True, leased=leased)

        return f"{node.name} sleeps for {seconds} s and wakes elsewhere", strike

    def sleep(
        self, node: Node, seconds: float, *, moves: bool = False, leased: bool = False
    ) -> None:
        """Shut a laptop: its clock but the wall's stands still, and nothing reaches it.

        `moves`: it wakes at another address, `leased` at one that another node left, if any did.
        """
        process, network = node.process, self.world.network
        if process is None or process.stopped:
            return
        process.stop()
        others = ["pool", "broker", *(client.name for client in self.clients)]
        for other in others:
            network.cut(node.name, other, seconds)
            network.cut(other, node.name, seconds)

        def wake() -> None:
            if moves:
                node.move(self._address(node, leased=leased))
            process.go_on(slept=True)

        self.world.loop.call_later(seconds, wake)

    def _address(self, node: Node, *, leased: bool) -> str:
        """Where a node is that moved; addresses that are left are there for everybody."""
        host, _, port = node.address.partition(":")
        left = sorted(self.world.hosts.deserted - {f"{host}:{port}"})
        fresh = f"{node.name}-{node.moves + 1}.sim:{port}"
        return left[0] if leased and left else fresh

    def _rumour(self) -> Named:
        """Somebody with an account says at the broker that a node is gone."""
        node = self.rng.choice(self.nodes)

        async def strike() -> None:
            if self.broker is not None and self.broker.process is not None:
                topic = node_topic(NETWORK, format_node_id(node.key.node_id), TOPIC_PRESENCE)
                self.broker.say(Message(topic, GONE, False))

        return f"broker is told that {node.name} is gone", strike

    def _kill_broker(self) -> Named:
        assert self.broker is not None, "worlds with direct paths have one"
        return "kill broker", self._restart(self.broker)

    def _long_absence(self) -> Named:
        """The pool is away for so long that clients ask nodes themselves."""
        return "kill pool for long", self._restart(self.pool, (12.0, 40.0))
