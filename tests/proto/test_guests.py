"""Slots for calls of nobody knows whom, shared out by where they come from."""

from __future__ import annotations

import contextlib

import pytest

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.guests import FEW, Guests


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
    guests = Guests(50, 100)
    with contextlib.ExitStack() as slots:
        for place in ("one", "two"):
            for _ in range(50):
                slots.enter_context(guests.hold(place))
        for _ in range(FEW):
            slots.enter_context(guests.hold("three"))
        assert refused(guests, "three")
        assert not refused(guests, "four")


def test_a_slot_is_given_back_when_the_call_fails() -> None:
    guests = Guests(1, 1)
    with pytest.raises(ZeroDivisionError), guests.hold("here"):
        raise ZeroDivisionError
    assert len(guests) == 0
