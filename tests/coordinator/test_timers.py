"""Timers: each key once, earliest first, moving later is free."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator.timers import Timers

keys = st.tuples(st.integers(0, 2), st.sampled_from([b"a", b"b", b"c"]))
moves = st.lists(st.tuples(keys, st.none() | st.integers(0, 50)), max_size=40)


@given(moves, st.integers(0, 60))
def test_they_behave_like_a_plain_table(
    changes: list[tuple[tuple[int, bytes], int | None]], now_ms: int
) -> None:
    timers: Timers[tuple[int, bytes]] = Timers()
    plain: dict[tuple[int, bytes], int] = {}
    for key, due_ms in changes:
        if due_ms is None:
            timers.drop(key)
            plain.pop(key, None)
        else:
            timers.set(key, due_ms)
            plain[key] = due_ms
    assert timers.next_ms() == min(plain.values(), default=None)
    due = sorted((at_ms, key) for key, at_ms in plain.items() if at_ms <= now_ms)
    taken = list(timers.take_due(now_ms))
    assert [plain[key] for key in taken] == [at_ms for at_ms, _ in due]
    assert sorted(taken) == sorted(key for _, key in due)
    assert len(timers) == len(plain) - len(due)
    assert all(timers.due(key) is None for key in taken)


def test_what_is_set_while_due_ones_are_taken_waits_its_turn() -> None:
    timers: Timers[tuple[int, bytes]] = Timers()
    timers.set((0, b"a"), 5)
    seen = []
    for key in timers.take_due(10):
        seen.append(key)
        if len(seen) < 3:
            timers.set((len(seen), b"a"), 7)
        timers.set((9, b"later"), 99)
    assert seen == [(0, b"a"), (1, b"a"), (2, b"a")]
    assert timers.next_ms() == 99
