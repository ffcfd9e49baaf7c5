"""A port that stays free while whoever listens on it is dead for a moment.

One below the range from which the system gives ports away, and not given again soon;
those who test side by side give away different ones.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice
from typing import Final

PORTS: Final = range(18_000, 30_000)
SIDE_BY_SIDE: Final = 8  # processes that share the ports out


def free_port() -> int:
    """One that nobody listens on now."""
    for port in islice(_mine(), len(PORTS)):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")


@cache
def _mine() -> Iterator[int]:
    """This process's ports, over and over; pytest-xdist numbers its workers gw0, gw1, …"""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = list(PORTS[number % SIDE_BY_SIDE :: SIDE_BY_SIDE])
    random.SystemRandom().shuffle(ports)
    return cycle(ports)
