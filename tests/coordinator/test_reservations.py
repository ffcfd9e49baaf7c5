"""Held slots: two seconds, a fair share each, and none for a while after a match without a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator import reservations
from novamesh_coordinator.events import Moment
from novamesh_coordinator.reservations import NO_SHOW_MS, Reservations
from novamesh_proto.limits import RESERVATION_MS
from novamesh_proto.messages import NodeId
from support.parties import party

ALICE, BOB = party("alice").node_id, party("bob").node_id
ONE, TWO = party("one").node_id, party("two").node_id


def at(ms: int) -> Moment:
    return Moment(1_700_000_000_000 + ms, ms * 1000)


def hold(held: Reservations, client: NodeId, ms: int, *slots: tuple[bytes, NodeId]) -> None:
    held.hold(client, slots, at(ms))


@pytest.mark.parametrize(("free", "share"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (9, 5)])
def test_a_share_is_half_rounded_up_and_at_least_one(free: int, share: int) -> None:
    assert Reservations().room(ALICE, {ONE: free}, at(0)) == share


def test_what_is_held_already_counts() -> None:
    held = Reservations()
    hold(held, ALICE, 0, (b"a", ONE), (b"b", TWO))
    assert held.room(ALICE, {ONE: 2, TWO: 2}, at(1)) == 0
    assert held.room(BOB, {ONE: 2, TWO: 2}, at(1)) == 1
    assert held.at(ONE, at(500)) == (1, RESERVATION_MS - 500)


def test_a_hold_ends_with_its_job_or_its_time() -> None:
    held = Reservations()
    hold(held, ALICE, 0, (b"a", ONE), (b"b", TWO))
    hold(held, BOB, 10, (b"c", ONE))
    held.release([b"a"], BOB)
    assert len(held) == 3
    assert held.own([b"a", b"c"], ALICE, at(20)) == {ONE: 1}
    held.release([b"a"], ALICE)  # one job comes of a match: the rest of it is free as well
    assert (len(held), held.at(TWO, at(20))) == (1, (0, 0))
    assert held.at(ONE, at(RESERVATION_MS + 9)) == (1, 1)
    assert held.at(ONE, at(RESERVATION_MS + 10)) == (0, 0)


def test_after_a_match_without_a_job_nothing_is_held_for_a_while() -> None:
    held = Reservations()
    hold(held, ALICE, 0, (b"a", ONE))
    hold(held, BOB, 0, (b"b", ONE))
    held.release([b"b"], BOB)
    over_ms = RESERVATION_MS + NO_SHOW_MS
    for ms, room in ((RESERVATION_MS, 0), (over_ms - 1, 0), (over_ms, 2)):
        assert held.room(ALICE, {ONE: 4}, at(ms)) == room
        assert held.room(BOB, {ONE: 4}, at(ms)) == 2


def test_all_holds_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "RESERVATIONS_MAX", 2)
    held = Reservations()
    hold(held, ALICE, 0, (b"a", ONE))
    assert held.room(BOB, {ONE: 99}, at(0)) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 900)), max_size=60))
def test_whoever_asks_how_often_the_last_of_several_slots_is_left(
    asks: list[tuple[int, int]],
) -> None:
    held, ms = Reservations(), 0
    for number, (who, passed) in enumerate(asks):
        ms += passed
        client, before = party(f"client-{who}").node_id, len(held)
        room = held.room(client, {ONE: 8}, at(ms))
        names = [b"%d-%d" % (number, slot) for slot in range(room)]
        held.hold(client, [(name, ONE) for name in names], at(ms))
        count, _ = held.at(ONE, at(ms))
        assert count == len(held)
        assert count < 8 or before >= 7
