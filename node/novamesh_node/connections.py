"""Ends connections to this node's own service: too many, too many of one place, one that is stuck.

gRPC bounds what one connection does and knows nothing of addresses, and a write to somebody who
does not read can be ended in no other way. So this process looks at its own sockets: what is shut
down here, gRPC sees as a connection that broke. Rules: only connections to our own port, and to the
unix socket in which tunnels end; where a system does not list a process's sockets, nothing is done
and the calls' deadlines remain.
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
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from novamesh_proto.places import place_of, place_of_host

LOOK_S: Final = 1.0
EACH_MAX: Final = 16  # of one place
ALL_MAX: Final = 128
FEW: Final = 2  # that a place keeps when there are more than ALL_MAX
LISTINGS: Final = ("/proc/self/fd", "/dev/fd")
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)


def split_peer(peer: str) -> tuple[str, int]:
    """The IP address and port of a gRPC peer, or the path of its unix socket and port 0.

    Who has neither gets "".
    """
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return unquote(rest), 0
    if kind not in ("ipv4", "ipv6"):
        return "", 0
    host, _, port = unquote(rest).rpartition(":")
    return _plain(host.strip("[]")), int(port)


class Connections:
    """The connections to one TCP port and one unix socket of this process."""

    def __init__(self, port: int, unix_socket: Path | None = None) -> None:
        """Port 0 and None: there is none."""
        self._port = port
        self._unix_socket = None if unix_socket is None else str(unix_socket)

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> int:
        """End what is too much; how many that were."""
        with contextlib.ExitStack() as stack:
            places: dict[str, list[socket.socket]] = defaultdict(list)
            for one, there in self._open():
                places[_place(*there)].append(stack.enter_context(one))
            total = sum(len(found) for found in places.values())
            most = EACH_MAX if total <= ALL_MAX else FEW
            return sum(_end(one) for found in places.values() for one in found[most:])

    def end(self, peer: str) -> bool:
        """End the connection of a gRPC peer; False where there is none that can be ended."""
        wanted = split_peer(peer)
        ended = False
        for one, there in self._open():
            with one:
                ended = (there == wanted and there[0] != "" and _end(one)) or ended
        return ended

    def _open(self) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
        """The connections, as duplicates to be closed, and who is at the other end.

        A duplicate is still the same connection when its first descriptor is closed and given to
        another, so nobody is hit by accident.
        """
        listing = next((each for each in LISTINGS if os.path.isdir(each)), None)
        if listing is None or not (self._port or self._unix_socket):
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
                if (there := self._other_end(one)) is not None:
                    yield one, there
                    continue
            one.close()

    def _other_end(self, one: socket.socket) -> tuple[str, int] | None:
        """Who a socket of this process leads to; None if it is no connection to our service."""
        if one.family in _INTERNET and self._port and one.getsockname()[1] == self._port:
            host, port = one.getpeername()[:2]
            return _plain(host), port
        if one.family is socket.AF_UNIX and one.getsockname() == self._unix_socket:
            return one.getpeername(), 0
        return None


def _plain(host: str) -> str:
    """An address without its interface; gRPC listens for IPv4 as a part of IPv6."""
    host = host.partition("%")[0]
    mapped = ipaddress.IPv6Address(host).ipv4_mapped if ":" in host else None
    return str(mapped or host)


def _place(host: str, port: int) -> str:
    return place_of_host(host) if port else place_of(f"unix:{host}")


def _end(one: socket.socket) -> bool:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return False
    return True
