"""Where a caller is, as far as bounds go: which of its calls and connections count together.

Pure. A place is an IPv4 address, a /64 of IPv6, or one peer of the mesh, whose tunnel ends at a
server in a unix socket with a name that says so. Names of peers cost nothing, so a peer's place is
part of a crowd: all whose connections come from the same address, a relay's or their own.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import unquote

PLACE_BYTES: Final = 6  # of a digest in a socket's name, whose path has 104 bytes at most
_V6_PREFIX: Final = 64  # bits: whoever has one address of IPv6 has all that begin like it
_DIGEST: Final = f"[0-9a-f]{{{2 * PLACE_BYTES}}}"
_TUNNEL_END: Final = re.compile(rf"/t-({_DIGEST})-({_DIGEST})-[0-9]+$")
_TUNNEL: Final = "tunnel"


def place_of(peer: str) -> str:
    """The place of a gRPC peer, such as "ipv4:192.0.2.7:50412".

    What is neither an address nor a tunnel, a unix socket for one, is its kind.
    """
    kind, _, rest = peer.partition(":")
    if kind in ("ipv4", "ipv6"):
        return place_of_host(unquote(rest).rpartition(":")[0].strip("[]"))
    ends = _TUNNEL_END.search(rest)
    return kind if ends is None else " ".join((_TUNNEL, *ends.groups()))


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


def crowd_of(place: str) -> str:
    """Those among whom a place is one of many; a place that is no tunnel is its own crowd."""
    return place.rpartition(" ")[0] if place.startswith(f"{_TUNNEL} ") else place


def tunnel_end(origin: bytes, peer: bytes, number: int) -> str:
    """Name of the socket in which a tunnel ends: `place_of` tells whose it is.

    Args:
        origin: PLACE_BYTES of a digest of where the peer's connection comes from.
        peer: PLACE_BYTES of a digest of who it is.
        number: Of those under way no two have the same.
    """
    return f"t-{origin.hex()}-{peer.hex()}-{number}"
