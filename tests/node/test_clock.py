"""The clocks: units agree."""

from __future__ import annotations

import time

from novamesh_node.clock import Clock


def test_monotonic_milliseconds_are_nanoseconds_cut() -> None:
    assert Clock(monotonic_ns=lambda: 1_999_999).monotonic_ms() == 1


def test_the_wall_clock_is_the_systems() -> None:
    assert abs(Clock().wall_ms() - time.time() * 1000) < 1000
