"""Somebody who attacks: his line, his connections, and what every attack needs of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from support.hostile import http2
from support.hostile.http2 import ACK, END_STREAM, Connection, frame

STREAMS: Final = 64  # that a server takes of one connection
AGAIN_S: Final = 0.05
GONE: Final = (OSError, EOFError, TimeoutError)


@dataclass
class Attacker:
    """Where he sends to and from, over which line, and what he did."""

    port: int
    here: str
    bytes_per_s: float = 0.0  # that his line takes up; 0 for no bound
    slow_clients: int = 500
    did: Counter[str] = field(default_factory=Counter)
    _free_at_s: float = 0.0

    async def pay(self, size: int) -> None:
        """Wait until the line has taken as many bytes more."""
        self.did["bytes"] += size
        if self.bytes_per_s:
            now_s = time.monotonic()
            self._free_at_s = max(now_s, self._free_at_s) + size / self.bytes_per_s
            await asyncio.sleep(self._free_at_s - now_s)
        else:
            await asyncio.sleep(0)

    async def dial(self, *, settled: bool = True) -> Connection:
        """A connection with TLS."""
        await self.pay(2_000)
        connection = await Connection.open(self.port, self.here, settled=settled)
        self.did["connections"] += 1
        return connection

    async def say(self, connection: Connection, *data: bytes, what: str) -> None:
        """Send frames, and count them as `what`."""
        await self.pay(sum(map(len, data)))
        await connection.send(*data)
        self.did[what] += 1


async def many(count: int, one: Callable[[], Awaitable[None]], pause_s: float = AGAIN_S) -> None:
    """That many of them side by side, each begun again when it ends."""

    async def again(number: int) -> None:
        await asyncio.sleep(number * 0.002)
        while True:
            with contextlib.suppress(*GONE):
                await one()
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(again(number))


@contextlib.asynccontextmanager
async def opened(connection: Connection) -> AsyncIterator[None]:
    """Hung up at the end."""
    try:
        yield
    finally:
        connection.close()


class Reading:
    """Reads what comes, so that calls end and windows open; ends with what it is a context of."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._credit = 65_535
        self._opened = asyncio.Event()
        self._ended = -1  # this stream and all before it are over
        self._over: set[int] = set()  # and these after it
        self.room = asyncio.Semaphore(STREAMS)

    async def __aenter__(self) -> Reading:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def spend(self, size: int) -> None:
        """Wait until the connection's window takes as many bytes more."""
        while self._credit < size:
            self._opened.clear()
            if self._task.done():
                raise EOFError
            async with asyncio.timeout(http2.CONNECT_S):
                await self._opened.wait()
        self._credit -= size

    async def _read(self) -> None:
        with contextlib.suppress(*GONE):
            while True:
                came = await self._connection.read()
                if came.kind == http2.WINDOW_UPDATE and not came.stream:
                    self._credit += int.from_bytes(came.payload, "big")
                    self._opened.set()
                elif came.kind == http2.PING and not came.flags & ACK:
                    await self._connection.send(frame(http2.PING, ACK, 0, came.payload))
                elif came.stream > self._ended and (
                    came.kind == http2.RST_STREAM or (came.flags & END_STREAM and came.kind < 2)
                ):
                    self._end(came.stream)
        self._opened.set()

    def _end(self, stream: int) -> None:
        """A call is over: once, although the server may say so twice."""
        if stream not in self._over:
            self._over.add(stream)
            self.room.release()
        while self._ended + 2 in self._over:
            self._ended += 2
            self._over.remove(self._ended)
