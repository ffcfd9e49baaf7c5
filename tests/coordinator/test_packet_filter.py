"""A port that does not hear some addresses: the program by an interpreter, and in the kernel."""

from __future__ import annotations

import ipaddress
import random
import socket
import sys
from collections.abc import Sequence

import pytest

from novamesh_coordinator import packet_filter
from novamesh_coordinator.packet_filter import INSTRUCTIONS_MAX, Instruction, deaf_to
from novamesh_proto.places import place_of_host

HEADER = 0xFFF00000


def kept(program: Sequence[Instruction], host: str) -> int:
    """What the program gives for a packet from a host: bytes of it that are heard."""
    source = ipaddress.ip_address(host)
    v4 = bytes([0x45]) + bytes(11) + source.packed
    packet = v4 if source.version == 4 else bytes([0x60]) + bytes(7) + source.packed
    at, register = 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        match code:
            case 0x30:
                register = packet[k - HEADER]
            case 0x20:
                register = int.from_bytes(packet[k - HEADER : k - HEADER + 4], "big")
            case 0x74:
                register >>= k
            case 0x05:
                at += k
            case 0x15:
                at += if_true if register == k else if_false
            case 0x06:
                return k
            case _:
                raise AssertionError(code)


def hosts(count: int, seed: int) -> list[str]:
    """Addresses of both kinds, some of them neighbours."""
    rng = random.Random(seed)
    return [
        str(ipaddress.IPv4Address(rng.getrandbits(32) & 0xF0F0000F))
        if rng.random() < 0.5
        else str(
            ipaddress.IPv6Address((rng.getrandbits(128) & ((0xF00F << 64) | 0xFFFF)) | 1 << 80)
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_program_drops_these_places_and_no_others(seed: int) -> None:
    known = hosts(200, seed)
    places = {place_of_host(host) for host in random.Random(seed).sample(known, 60)}
    made = deaf_to(sorted(places))
    assert made.places == places
    for host in known:
        assert kept(made.program, host) == (0 if place_of_host(host) in places else 0xFFFFFFFF)


def test_an_empty_program_keeps_everything() -> None:
    made = deaf_to([])
    assert made.places == frozenset()
    assert {kept(made.program, host) for host in hosts(50, 1)} == {0xFFFFFFFF}


def test_what_is_no_address_is_left_out() -> None:
    made = deaf_to(["unix:/run/x", "10.0.0.0/8", "::/32", "10.0.0.1", "::/64"])
    assert made.places == {"10.0.0.1", "::/64"}


@pytest.mark.parametrize("each", ["10.{}.{}.1", "2001:db8:{:x}:{:x}::/64"])
def test_a_program_has_a_bound(each: str) -> None:
    places = [each.format(n // 256, n % 256) for n in range(5_000)]
    made = deaf_to(places)
    assert len(made.program) <= INSTRUCTIONS_MAX
    assert len(made.places) > 400
    first, last = places[0].removesuffix("/64"), places[-1].removesuffix("/64")
    assert (kept(made.program, first), kept(made.program, last)) == (0, 0xFFFFFFFF)


def reaches(port: int, source: str, target: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((target, port), 0.3, source_address=(source, 0)).close()
    except TimeoutError:
        return False
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's socket filters")
def test_the_kernel_drops_them_until_it_is_told_otherwise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        deaf_to(["127.0.0.7", "127.0.0.8"]).attach(listener)
        assert [reaches(port, f"127.0.0.{n}") for n in (6, 7, 8, 9)] == [True, False, False, True]
        deaf_to(["127.0.0.8"]).attach(listener)
        assert reaches(port, "127.0.0.7")
        deaf_to([]).attach(listener)
        deaf_to([]).attach(listener)
        assert reaches(port, "127.0.0.8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's socket filters")
def test_connections_that_were_made_meanwhile_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        deaf_to(["127.0.0.7"]).attach(listener)
        caller = socket.create_connection(listener.getsockname(), 5)
        inside, _ = listener.accept()
        with caller, inside:
            caller.sendall(b"heard")
            assert inside.recv(5) == b"heard"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's socket filters")
def test_one_port_for_both_kinds_of_addresses() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        deaf_to(["127.0.0.7"]).attach(listener)
        assert (reaches(port, "127.0.0.7"), reaches(port, "127.0.0.6")) == (False, True)
        assert reaches(port, "::1", "::1")
        deaf_to([place_of_host("::1")]).attach(listener)
        assert (reaches(port, "127.0.0.7"), reaches(port, "::1", "::1")) == (True, False)


def test_another_system_hears_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_filter.sys, "platform", "darwin")
    assert deaf_to(["127.0.0.7"]).places == frozenset()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        deaf_to(["127.0.0.7"]).attach(listener)
        assert reaches(listener.getsockname()[1], "127.0.0.7")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's socket filters")
def test_the_longest_filter_can_be_replaced_by_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for first in (0, 5):
            places = [f"2001:db8:{n // 256:x}:{n % 256:x}::/64" for n in range(first, 5_000)]
            deaf_to(["127.0.0.7", *places]).attach(listener)
        assert not reaches(listener.getsockname()[1], "127.0.0.7")
        deaf_to([]).attach(listener)
        assert reaches(listener.getsockname()[1], "127.0.0.7")
