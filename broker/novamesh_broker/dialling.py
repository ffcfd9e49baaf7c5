"""A connected socket to a broker, its TLS handshake done; whoever waits for it can be called off.

Rule: no thread is left that the end of a process would wait for. An event loop's own pool has such
threads: that costs seconds where a broker says nothing, half a minute where no name server does.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Final

from novamesh_broker.entrance import Entrance

DIAL_S: Final = 5.0  # each step of dialling


async def dial(entrance: Entrance) -> socket.socket:
    """A socket to the broker. It is dialled in a daemon thread: no look-up can be broken off.

    Raises:
        OSError: it cannot be reached, or shows a certificate of nobody we trust.
        ValueError: its name can be no name.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[socket.socket] = loop.create_future()

    def settle(line: socket.socket | None, error: Exception | None) -> None:
        if line is not None and not found.done():
            found.set_result(line)
        elif line is not None:
            line.close()
        elif error is not None and not found.done():
            found.set_exception(error)

    def work() -> None:
        line, failure = None, None
        try:
            line = open_line(entrance)
        except (OSError, ValueError) as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, line, failure)
        except RuntimeError:  # the loop has ended meanwhile
            if line is not None:
                line.close()

    threading.Thread(target=work, name="mqtt-dial", daemon=True).start()
    return await found


def open_line(entrance: Entrance) -> socket.socket:
    """The same, and nobody else runs meanwhile: for at most DIAL_S a step, without the look-up."""
    broker = entrance.broker
    line = socket.create_connection((broker.host, broker.port), DIAL_S)
    try:
        # Else the second of two small packets waits for the answer to the first: 40 ms.
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if entrance.tls is not None:
            return entrance.tls.wrap_socket(line, server_hostname=broker.host)
    except (OSError, ValueError):
        line.close()
        raise
    return line
