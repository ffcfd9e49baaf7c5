"""The pool's MQTT broker: a party of its own, which nodes and the pool reach by real upkeep.

What speaks MQTT is not simulated; `connected` stands in the place of that library, over the world's
network. What is retained, and the wills of who was there, are on the broker's disk: whoever is not
back in time after it was killed has its will sent then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from novamesh_broker.connection import ANSWER_S, LastWill, Visitor
from novamesh_broker.message import Message
from novamesh_proto.errors import Code, NovaMeshError
from support.sim.loop import HERE
from support.sim.process import Process, check_alive
from support.sim.stream import GONE, Stream
from support.sim.world import Party, World

ADDRESS = "mqtt://broker.sim:1883"
_TAKEN = object()  # what was published is on the broker's disk


@dataclass(frozen=True)
class _Published:
    message: Message
    life_s: float | None


@dataclass(frozen=True)
class _Kept:
    payload: bytes
    until_s: float | None


class Broker(Party):
    """One broker in its lives."""

    name = "broker"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.retained: dict[str, _Kept] = {}
        self._wills: dict[str, LastWill] = {}
        self._guests: dict[str, tuple[Stream, tuple[str, ...]]] = {}

    @contextlib.asynccontextmanager
    async def connected(self, entrance: object, visitor: Visitor) -> AsyncIterator[Line]:
        """As `novamesh_broker.connection.connected`."""
        del entrance
        network, caller = self._world.network, HERE.get()
        await asyncio.sleep(network.delay())
        process, ends = self.process, (caller.name, self.name)
        if process is None:
            raise NovaMeshError(Code.UNAVAILABLE, "nobody listens there")
        if not (network.reaches(*ends) and network.reaches(*reversed(ends))):
            await asyncio.sleep(ANSWER_S)
            raise NovaMeshError(Code.UNAVAILABLE, "nobody answers there")
        check_alive()
        stream = Stream(network, ends)
        stream.task = process.spawn(self._serve(process, stream, visitor), "guest")
        line = Line(stream)
        reading = asyncio.create_task(line.read(), name="broker's line")
        try:
            yield line
        finally:
            reading.cancel()
            stream.snap()

    def say(self, message: Message) -> None:
        """Somebody with an account publishes this, and it is not retained."""
        for stream, topics in self._guests.values():
            if any(_fits(message.topic, topic) for topic in topics):
                stream.down.send(message)

    async def _run(self, process: Process) -> None:
        self._guests = {}
        for client_id in self._wills:
            process.spawn(self._expect(client_id), "will")
        await asyncio.Event().wait()

    async def _serve(self, process: Process, stream: Stream, visitor: Visitor) -> None:
        before = self._guests.pop(visitor.client_id, None)
        self._guests[visitor.client_id] = stream, visitor.topics
        if before is not None:
            before[0].snap()
        if visitor.will is not None:
            self._wills[visitor.client_id] = visitor.will
        try:
            for topic, kept in self._fresh():
                if any(_fits(topic, wanted) for wanted in visitor.topics):
                    stream.down.send(Message(topic, kept.payload, True))
            while (said := await stream.up.next()) is not GONE:
                self._take(said)
                stream.down.send(_TAKEN)
                stream.maybe_snap()
        finally:
            here = self._guests.get(visitor.client_id)
            if process.alive and here is not None and here[0] is stream:
                del self._guests[visitor.client_id]
                process.spawn(self._expect(visitor.client_id), "will")

    def _take(self, said: _Published) -> None:
        topic, payload = said.message.topic, said.message.payload
        if said.message.retained:
            until_s = None if said.life_s is None else self._world.loop.time() + said.life_s
            self.retained.pop(topic, None)
            if payload:
                self.retained[topic] = _Kept(payload, until_s)
        self.say(Message(topic, payload, False))

    def _fresh(self) -> list[tuple[str, _Kept]]:
        now_s = self._world.loop.time()
        kept = self.retained.items()
        return [(t, one) for t, one in kept if one.until_s is None or one.until_s > now_s]

    async def _expect(self, client_id: str) -> None:
        """Whoever left comes back in time, or its will is sent."""
        will = self._wills.get(client_id)
        if will is None:
            return
        await asyncio.sleep(will.delay_s)
        if client_id not in self._guests and self._wills.pop(client_id, None) is not None:
            self._world.note(f"broker sends a will: {will.topic[-24:]}")
            self.say(Message(will.topic, will.payload, False))


class Line:
    """A guest's end, as `novamesh_broker.connection.Connection`."""

    version = "5"

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, life_s: int | None = None
    ) -> None:
        """Publish, and wait until that was taken."""
        check_alive()
        if self._stream.up.snapped:
            raise _gone()
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(taken)
        self._stream.up.send(_Published(Message(topic, payload, retain), life_s))
        self._stream.maybe_snap()
        try:
            async with asyncio.timeout(ANSWER_S):
                await taken
        except TimeoutError:
            raise NovaMeshError(Code.UNAVAILABLE, "the broker does not answer") from None

    async def messages(self) -> AsyncGenerator[Message]:
        """What comes, until the connection breaks."""
        while (message := await self._inbox.get()) is not None:
            yield message
        raise _gone()

    async def read(self) -> None:
        """Sort what arrives."""
        while (item := await self._stream.down.next()) is not GONE:
            if item is not _TAKEN:
                self._inbox.put_nowait(item)
            elif (taken := self._waiting.popleft()) and not taken.done():
                taken.set_result(None)
        self._inbox.put_nowait(None)
        for taken in self._waiting:
            if not taken.done():
                taken.set_exception(_gone())


def _fits(topic: str, wanted: str) -> bool:
    pairs = zip(topic.split("/"), wanted.split("/"), strict=True)
    return all(part in (here, "+") for here, part in pairs)


def _gone() -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, "the broker hung up")
