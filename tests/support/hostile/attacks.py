"""What somebody does who wants a coordinator to serve nobody: one coroutine an attack.

Each goes on until it is cancelled, dials again whenever the server hangs up, and counts what it
did. `python -m support.hostile.attacks NAME PORT HERE BYTES_A_SECOND` is one attacker in a process
of its own, dialling from the address HERE; it ends with its standard input and prints its counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from novamesh_proto import wire
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import JobId
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import ClientActor
from support.hostile import http2
from support.hostile.http2 import ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Connection, frame
from support.parties import COORDINATOR

CONNECTIONS: Final = 16  # of a flood
STREAMS: Final = 64  # that a server takes of one connection
SLOW_S: Final = 1.0  # between two bytes of a slow client
AGAIN_S: Final = 0.05
PIECE: Final = 16_384  # bytes of a DATA frame
HELLO: Final = "/novamesh.v1.PoolService/Hello"
SUBMIT: Final = "/novamesh.v1.PoolService/Submit"
WATCH: Final = "/novamesh.v1.PoolService/Watch"
ATTACH: Final = "/novamesh.v1.NodeService/Attach"
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


async def silent(him: Attacker) -> None:
    """TCP connections on which nothing is ever said."""

    async def one() -> None:
        await _tcp(him, b"")

    await _many(him.slow_clients, one)


async def slow_tls(him: Attacker) -> None:
    """The first words of TLS, a byte a second."""

    async def one() -> None:
        await _tcp(him, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))

    await _many(him.slow_clients, one)


async def slow_http2(him: Attacker) -> None:
    """TLS, then what opens HTTP/2, a byte a second."""

    async def one() -> None:
        connection = await him.dial(settled=False)
        async with _open(connection):
            for byte in http2.PREFACE + frame(http2.SETTINGS, 0, 0):
                await him.say(connection, bytes([byte]), what="bytes said slowly")
                await asyncio.sleep(SLOW_S)
            await connection.drain()

    await _many(him.slow_clients, one)


async def slow_calls(him: Attacker) -> None:
    """As many calls as a connection takes on each of many, each request a byte a second."""

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            head = http2.block(http2.request(SUBMIT, timeout=None))
            for _ in range(STREAMS):
                stream = connection.next_stream()
                opening = frame(HEADERS, END_HEADERS, stream, head)
                await him.say(connection, opening, what="calls")
            while True:
                for stream in range(1, 2 * STREAMS, 2):
                    byte = frame(DATA, 0, stream, b"\0")
                    await him.say(connection, byte, what="bytes said slowly")
                await asyncio.sleep(SLOW_S)

    await _many(him.slow_clients, one)


async def big_headers(him: Attacker) -> None:
    """Calls with more metadata than is taken, in one field and in many."""
    big = [(b"x-big", b"y" * METADATA_BYTES_MAX)]
    many = [(b"x-%d" % index, b"y" * 20) for index in range(200)]
    blocks = [http2.block(http2.request(HELLO, *more)) for more in (big, many)]

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            while True:
                for block in blocks:
                    opening = frame(
                        HEADERS, END_HEADERS | END_STREAM, connection.next_stream(), block
                    )
                    await him.say(connection, opening, what="calls")

    await _many(CONNECTIONS, one)


async def endless_headers(him: Attacker) -> None:
    """A header block that is continued and continued."""
    piece = http2.block([(b"x-%d" % index, b"y" * 20) for index in range(400)])

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            stream = connection.next_stream()
            opening = http2.block(http2.request(HELLO))
            await him.say(connection, frame(HEADERS, 0, stream, opening), what="calls")
            while True:
                more = frame(http2.CONTINUATION, 0, stream, piece)
                await him.say(connection, more, what="continuations")

    await _many(CONNECTIONS, one)


async def big_messages(him: Attacker) -> None:
    """Jobs of the greatest size that is taken, unsigned."""
    await _messages(him, http2.message(bytes(MESSAGE_BYTES_MAX)), b"identity")


async def bombs(him: Attacker) -> None:
    """Messages of a few kilobytes that unpack to half a gigabyte."""
    await _messages(him, http2.message(_bomb(), compressed=True), b"gzip")


async def calls(him: Attacker) -> None:
    """The cheapest call that there is, as often as possible."""
    await _flood(him, HELLO, [b""])


async def signed_calls(him: Attacker) -> None:
    """A member's questions after a job that is none: each signature must be verified."""
    actor = ClientActor("flooder", COORDINATOR.node_id)
    queries = [actor.watch(JobId(os.urandom(32)), time.time_ns() // 1_000_000) for _ in range(200)]
    requests = [pb.WatchRequest(query=wire.to_pb(q)).SerializeToString() for q in queries]
    await _flood(him, WATCH, requests)


async def attach_streams(him: Attacker) -> None:
    """Streams of nodes that never say who they are, as many as are taken, over and over."""

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            reading = asyncio.create_task(connection.drain())
            head = http2.block(http2.request(ATTACH, timeout=None))
            while not reading.done():
                for _ in range(STREAMS):
                    opening = frame(HEADERS, END_HEADERS, connection.next_stream(), head)
                    await him.say(connection, opening, what="calls")
                await asyncio.sleep(SLOW_S)

    await _many(him.slow_clients, one)


async def resets(him: Attacker) -> None:
    """Calls that are begun and taken back at once."""
    head = http2.block(http2.request(ATTACH))

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            while True:
                batch = []
                for _ in range(20):
                    stream = connection.next_stream()
                    batch.append(frame(HEADERS, END_HEADERS, stream, head))
                    batch.append(frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08"))
                await him.say(connection, *batch, what="twenties of calls")

    await _many(CONNECTIONS, one)


async def pings(him: Attacker) -> None:
    """Nothing but pings."""
    await _repeat(him, frame(http2.PING, 0, 0, bytes(8)) * 50, "fifties of pings")


async def settings(him: Attacker) -> None:
    """Nothing but changes of settings, each of which wants an answer."""
    await _repeat(him, frame(http2.SETTINGS, 0, 0) * 50, "fifties of settings")


async def handshakes(him: Attacker) -> None:
    """TLS, and nothing after it: each costs the server a signature."""

    async def one() -> None:
        connection = await him.dial()
        connection.close()

    await _many(CONNECTIONS, one, pause_s=0.0)


SLOW: Final = (silent, slow_tls, slow_http2, slow_calls, attach_streams)
FLOODS: Final = (
    big_headers, endless_headers, big_messages, bombs, calls, signed_calls, resets, pings, settings,
    handshakes,
)  # fmt: skip
ATTACKS: Final[dict[str, Callable[[Attacker], Awaitable[None]]]] = {
    attack.__name__: attack for attack in (*SLOW, *FLOODS)
}


async def _many(count: int, one: Callable[[], Awaitable[None]], pause_s: float = AGAIN_S) -> None:
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
async def _open(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        connection.close()


async def _tcp(him: Attacker, data: bytes) -> None:
    """One connection without TLS: a byte a second, then silence until the server hangs up."""
    here = (him.here, 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", him.port, local_addr=here)
    him.did["connections"] += 1
    try:
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            him.did["bytes"] += 1
            await asyncio.sleep(SLOW_S)
        await reader.read()
    finally:
        writer.transport.abort()


async def _messages(him: Attacker, data: bytes, encoding: bytes) -> None:
    """One message after the other, as quick as the server's windows let it in."""
    head = http2.block(http2.request(SUBMIT, (b"grpc-encoding", encoding)))

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection), _Reading(connection) as reading:
            while True:
                async with asyncio.timeout(http2.CONNECT_S):
                    await reading.room.acquire()
                stream = connection.next_stream()
                await him.say(connection, frame(HEADERS, END_HEADERS, stream, head), what="calls")
                for start in range(0, len(data), PIECE):
                    piece = data[start : start + PIECE]
                    await reading.spend(len(piece))
                    flags = END_STREAM if start + PIECE >= len(data) else 0
                    await him.say(connection, frame(DATA, flags, stream, piece), what="pieces")

    await _many(CONNECTIONS, one)


async def _flood(him: Attacker, method: str, requests: list[bytes]) -> None:
    """Calls of one method, on each connection as many at once as it takes."""
    head = http2.block(http2.request(method))

    async def one() -> None:
        connection = await him.dial()
        async with _open(connection), _Reading(connection) as reading:
            for request in itertools.cycle(requests):
                async with asyncio.timeout(http2.CONNECT_S):
                    await reading.room.acquire()
                    await reading.spend(len(request) + 5)
                stream = connection.next_stream()
                opening = frame(HEADERS, END_HEADERS, stream, head)
                body = frame(DATA, END_STREAM, stream, http2.message(request))
                await him.say(connection, opening, body, what="calls")

    await _many(CONNECTIONS, one)


async def _repeat(him: Attacker, data: bytes, what: str) -> None:
    async def one() -> None:
        connection = await him.dial()
        async with _open(connection):
            while True:
                await him.say(connection, data, what=what)

    await _many(CONNECTIONS, one)


class _Reading:
    """Reads what comes, so that calls end and windows open; ends with what it is a context of."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._credit = 65_535
        self._opened = asyncio.Event()
        self._ended = -1  # this stream and all before it are over
        self._over: set[int] = set()  # and these after it
        self.room = asyncio.Semaphore(STREAMS)

    async def __aenter__(self) -> _Reading:
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


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(64 * 2**20), 9)


async def _attack(name: str, him: Attacker) -> None:
    """Until standard input ends."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=listen, daemon=True).start()
    attack = asyncio.ensure_future(ATTACKS[name](him))
    await ended.wait()
    attack.cancel()
    await asyncio.wait([attack])


def main() -> None:
    """One attacker."""
    name, port, here, bytes_per_s = sys.argv[1:]
    him = Attacker(int(port), here, float(bytes_per_s))
    asyncio.run(_attack(name, him))
    cpu = os.times()
    print(json.dumps({**him.did, "cpu_s": cpu.user + cpu.system}))


if __name__ == "__main__":
    main()
