"""Who comes and goes leaves nothing behind.

A part of `benchmarks/mesh.py churn`, whose 400 visitors take minutes, most of them waiting.
"""

from __future__ import annotations

from pathlib import Path

import trio

from support.mesh_churn import SLACK, come_and_go

VISITORS = 32
MEMORY_SLACK = 16 << 20  # the visitors' own memory is in the same process


def test_visitors_leave_nothing_behind(tmp_path: Path) -> None:
    readings, left = trio.run(come_and_go, tmp_path, VISITORS)
    settled, last = readings[len(readings) // 4], readings[-1]
    assert left == 0
    assert last.tasks <= settled.tasks + SLACK
    assert last.descriptors <= settled.descriptors + SLACK
    assert last.memory_bytes <= settled.memory_bytes + MEMORY_SLACK
