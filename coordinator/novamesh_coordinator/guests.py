"""Calls of people who have not said yet who they are: how many there are, and from where.

A call takes a slot from when it is begun until it has been heard. Without a bound, a few megabytes
of begun calls would take every slot of the server, and members would find none. Rules: an address
has at most its share; when all slots are taken, an address that holds fewer than FEW still gets
one, so that many slow callers in one place shut out nobody elsewhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import unquote

from novamesh_proto.errors import Code, NovaMeshError

FEW: Final = 4
RETRY_MS: Final = 1_000
_V6_PREFIX: Final = 64  # bits: whoever has one address of IPv6 has all that begin like it


def place_of(peer: str) -> str:
    """Where a gRPC peer is, as far as bounds go: its IPv4 address, its /64 of IPv6.

    What is neither, a Unix socket for one, is itself without what follows its last colon.
    """
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return place_of_host(unquote(rest).rpartition(":")[0].strip("[]"))
    return peer.rpartition(":")[0]


def place_of_host(host: str) -> str:
    """The same for an IP address as text; text that is none is its own place."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))


class Guests:
    """Slots for calls that nobody has vouched for yet; `refused` is told where from, each time."""

    def __init__(self, each_max: int, all_max: int, refused: Callable[[str], None]) -> None:
        self._each_max = each_max
        self._all_max = all_max
        self._refused = refused
        self._held: dict[str, int] = {}
        self._all = 0

    def __len__(self) -> int:
        return self._all

    @contextlib.contextmanager
    def hold(self, place: str) -> Iterator[None]:
        """Keep a slot while inside.

        Raises:
            NovaMeshError: BUSY if the place has its share, or all slots are taken.
        """
        held = self._held.get(place, 0)
        if held >= self._each_max or (self._all >= self._all_max and held >= FEW):
            self._refused(place)
            raise NovaMeshError(
                Code.BUSY,
                "too many calls are begun and not made",
                "finish or end those under way",
                RETRY_MS,
            )
        self._held[place] = held + 1
        self._all += 1
        try:
            yield
        finally:
            self._all -= 1
            left = self._held[place] - 1
            if left:
                self._held[place] = left
            else:
                del self._held[place]
