"""Which paths to and from this machine work, and why not: from what was seen, a check each.

Rules: pure, nothing is dialled here; what nobody can know from inside, such as whether strangers
reach a port, is said as that; what is not set up is off, which is no failure; what is set up and
does not work fails, and every failure says what to do.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from novamesh.transport import split_address
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS

OK, FAIL, OFF = "ok", "fail", "off"
# Addresses that nobody outside can dial: of homes, of carriers' NAT, of one link, of one machine.
_INSIDE: Final = tuple(
    ipaddress.ip_network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.168.0.0/16", "::/128", "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
_NTP: Final = "timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class PathCheck:
    """One line: a path, ok, fail or off, why, and what to do where there is something to do."""

    path: str
    status: str
    reason: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """An answer of the coordinator, whose certificate fits the pin: times in ms."""

    network: str
    round_trip_ms: float
    offset_ms: int  # of this machine's clock before the pool's


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What a node that runs here says of itself."""

    attached: bool
    trouble: str
    endpoints: tuple[str, ...] = ()  # where it listens, as its descriptor says
    peers: int | None = None  # libp2p peers it is connected with; None where it takes no part


@dataclass(frozen=True, slots=True)
class RouterSeen:
    """A router that maps ports: by UPnP or NAT-PMP, and the address it has outside."""

    protocol: str
    public_address: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was looked at. An error stands where an answer could have been."""

    address: str  # the pool's, as this machine is told; up to four with commas
    pool: PoolSeen | NovaMeshError
    local_address: str = ""  # from which this machine dials the pool; empty if it cannot
    node: NodeSeen | None = None
    libp2p: str | None = None  # its version
    broker: str = ""  # empty: none is set
    broker_error: str = ""
    routers: tuple[RouterSeen, ...] | NovaMeshError | None = None  # None: nobody looked


def is_inside(host: str) -> bool:
    """Whether an IP address means something in its own network only; a name does not."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in net for net in _INSIDE)


def judge(seen: Seen) -> list[PathCheck]:
    """A check for each path, always the same ones in the same order."""
    return [
        *_pool(seen), _reverse(seen), _nat(seen), _direct(seen.node), _libp2p(seen),
        _broker(seen), _router(seen.routers),
    ]  # fmt: skip


def failed(checks: list[PathCheck]) -> bool:
    """Whether anything is broken."""
    return any(check.status == FAIL for check in checks)


def _pool(seen: Seen) -> list[PathCheck]:
    """TCP, TLS, pin and clock: what every member needs."""
    pool = seen.pool
    if isinstance(pool, NovaMeshError):
        away = pool.code is Code.UNAVAILABLE
        todo = "is the coordinator up, is its address right, may this machine dial out to its port?"
        clock = PathCheck("clock", OFF, "nobody to compare it with")
        return [PathCheck("pool", FAIL, pool.message, todo if away else pool.hint), clock]
    way = f"{pool.network} at {seen.address} over TLS, its key is the pinned one"
    reached = PathCheck("pool", OK, f"{way}, {pool.round_trip_ms:.0f} ms there and back")
    if abs(pool.offset_ms) > CLOCK_SKEW_MS:
        side = "ahead of" if pool.offset_ms > 0 else "behind"
        off_s = abs(pool.offset_ms) / 1000
        reason = f"{off_s:.0f} s {side} the pool's, which refuses what we sign"
        return [reached, PathCheck("clock", FAIL, reason, _NTP)]
    return [reached, PathCheck("clock", OK, f"offset {pool.offset_ms} ms")]


def _reverse(seen: Seen) -> PathCheck:
    """The stream that a node opens to its coordinator."""
    name, node = "reverse", seen.node
    if isinstance(seen.pool, NovaMeshError):
        return PathCheck(name, FAIL, "a node here could not open its stream", "see pool")
    if node is None:
        reason = "a node here would be given work through its own connection; no port need be open"
        return PathCheck(name, OK, reason)
    if not node.attached:
        trouble = node.trouble or "it is dialling"
        return PathCheck(name, FAIL, f"the node is not attached: {trouble}", "novamesh node status")
    return PathCheck(name, OK, "the node is attached and is given work through its own connection")


