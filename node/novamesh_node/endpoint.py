"""Where clients are told to reach this machine: its own address on the way to the pool."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from novamesh.transport import split_address
from novamesh_proto.errors import NovaMeshError

ANYWHERE: Final = frozenset({"0.0.0.0", "[::]", "*"})  # noqa: S104  read, not listened at


def endpoint_of(host: str, port: int, pool: str, before: str = "") -> str:
    """HOST:PORT to tell; where we listen on every address, that from which the pool is reached.

    Behind a NAT this is an address of the home network: good for clients beside us, and the others
    find out that it leads nowhere. Without a network it is `before`. No packet is sent.
    """
    if host not in ANYWHERE:
        return f"{host}:{port}"
    own = _own_address(pool)
    return f"{own}:{port}" if own else before or f"127.0.0.1:{port}"


def _own_address(pool: str) -> str:
    """The address from which the pool is reached now; empty where none is."""
    with contextlib.suppress(NovaMeshError, OSError):
        first = split_address(pool.partition(",")[0])
        there = socket.getaddrinfo(*first, type=socket.SOCK_DGRAM)[0]
        with socket.socket(there[0], socket.SOCK_DGRAM) as probe:
            probe.connect(there[4])
            own = probe.getsockname()[0]
            return f"[{own}]" if ":" in own else str(own)
    return ""
