"""What somebody does who wants a coordinator to serve nobody: one coroutine an attack.

Each goes on until it is cancelled, dials again whenever the server hangs up, and counts what it
did. `python -m support.hostile.attacks NAME PORT HERE BYTES_A_SECOND` is one attacker in a process
of its own, dialling from the address HERE; it ends with its standard input and prints its counts.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Final

from novamesh_proto import wire
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import JobId
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import ClientActor
from support.hostile import http2
from support.hostile.attacker import STREAMS, Attacker, Reading, many, opened
from support.hostile.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, frame
from support.parties import COORDINATOR

CONNECTIONS: Final = 16  # of a flood
SLOW_S: Final = 1.0  # between two bytes of a slow client
PIECE: Final = 16_384  # bytes of a DATA frame
HELLO: Final = "/novamesh.v1.PoolService/Hello"
SUBMIT: Final = "/novamesh.v1.PoolService/Submit"
WATCH: Final = "/novamesh.v1.PoolService/Watch"
ATTACH: Final = "/novamesh.v1.NodeService/Attach"


async def silent(him: Attacker) -> None:
    """TCP connections on which nothing is ever said."""

    async def one() -> None:
        await _tcp(him, b"")

    await many(him.slow_clients, one)


async def slow_tls(him: Attacker) -> None:
    """The first words of TLS, a byte a second."""

    async def one() -> None:
        await _tcp(him, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))

    await many(him.slow_clients, one)


async def slow_http2(him: Attacker) -> None:
    """TLS, then what opens HTTP/2, a byte a second."""

    async def one() -> None:
        connection = await him.dial(settled=False)
        async with opened(connection):
            for byte in http2.PREFACE + frame(http2.SETTINGS, 0, 0):
                await him.say(connection, bytes([byte]), what="bytes said slowly")
                await asyncio.sleep(SLOW_S)
            await connection.drain()

    await many(him.slow_clients, one)


async def slow_calls(him: Attacker) -> None:
    """As many calls as a connection takes on each of many, each request a byte a second."""

    async def one() -> None:
        connection = await him.dial()
        async with opened(connection):
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

    await many(him.slow_clients, one)


async def big_headers(him: Attacker) -> None:
    """Calls with more metadata than is taken, in one field and in many."""
    big = [(b"x-big", b"y" * METADATA_BYTES_MAX)]
    small = [(b"x-%d" % index, b"y" * 20) for index in range(200)]
    blocks = [http2.block(http2.request(HELLO, *more)) for more in (big, small)]

    async def one() -> None:
        connection = await him.dial()
        async with opened(connection), Reading(connection):
            while True:
                for block in blocks:
                    opening = frame(
                        HEADERS, END_HEADERS | END_STREAM, connection.next_stream(), block
                    )
                    await him.say(connection, opening, what="calls")

    await many(CONNECTIONS, one)


async def endless_headers(him: Attacker) -> None:
    """A header block that is continued and continued."""
    piece = http2.block([(b"x-%d" % index, b"y" * 20) for index in range(400)])

    async def one() -> None:
        connection = await him.dial()
        async with opened(connection):
            stream = connection.next_stream()
            opening = http2.block(http2.request(HELLO))
            await him.say(connection, frame(HEADERS, 0, stream, opening), what="calls")
            while True:
                more = frame(http2.CONTINUATION, 0, stream, piece)
                await him.say(connection, more, what="continuations")

    await many(CONNECTIONS, one)


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
        async with opened(connection):
            reading = asyncio.create_task(connection.drain())
            head = http2.block(http2.request(ATTACH, timeout=None))
            while not reading.done():
                for _ in range(STREAMS):
                    opening = frame(HEADERS, END_HEADERS, connection.next_stream(), head)
                    await him.say(connection, opening, what="calls")
                await asyncio.sleep(SLOW_S)

    await many(him.slow_clients, one)


async def resets(him: Attacker) -> None:
    """Calls that are begun and taken back at once."""
    head = http2.block(http2.request(ATTACH))

    async def one() -> None:
        connection = await him.dial()
        async with opened(connection), Reading(connection):
            while True:
                batch = []
                for _ in range(20):
                    stream = connection.next_stream()
                    batch.append(frame(HEADERS, END_HEADERS, stream, head))
                    batch.append(frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08"))
                await him.say(connection, *batch, what="twenties of calls")

    await many(CONNECTIONS, one)


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

    await many(CONNECTIONS, one, pause_s=0.0)


SLOW: Final = (silent, slow_tls, slow_http2, slow_calls, attach_streams)
FLOODS: Final = (
    big_headers, endless_headers, big_messages, bombs, calls, signed_calls, resets, pings, settings,
    handshakes,
)  # fmt: skip
ATTACKS: Final[dict[str, Callable[[Attacker], Awaitable[None]]]] = {
    attack.__name__: attack for attack in (*SLOW, *FLOODS)
}


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
        async with opened(connection), Reading(connection) as reading:
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

    await many(CONNECTIONS, one)


async def _flood(him: Attacker, method: str, requests: list[bytes]) -> None:
    """Calls of one method, on each connection as many at once as it takes."""
    head = http2.block(http2.request(method))

    async def one() -> None:
        connection = await him.dial()
        async with opened(connection), Reading(connection) as reading:
            for request in itertools.cycle(requests):
                async with asyncio.timeout(http2.CONNECT_S):
                    await reading.room.acquire()
                    await reading.spend(len(request) + 5)
                stream = connection.next_stream()
                opening = frame(HEADERS, END_HEADERS, stream, head)
                body = frame(DATA, END_STREAM, stream, http2.message(request))
                await him.say(connection, opening, body, what="calls")

    await many(CONNECTIONS, one)


async def _repeat(him: Attacker, data: bytes, what: str) -> None:
    async def one() -> None:
        connection = await him.dial()
        async with opened(connection), Reading(connection):
            while True:
                await him.say(connection, data, what=what)

    await many(CONNECTIONS, one)


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
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait([attack, waiting], return_when=asyncio.FIRST_COMPLETED)
    if attack.done():
        attack.result()  # no attack ends by itself: what it raised
    attack.cancel()
    await asyncio.wait([attack])


def _give_way() -> None:
    """An attacker's processor is his own; here it must not be the coordinator's."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(10)


def main() -> None:
    """One attacker."""
    _give_way()
    name, port, here, bytes_per_s = sys.argv[1:]
    him = Attacker(int(port), here, float(bytes_per_s))
    asyncio.run(_attack(name, him))
    cpu = os.times()
    print(json.dumps({**him.did, "cpu_s": cpu.user + cpu.system}))


if __name__ == "__main__":
    main()