def _nat(seen: Seen) -> PathCheck:
    """What the address tells that this machine dials from."""
    name, local = "nat", seen.local_address
    if not local:
        return PathCheck(name, OFF, "this machine has no address from which it could dial the pool")
    if not is_inside(local):
        reason = f"none seen: {local} is a public address; a firewall may still be in front"
        return PathCheck(name, OK, reason)
    hosts = [split_address(one)[0] for one in seen.address.split(",")]
    if all(map(is_inside, hosts)):
        return PathCheck(name, OFF, f"{local} and the pool are in one private network")
    reason = f"{local} is private: a router stands between, and others cannot dial this machine"
    return PathCheck(name, OFF, reason, "the reverse stream and libp2p work all the same")


def _direct(node: NodeSeen | None) -> PathCheck:
    """Whether clients could dial the node themselves."""
    name = "direct"
    if node is None:
        return PathCheck(name, OFF, "no node runs here")
    endpoints = [one for one in node.endpoints if not one.startswith("/")]
    if not endpoints:
        return PathCheck(name, OFF, "the node does not listen; its jobs come by the reverse stream")
    told = ", ".join(endpoints)
    if not all(is_inside(split_address(one)[0]) for one in endpoints):
        reason = f"the node tells clients to dial {told}; from here nobody can say if they reach it"
        return PathCheck(name, OK, reason)
    reason = f"the node listens at {told}, which only its own network reaches"
    todo = "forward a port of the router to it, or let it ask:  novamesh node start --map-port"
    return PathCheck(name, OFF, reason, todo)


def _libp2p(seen: Seen) -> PathCheck:
    name, node = "libp2p", seen.node
    if seen.libp2p is None:
        return PathCheck(name, OFF, "not installed", "pip install 'novamesh[p2p]'")
    if node is None or node.peers is None:
        return PathCheck(name, OFF, f"{seen.libp2p} is installed; no node here takes part")
    if not node.peers:
        todo = "name one:  novamesh config set mesh.bootstrap /ip4/HOST/tcp/PORT/p2p/PEERID"
        return PathCheck(name, FAIL, "the node takes part and has met no peer", todo)
    peers = f"the node is connected with {node.peers} peer{'s' * (node.peers != 1)}"
    found = [one for one in node.endpoints if one.startswith("/")]
    if not found:
        return PathCheck(name, OK, f"{peers}; it says no address yet at which it is found")
    through = sum(one.endswith("/p2p-circuit") for one in found)
    way = f", {through} of them through a relay" if through else ""
    count = f"{len(found)} address{'es' * (len(found) != 1)}"
    return PathCheck(name, OK, f"{peers} and found at {count}{way}")


def _broker(seen: Seen) -> PathCheck:
    if not seen.broker:
        return PathCheck("broker", OFF, "no MQTT broker is set; the coordinator's list is used")
    if seen.broker_error:
        todo = "all else works without it; check mqtt under [node] or [client] of config.toml"
        return PathCheck("broker", FAIL, f"{seen.broker}: {seen.broker_error}", todo)
    return PathCheck("broker", OK, f"{seen.broker} takes connections")


def _router(routers: tuple[RouterSeen, ...] | NovaMeshError | None) -> PathCheck:
    """Whether the router would map a port."""
    name = "upnp"
    if routers is None:
        return PathCheck(name, OFF, "nobody asked the router", "novamesh net check --upnp")
    if isinstance(routers, NovaMeshError):
        return PathCheck(name, OFF, routers.message, routers.hint)
    if not routers:
        todo = "switch UPnP or NAT-PMP on in the router, or forward a port by hand"
        return PathCheck(name, OFF, "no router here maps ports when asked", todo)
    told = ", ".join(f"{one.protocol} ({one.public_address or 'unknown'})" for one in routers)
    if all(is_inside(one.public_address) for one in routers if one.public_address):
        reason = f"a router maps ports by {told}, but stands behind another NAT itself"
        return PathCheck(name, OFF, reason, "a mapped port would not help; libp2p may")
    return PathCheck(name, OK, f"a router maps ports by {told}")
