"""Every path is judged from what was seen, with a reason and, where it is broken, a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh.net_check import (
    NodeSeen,
    PathCheck,
    PoolSeen,
    RouterSeen,
    Seen,
    failed,
    is_inside,
    judge,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS

ADDRESS = "198.51.100.10:7700"
POOL = PoolSeen("crew", 12.4, 3)
SEEN = Seen(ADDRESS, POOL, "192.168.1.10")
NODE = NodeSeen(attached=True, trouble="")


def of(path: str, seen: Seen) -> PathCheck:
    (found,) = [check for check in judge(seen) if check.path == path]
    return found


def test_a_client_alone_misses_nothing() -> None:
    checks = judge(SEEN)
    assert {f.path: f.status for f in checks} == {
        "pool": "ok", "clock": "ok", "reverse": "ok", "nat": "off", "direct": "off",
        "libp2p": "off", "broker": "off", "upnp": "off",
    }  # fmt: skip
    assert not failed(checks)
    assert "12 ms there and back" in checks[0].reason


def test_whatever_was_seen_the_same_paths_are_told_and_what_failed_has_a_way_out() -> None:
    broken = Seen(
        ADDRESS,
        NovaMeshError(Code.UNAVAILABLE, "cannot reach it: Connection refused"),
        node=NodeSeen(False, "refused", ("10.0.0.1:1",), 0), libp2p="0.8.1",
        broker="mqtt://b:1", broker_error="Connection refused", routers=(),
    )  # fmt: skip
    checks = judge(broken)
    assert [f.path for f in checks] == [f.path for f in judge(SEEN)]
    assert failed(checks)
    assert all(f.todo for f in checks if f.status == "fail")
    assert {f.path for f in checks if f.status == "fail"} == {
        "pool", "reverse", "libp2p", "broker",
    }  # fmt: skip


def test_another_identity_at_the_pools_address_keeps_its_own_hint() -> None:
    error = NovaMeshError(Code.PIN_MISMATCH, "somebody else answers", "ask the owner")
    found = of("pool", replace(SEEN, pool=error))
    assert (found.status, found.reason, found.todo) == ("fail", error.message, error.hint)
    assert of("reverse", replace(SEEN, pool=error)).todo == "see pool"


@pytest.mark.parametrize(
    ("offset_ms", "status", "said"),
    [
        (CLOCK_SKEW_MS, "ok", f"offset {CLOCK_SKEW_MS} ms"),
        (CLOCK_SKEW_MS + 1, "fail", "ahead of"),
        (-2 * CLOCK_SKEW_MS, "fail", "behind"),
    ],
)
def test_a_clock_fails_where_the_pool_would_refuse_what_we_sign(
    offset_ms: int, status: str, said: str
) -> None:
    found = of("clock", replace(SEEN, pool=replace(POOL, offset_ms=offset_ms)))
    assert found.status == status
    assert said in found.reason


def test_reverse_says_why_a_node_is_not_attached() -> None:
    away = replace(SEEN, node=NodeSeen(False, "the pool is full"))
    assert of("reverse", away).status == "fail"
    assert "the pool is full" in of("reverse", away).reason
    assert "dialling" in of("reverse", replace(SEEN, node=NodeSeen(False, ""))).reason
    assert "is attached" in of("reverse", replace(SEEN, node=NODE)).reason


@pytest.mark.parametrize(
    ("local", "address", "said"),
    [
        ("192.168.1.10", "198.51.100.10:7700", "a router stands between"),
        ("100.70.1.2", "pool.example.org:7700", "a router stands between"),
        ("192.168.1.10", "192.168.1.2:7700", "in one private network"),
        ("127.0.0.1", "localhost:7700", "in one private network"),
        ("10.0.0.7", "10.0.0.1:7700,198.51.100.10:7700", "a router stands between"),
        ("198.51.100.7", "198.51.100.10:7700", "none seen"),
        ("2001:db8::1", "[2001:db8::2]:7700", "none seen"),
        ("", "198.51.100.10:7700", "no address"),
    ],
)
def test_nat_is_told_by_the_address_we_dial_from(local: str, address: str, said: str) -> None:
    seen = Seen(address, POOL, local)
    assert said in of("nat", seen).reason


def test_direct_tells_private_endpoints_from_public_ones() -> None:
    private = replace(NODE, endpoints=("192.168.1.10:7711", "/ip4/192.168.1.10/tcp/7712"))
    assert of("direct", replace(SEEN, node=NODE)).status == "off"
    assert "--map-port" in of("direct", replace(SEEN, node=private)).todo
    public = replace(NODE, endpoints=("192.168.1.10:7711", "198.51.100.7:7711"))
    found = of("direct", replace(SEEN, node=public))
    assert found.status == "ok"
    assert "nobody can say" in found.reason


def test_libp2p_is_installed_takes_part_and_meets_peers() -> None:
    assert "novamesh[p2p]" in of("libp2p", SEEN).todo
    here = replace(SEEN, libp2p="0.8.1", node=NODE)
    assert "no node here takes part" in of("libp2p", here).reason
    assert of("libp2p", replace(here, node=replace(NODE, peers=0))).status == "fail"
    assert "6 peers;" in of("libp2p", replace(here, node=replace(NODE, peers=6))).reason
    found = ("/ip4/192.168.1.10/tcp/4001", "/ip4/198.51.100.7/tcp/4001/p2p/12D3/p2p-circuit")
    meshed = replace(here, node=replace(NODE, peers=1, endpoints=found))
    assert "1 peer and found at 2 addresses, 1 of them through a relay" in (
        of("libp2p", meshed).reason
    )
    assert "does not listen" in of("direct", meshed).reason


def test_broker_is_off_reached_or_not() -> None:
    there = replace(SEEN, broker="mqtts://b.example.org:8883")
    assert of("broker", there).status == "ok"
    gone = of("broker", replace(there, broker_error="Connection refused"))
    assert (gone.status, gone.reason) == ("fail", "mqtts://b.example.org:8883: Connection refused")


def test_home_routers_are_asked_only_on_wish() -> None:
    assert "--upnp" in of("upnp", SEEN).todo
    assert "by hand" in of("upnp", replace(SEEN, routers=())).todo
    lacking = NovaMeshError(Code.UNSUPPORTED, "miniupnpc is not installed", "pip install it")
    assert of("upnp", replace(SEEN, routers=lacking)).todo == "pip install it"
    good = (RouterSeen("NAT-PMP", "198.51.100.11"),)
    assert of("upnp", replace(SEEN, routers=good)).status == "ok"
    doubled = (RouterSeen("UPnP", "100.64.3.4"),)
    found = of("upnp", replace(SEEN, routers=doubled))
    assert found.status == "off"
    assert "another NAT" in found.reason


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("10.1.2.3", True), ("172.31.0.1", True), ("172.32.0.1", False), ("169.254.1.1", True),
        ("fe80::1%eth0", True), ("::ffff:10.0.0.1", True), ("::ffff:198.51.100.1", False),
        ("2001:db8::1", False), ("localhost", True), ("pool.example.org", False),
    ],
)  # fmt: skip
def test_addresses_of_the_inside(host: str, inside: bool) -> None:
    assert is_inside(host) is inside
