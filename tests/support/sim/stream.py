"""A stream between two parties: two directions, each in order, and the status it ends with."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from support.sim.network import WIRE, Network


@dataclass(frozen=True)
class Status:
    """How a call ended."""

    code: Any
    details: str = ""
    trailing: tuple[tuple[str, bytes], ...] = ()

    def error(self) -> grpc.aio.AioRpcError:
        """As the caller sees it."""
        return grpc.aio.AioRpcError(
            self.code, grpc.aio.Metadata(), grpc.aio.Metadata(*self.trailing), self.details
        )


OK = Status(grpc.StatusCode.OK)
GONE = Status(grpc.StatusCode.UNAVAILABLE, "the connection is gone")
LATE = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline is over")


class Pipe:
    """One direction of a stream: in order, delayed, held back by a cut."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self._ends = source, target
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._held: deque[Any] = deque()
        self._last_s = 0.0
        self.snapped = False
        self.strayed = False

    def send(self, item: Any) -> None:
        """Put on the way."""
        loop = self._network.loop
        # Never the same moment: timers that are due together ring in any order.
        self._last_s = max(self._last_s + 1e-6, loop.time() + self._network.delay())
        loop.call_at(self._last_s, self._arrive, item, context=WIRE)

    def flush(self) -> None:
        """What was held back arrives."""
        while self._held:
            self._arrived.put_nowait(self._held.popleft())

    def snap(self) -> None:
        """Nothing more arrives; whoever reads finds out."""
        if not self.snapped:
            self.snapped = True
            self._held.clear()
            self._arrived.put_nowait(GONE)

    def fall_silent(self) -> None:
        """Whoever sent died: what is under way arrives, and then the end."""
        self.send(GONE)

    async def next(self) -> Any:
        """The next item."""
        return await self._arrived.get()

    def _arrive(self, item: Any) -> None:
        if self.snapped or self.strayed:
            return
        if item is GONE:
            self.snap()
            return
        if self._held or not self._network.reaches(*self._ends):
            self._held.append(item)
        else:
            self._arrived.put_nowait(item)


class Stream:
    """A call that goes on: two pipes, and the handler's task at the far end."""

    def __init__(self, network: Network, ends: tuple[str, str]) -> None:
        self.ends = ends
        self._network = network
        self.up = Pipe(network, *self.ends)
        self.down = Pipe(network, *reversed(self.ends))
        self.task: asyncio.Task[Any] | None = None
        network.streams.append(self)

    def snap(self, dead: str = "") -> None:
        """The connection is gone at both ends, `dead` being one of them if it was killed."""
        for pipe, source in ((self.up, self.ends[0]), (self.down, self.ends[1])):
            if source == dead:
                pipe.fall_silent()
            else:
                pipe.snap()
        if self.task is not None and not self.task.done():
            self.task.cancel()
        self.close()

    def resume(self) -> None:
        """A cut was mended."""
        self.up.flush()
        self.down.flush()

    def stray(self) -> None:
        """One of its ends is at another address."""
        self.up.strayed = self.down.strayed = True

    def close(self) -> None:
        """Nobody needs it any more."""
        if self in self._network.streams:
            self._network.streams.remove(self)

    def maybe_snap(self) -> None:
        """Bad weather may break it at any message."""
        if self._network.chance(self._network.weather.snaps):
            self._network.note(f"stream {self.ends[0]} ⇄ {self.ends[1]} snaps")
            self.snap()
