"""Ends connections: of an address that has too many, and of one that does not stop asking.

gRPC bounds what one connection does and knows nothing of addresses, and even a refusal costs this
process a fraction of a millisecond. So it looks at its own sockets: what is shut down here, gRPC
sees as a connection that broke. Rules: only connections to our own port; what is one too many
goes; an address that was refused a call or a connection STRIKES_MAX times within WINDOW_S is kept
out for BARRED_S: its connections are ended, and the port is deaf to it. Where a system does not
list a process's sockets, nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from novamesh_coordinator.packet_filter import deaf_to
from novamesh_proto.places import place_of_host

LOOK_S: Final = 1.0
LOOK_BARRED_S: Final = 0.02  # before TLS is through: where nothing makes the port deaf
LOOK_REST: Final = (
    20  # times as long as a look takes: a thousand sockets are not looked at for ever
)
WINDOW_S: Final = 10.0
STRIKES_MAX: Final = 200  # each was taken from gRPC's queue, where members wait too
BARRED_S: Final = 60.0
PLACES_MAX: Final = 1_024  # kept out at once; more are let in again
LISTINGS: Final = ("/proc/self/fd", "/dev/fd")
_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)

_log = structlog.get_logger()


class Bouncer:
    """Who is kept out, and the looking."""

    def __init__(self, connections_max: int, monotonic: Callable[[], float]) -> None:
        self.port = 0  # where we listen, once it is known
        self._connections_max = connections_max
        self._monotonic = monotonic
        self._strikes: Counter[str] = Counter()
        self._barred: dict[str, float] = {}  # until when
        self._shunned: frozenset[str] = frozenset()  # whom the filter was made for
        self._filter = deaf_to(self._shunned)
        self._deaf = True  # our port has that filter
        self._stragglers = False  # some may have come through before it had
        self._window_ends_s = 0.0
        self._called = asyncio.Event()

    def strike(self, place: str) -> None:
        """A call or a connection from there was one too many."""
        now_s = self._monotonic()
        if now_s >= self._window_ends_s:
            self._strikes.clear()
            self._window_ends_s = now_s + WINDOW_S
        self._strikes[place] += 1
        if self._strikes[place] < STRIKES_MAX or place in self._barred:
            return
        if len(self._barred) < PLACES_MAX:
            _log.warning("an address is kept out", seconds=BARRED_S, refused=STRIKES_MAX)
            self._barred[place] = now_s + BARRED_S
            self._called.set()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            began_s = self._monotonic()
            self.look()
            rest_s = (self._monotonic() - began_s) * LOOK_REST
            self._called.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(rest_s, self._patience_s())):
                    await self._called.wait()

    def look(self) -> int:
        """End what is too much; how many that were."""
        now_s = self._monotonic()
        self._barred = {place: until for place, until in self._barred.items() if until > now_s}
        ended = 0
        by_place: dict[str, list[socket.socket]] = defaultdict(list)
        with contextlib.ExitStack() as stack:
            listeners = []
            for one, host in _sockets(self.port):
                stack.enter_context(one)
                if host is None:
                    listeners.append(one)
                else:
                    by_place[place_of_host(host)].append(one)
            self._close_ears(listeners)
            for place, found in by_place.items():
                barred = place in self._barred
                for connection in found if barred else found[self._connections_max :]:
                    with contextlib.suppress(OSError):  # it has ended by itself
                        connection.shutdown(socket.SHUT_RDWR)
                        ended += 1
                    if not barred:
                        self.strike(place)
        return ended

    def _patience_s(self) -> float:
        """Until the next look: soon if somebody who is kept out may have come through."""
        unheard = self._filter.places if self._deaf else frozenset()
        soon = self._stragglers or self._barred.keys() - unheard
        return LOOK_BARRED_S if soon else LOOK_S

    def _close_ears(self, listeners: Sequence[socket.socket]) -> None:
        """Make the port deaf to whoever is kept out, and to nobody else.

        Each look does it anew: a listener that was missed once must not stay deaf to somebody.
        """
        self._stragglers = self._shunned != self._barred.keys()
        if self._stragglers:
            self._shunned = frozenset(self._barred)
            self._filter = deaf_to(self._shunned)
        try:
            for listener in listeners:
                self._filter.attach(listener)
        except OSError as error:
            if self._deaf:
                _log.warning("the port hears everybody", error=error.strerror)
            self._deaf = False
        else:
            self._deaf = bool(listeners)


def _sockets(port: int) -> Iterator[tuple[socket.socket, str | None]]:
    """This process's connections to one of its ports, as duplicates, and who is at the other end.

    Nobody is at the other end of one that listens. A duplicate is still the same connection when
    its first descriptor is closed and given to another, so nobody is hit by accident.
    """
    listing = next((one for one in LISTINGS if os.path.isdir(one)), None)
    if listing is None:
        return
    ours: set[int] = set()  # duplicates may get the number that the listing itself had
    for number in sorted(map(int, os.listdir(listing))):
        try:
            if number in ours or not stat.S_ISSOCK(os.stat(number).st_mode):
                continue
            connection = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        ours.add(connection.fileno())
        with contextlib.suppress(OSError):  # it has ended by itself
            if connection.family in _INTERNET and connection.getsockname()[1] == port:
                listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                yield connection, None if listens else connection.getpeername()[0]
                continue
        connection.close()
