"""No message acts twice, however long, often, or with whatever clock it is tried."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import MessageId
from support.refusals import unless_refused

LIFE_MS = 60_000
NOW = 1_000_000_000


def an_id(number: int) -> MessageId:
    return MessageId(number.to_bytes(32, "big"))


def code_of(window: ReplayWindow, number: int, expires_at_ms: int, now_ms: int) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        window.admit(an_id(number), expires_at_ms, now_ms)
    return caught.value.code


def test_the_same_message_is_refused_until_it_has_expired_everywhere() -> None:
    window = ReplayWindow()
    window.admit(an_id(1), NOW + LIFE_MS, NOW)
    last = NOW + LIFE_MS + CLOCK_SKEW_MS
    for now_ms in (NOW, NOW + LIFE_MS, last):
        assert code_of(window, 1, NOW + LIFE_MS, now_ms) is Code.REPLAYED


def test_what_was_forgotten_does_not_come_back_when_the_clock_is_set_back() -> None:
    window = ReplayWindow()
    window.admit(an_id(1), NOW + LIFE_MS, NOW)
    much_later = NOW + 10 * CLOCK_SKEW_MS
    window.admit(an_id(2), much_later + LIFE_MS, much_later)
    assert len(window) == 1
    assert code_of(window, 1, NOW + LIFE_MS, NOW) is Code.NOT_FRESH


def test_a_full_window_refuses_and_heals() -> None:
    window = ReplayWindow(entries_max=2)
    window.admit(an_id(1), NOW + LIFE_MS, NOW)
    window.admit(an_id(2), NOW + LIFE_MS, NOW)
    assert code_of(window, 3, NOW + LIFE_MS, NOW) is Code.BUSY
    assert code_of(window, 1, NOW + LIFE_MS, NOW) is Code.REPLAYED
    later = NOW + LIFE_MS + CLOCK_SKEW_MS + 1
    window.admit(an_id(3), later + LIFE_MS, later)


def test_a_restart_forgets_nothing() -> None:
    window = ReplayWindow()
    for number in range(5):
        window.admit(an_id(number), NOW + number, NOW)
    later = NOW + CLOCK_SKEW_MS + 3
    window.admit(an_id(9), later + LIFE_MS, later)
    again = ReplayWindow.restore(window.snapshot())
    assert again.snapshot() == window.snapshot()
    for number, code in ((0, Code.NOT_FRESH), (3, Code.REPLAYED), (9, Code.REPLAYED)):
        assert code_of(again, number, NOW + number, later) is code


def test_an_empty_window_survives_its_snapshot() -> None:
    again = ReplayWindow.restore(ReplayWindow().snapshot())
    again.admit(an_id(1), NOW, NOW)
    assert len(again) == 1


class Replays(RuleBasedStateMachine):
    """A window beside a model that never forgets; clocks jump, messages repeat, it restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReplayWindow(entries_max=8)
        self.acted: set[int] = set()
        self.expiry: dict[int, int] = {}
        self.now_ms = NOW

    @rule(number=st.integers(0, 30), life_ms=st.integers(0, LIFE_MS))
    def receive(self, number: int, life_ms: int) -> None:
        expires_at_ms = self.expiry.setdefault(number, self.now_ms + life_ms)
        if self.now_ms > expires_at_ms + CLOCK_SKEW_MS:
            return  # envelope.open has refused it already

        def admit() -> bool:
            self.window.admit(an_id(number), expires_at_ms, self.now_ms)
            return True

        if unless_refused(admit, Code.REPLAYED, Code.NOT_FRESH, Code.BUSY):
            assert number not in self.acted
            self.acted.add(number)

    @rule(step_ms=st.integers(-CLOCK_SKEW_MS, 2 * CLOCK_SKEW_MS))
    def set_clock(self, step_ms: int) -> None:
        self.now_ms += step_ms

    @precondition(lambda self: self.acted)
    @rule()
    def restart(self) -> None:
        self.window = ReplayWindow.restore(self.window.snapshot(), entries_max=8)

    @invariant()
    def stays_small(self) -> None:
        assert len(self.window) <= 8


TestReplays = Replays.TestCase
