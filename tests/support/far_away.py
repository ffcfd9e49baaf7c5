"""A server of this machine that is far away: every byte to it and from it takes a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

PIECE: Final = 65_536
WAITING_MAX: Final = 1024  # pieces on their way

Piece = tuple[float, bytes]


@contextlib.asynccontextmanager
async def far_away(address: str, delay_s: float) -> AsyncIterator[str]:
    """Another address of who listens at `address`, each way `delay_s` seconds longer."""
    host, _, port = address.rpartition(":")
    ways: set[asyncio.Task[None]] = set()

    async def connected(near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection(host, int(port))
        for reader, writer in ((near, far_out), (far, near_out)):
            way = asyncio.create_task(_carry(reader, writer, delay_s))
            ways.add(way)
            way.add_done_callback(ways.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        left = tuple(ways)
        for way in left:
            way.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """One way of one connection; when it ends, so does the connection."""
    clock = asyncio.get_running_loop().time
    on_their_way: asyncio.Queue[Piece] = asyncio.Queue(WAITING_MAX)

    async def take_in() -> None:
        data = b"more"
        while data:
            with contextlib.suppress(ConnectionError):
                data = b""
                data = await reader.read(PIECE)
            await on_their_way.put((clock() + delay_s, data))

    taking_in = asyncio.create_task(take_in())
    try:
        while True:
            due_s, data = await on_their_way.get()
            await asyncio.sleep(due_s - clock())
            if not data:
                return
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return
    finally:
        taking_in.cancel()
        writer.close()
