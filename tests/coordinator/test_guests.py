"""Slots for calls of nobody knows whom, shared out by where they come from."""

from __future__ import annotations

import contextlib

import pytest

from novamesh_coordinator.guests import FEW, Guests, place_of
from novamesh_proto.errors import Code, NovaMeshError


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        ("ipv4:192.0.2.7:50412", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50412", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50412", "192.0.2.7"),
        ("unix:", "unix"),
        ("ipv6:nonsense:1", "nonsense"),
    ],
)
def test_a_place_is_an_address_or_what_one_line_owns_of_ipv6(peer: str, place: str) -> None:
    assert place_of(peer) == place


def nobody(place: str) -> None:
    """Who is told of refusals."""


def refused(guests: Guests, place: str) -> bool:
    try:
        with guests.hold(place):
            return False
    except NovaMeshError as error:
        return error.code is Code.BUSY and error.retry_after_ms > 0


def test_a_place_has_its_share_and_gives_it_back() -> None:
    told: list[str] = []
    guests = Guests(3, 100, told.append)
    with contextlib.ExitStack() as slots:
        for _ in range(3):
            slots.enter_context(guests.hold("here"))
        assert refused(guests, "here")
        assert not refused(guests, "there")
    assert told == ["here"]
    assert len(guests) == 0
    assert not refused(guests, "here")


def test_places_with_few_get_in_when_all_slots_are_taken() -> None:
    guests = Guests(50, 100, nobody)
    with contextlib.ExitStack() as slots:
        for place in ("one", "two"):
            for _ in range(50):
                slots.enter_context(guests.hold(place))
        for _ in range(FEW):
            slots.enter_context(guests.hold("three"))
        assert refused(guests, "three")
        assert not refused(guests, "four")


def test_a_slot_is_given_back_when_the_call_fails() -> None:
    guests = Guests(1, 1, nobody)
    with pytest.raises(ZeroDivisionError), guests.hold("here"):
        raise ZeroDivisionError
    assert len(guests) == 0
