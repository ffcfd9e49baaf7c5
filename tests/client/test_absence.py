"""A coordinator that was away is asked seldom and shortly, and gets new work once it answers."""

from __future__ import annotations

import asyncio
import itertools

from novamesh.absence import PAUSE_S, PAUSE_S_MAX, Absence
from novamesh.clock import Clock
from support.clock import ManualClock


class _Coordinator:
    def __init__(self) -> None:
        self.here = False
        self.asked = 0

    async def answers(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        return self.here


def _absence(there: _Coordinator, clock: ManualClock) -> Absence:
    return Absence(there.answers, Clock(clock.now_ms, clock.monotonic))


async def test_whoever_was_never_away_is_not_asked() -> None:
    there = _Coordinator()
    assert await _absence(there, ManualClock()).over()
    assert there.asked == 0


async def test_it_is_asked_after_pauses_that_grow_to_a_bound() -> None:
    there, clock = _Coordinator(), ManualClock()
    absence = _absence(there, clock)
    absence.begin()
    asked_s = []
    for _ in range(400):
        before = there.asked
        assert not await absence.over()
        if there.asked > before:
            asked_s.append(clock.monotonic())
        clock.advance(0.25)
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked_s)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * PAUSE_S, PAUSE_S_MAX)
    assert len(asked_s) <= 15


async def test_many_that_lose_it_at_once_wait_no_longer_than_one() -> None:
    there, clock = _Coordinator(), ManualClock()
    absence = _absence(there, clock)
    for _ in range(50):
        absence.begin()
    clock.advance(PAUSE_S)
    assert not await absence.over()
    for _ in range(50):
        absence.begin()
    assert there.asked == 1
    there.here = True
    clock.advance(2 * PAUSE_S)
    assert await absence.over()


async def test_once_it_answers_it_is_there_again() -> None:
    there, clock = _Coordinator(), ManualClock()
    absence = _absence(there, clock)
    absence.begin()
    there.here = True
    assert not await absence.over(), "so soon nobody asks"
    clock.advance(PAUSE_S)
    assert all(await asyncio.gather(*[absence.over() for _ in range(20)]))
    assert there.asked == 1
    absence.begin()
    clock.advance(PAUSE_S)
    assert await absence.over(), "the pause begins anew with each absence"
