"""Who counts together: addresses, lines of IPv6, peers of the mesh and those around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto.places import PLACE_BYTES, crowd_of, place_of, place_of_host, tunnel_end

DIGESTS = st.binary(min_size=PLACE_BYTES, max_size=PLACE_BYTES)


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        ("ipv4:192.0.2.7:50412", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50412", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50412", "192.0.2.7"),
        ("unix:", "unix"),
        ("unix:/tmp/novamesh-x/grpc", "unix"),
        ("ipv6:nonsense:1", "nonsense"),
    ],
)
def test_a_place_is_an_address_or_what_one_line_owns_of_ipv6(peer: str, place: str) -> None:
    assert place_of(peer) == place
    assert crowd_of(place) == place


@given(DIGESTS, DIGESTS, DIGESTS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_each_peer_has_a_place_and_shares_a_crowd_with_those_at_its_address(
    origin: bytes, one: bytes, other: bytes, first: int, second: int
) -> None:
    places = [
        place_of(f"unix:/tmp/novamesh-x/{tunnel_end(origin, peer, number)}")
        for peer, number in ((one, first), (one, second), (other, first))
    ]
    assert places[0] == places[1]
    assert (places[0] == places[2]) is (one == other)
    assert len({crowd_of(place) for place in places}) == 1
    assert crowd_of(places[0]) not in places


def test_names_that_only_look_like_a_tunnels_are_none() -> None:
    end = tunnel_end(bytes(PLACE_BYTES), bytes(PLACE_BYTES), 7)
    for name in (end[1:], f"{end}x", end.replace("-7", ""), f"{end}/grpc"):
        assert place_of(f"unix:/tmp/{name}") == "unix"


def test_the_name_fits_into_a_sockets_path() -> None:
    """Where folders for what is temporary have long names, as on macOS."""
    folder = "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/novamesh-abcdefgh"
    assert len(f"{folder}/{tunnel_end(bytes(6), bytes(6), 9_999)}") < 104


def test_a_host_that_is_none_is_its_own_place() -> None:
    assert place_of_host("nonsense") == "nonsense"
    assert place_of_host("127.0.0.1") == "127.0.0.1"
