"""Ends connections to this node's own port: too many, too many of one place, or one that is stuck.

gRPC bounds what one connection does and knows nothing of addresses, and a write to somebody who
does not read can be ended in no other way. So this process looks at its own sockets: what is shut
down here, gRPC sees as a connection that broke. Rules: only connections to our own port; where a
system does not list a process's sockets, nothing is done and the calls' deadlines remain.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections import defaultdict
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

LOOK_S: Final = 1.0
EACH_MAX: Final = 16  # of one place
ALL_MAX: Final = 128
FEW: Final = 2  # that a place keeps when there are more than ALL_MAX
LISTINGS: Final = ("/proc/self/fd", "/dev/fd")
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_V6_PREFIX: Final = 64  # bits: whoever has one address of IPv6 has all that begin like it


def place_of(peer: str) -> str:
    """Where a gRPC peer is, as far as bounds go: its IPv4 address, its /64 of IPv6.

    All tunnels of this process come from one place: the unix socket.
    """
    host, _ = split_peer(peer)
    return _place(host) if host else peer.partition(":")[0]


def split_peer(peer: str) -> tuple[str, int]:
    """The IP address and port of a gRPC peer; no address and port 0 where it has none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "", 0
    host, _, port = unquote(rest).rpartition(":")
    return _plain(host.strip("[]")), int(port)


class Connections:
    """The connections to one TCP port of this process."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> int:
        """End what is too much; how many that were."""
        with contextlib.ExitStack() as stack:
            places: dict[str, list[socket.socket]] = defaultdict(list)
            for one, (host, _) in self._open():
                places[_place(host)].append(stack.enter_context(one))
            total = sum(len(found) for found in places.values())
            most = EACH_MAX if total <= ALL_MAX else FEW
            return sum(_end(one) for found in places.values() for one in found[most:])

    def end(self, peer: str) -> bool:
        """End the connection of a gRPC peer; False where there is none that can be ended."""
        wanted = split_peer(peer)
        ended = False
        for one, there in self._open():
            with one:
                ended = (there == wanted and _end(one)) or ended
        return ended

    def _open(self) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
        """The connections, as duplicates to be closed, and who is at the other end.

        A duplicate is still the same connection when its first descriptor is closed and given to
        another, so nobody is hit by accident.
        """
        listing = next((each for each in LISTINGS if os.path.isdir(each)), None)
        if listing is None or not self._port:
            return
        ours: set[int] = set()  # duplicates may get the number that the listing itself had
        for number in sorted(map(int, os.listdir(listing))):
            try:
                if number in ours or not stat.S_ISSOCK(os.stat(number).st_mode):
                    continue
                one = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            ours.add(one.fileno())
            with contextlib.suppress(OSError):  # it listens, or has ended by itself
                if one.family in _INTERNET and one.getsockname()[1] == self._port:
                    host, port = one.getpeername()[:2]
                    yield one, (_plain(host), port)
                    continue
            one.close()


def _plain(host: str) -> str:
    """An address without its interface; gRPC listens for IPv4 as a part of IPv6."""
    host = host.partition("%")[0]
    mapped = ipaddress.IPv6Address(host).ipv4_mapped if ":" in host else None
    return str(mapped or host)


def _place(host: str) -> str:
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host, _V6_PREFIX), strict=False))


def _end(one: socket.socket) -> bool:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return False
    return True
