"""Who comes alone does not wait; a crowd goes together."""

from __future__ import annotations

import pytest

from novamesh_coordinator.group_commit import BURST, GATHER_S, STEPS_PER_S, GroupCommit


def test_the_first_and_the_lonely_do_not_wait() -> None:
    group = GroupCommit()
    assert group.pause_s(0.0) == 0.0
    for number in range(100):
        now_s = number / STEPS_PER_S * 2
        assert group.pause_s(now_s) == 0.0
        group.begin(1, now_s)


def test_a_burst_does_not_wait_and_a_crowd_does() -> None:
    group = GroupCommit()
    for _ in range(int(BURST)):
        group.begin(1, 1.0)
        assert group.pause_s(1.0) == 0.0
    group.begin(1, 1.0)
    assert group.pause_s(1.0) == pytest.approx(GATHER_S)
    assert group.pause_s(1.0 + GATHER_S / 2) < GATHER_S
    assert group.pause_s(1.0 + GATHER_S) == 0.0


def test_once_it_is_quiet_nobody_waits() -> None:
    group = GroupCommit()
    group.begin(1_000, 1.0)
    assert group.pause_s(1.0) > 0
    group.begin(1, 1.0 + 1_000 / STEPS_PER_S)
    assert group.pause_s(1.0 + 1_000 / STEPS_PER_S) == 0.0
