"""A port that stays free while whoever listens on it is dead for a moment.

One below the range from which the system gives ports away, drawn anew each time.
"""

from __future__ import annotations

import random
import socket

PORTS = range(18_000, 30_000)


def free_port() -> int:
    """One that nobody listens on now."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
