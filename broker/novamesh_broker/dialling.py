"""A connected socket to a broker, its TLS handshake done; whoever waits for it can be called off.

Rule: no thread is left that the end of a process would wait for, see `daemon_thread`.
"""

from __future__ import annotations

import socket
from typing import Final

from novamesh_broker.daemon_thread import in_daemon_thread
from novamesh_broker.entrance import Entrance

DIAL_S: Final = 5.0  # each step of dialling


async def dial(entrance: Entrance) -> socket.socket:
    """A socket to the broker, dialled in a daemon thread; closed if nobody wants it any more.

    Raises:
        OSError: it cannot be reached, or shows a certificate of nobody we trust.
        ValueError: its name can be no name.
    """
    return await in_daemon_thread("mqtt-dial", lambda: open_line(entrance), socket.socket.close)


def open_line(entrance: Entrance) -> socket.socket:
    """The same, and nobody else runs meanwhile: for at most DIAL_S a step, without the look-up."""
    broker = entrance.broker
    line = socket.create_connection((broker.host, broker.port), DIAL_S)
    try:
        # Else the second of two small packets waits for the answer to the first: 40 ms.
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if entrance.tls is not None:
            return entrance.tls.wrap_socket(line, server_hostname=broker.host)
    except Exception:  # whatever it is: the socket is not left open
        line.close()
        raise
    return line
