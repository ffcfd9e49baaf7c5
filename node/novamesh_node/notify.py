"""What the service manager that started a node is told: ready, alive, ending.

systemd's own protocol: lines of NAME=value, one datagram to the socket that NOTIFY_SOCKET names.
Rules: where nobody listens, nothing is sent; nothing here waits, and a datagram that cannot be sent
costs the node nothing. Ready means that the models are loaded: a pool that is away is no failure.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

from novamesh_node.lifecycle import State

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
_ALIVE: Final = "WATCHDOG=1"


class ServiceManager:
    """Whoever started this process and wants to know how it is; nobody, for most."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        # An abstract socket is written with @ and addressed with a NUL byte.
        name = env.get(SOCKET_VARIABLE, "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._watches = bool(env.get(WATCHDOG_VARIABLE))

    def hear(self, before: State, after: State) -> None:
        """The node's life took a turn."""
        lines = turns(before, after)
        if lines:
            self._send("\n".join(lines))

    def beat(self) -> None:
        """The node's loop runs; only a manager that watches wants to know."""
        if self._watches:
            self._send(_ALIVE)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # Not kept open: a manager that was replaced has another socket under the same name.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams,
        ):
            datagrams.setblocking(False)
            datagrams.sendto(text.encode(), self._address)


def turns(before: State, after: State) -> tuple[str, ...]:
    """The lines for a step from one state to the next; none where nothing changed.

    A drain is no STOPPING: one that `finish` began has no deadline, and may be called off.
    """
    lines = []
    if after.ready and not before.ready:
        lines.append("READY=1")
    if after.stopped and not before.stopped:
        lines.append("STOPPING=1")
    if after.phase is not before.phase:
        lines.append(f"STATUS={after.phase.value}")
    return tuple(lines)
