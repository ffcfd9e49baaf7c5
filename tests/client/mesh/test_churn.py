"""Who comes and goes leaves nothing behind; `benchmarks/mesh.py churn` is the whole."""

from __future__ import annotations

from pathlib import Path

import trio

from support.mesh_churn import come_and_go

VISITORS = 16
SLACK = 4  # a task or a file that is just about to end


def test_visitors_leave_nothing_behind(tmp_path: Path) -> None:
    readings, left = trio.run(come_and_go, tmp_path, VISITORS)
    first, last = readings[0], readings[-1]
    assert left == 0
    assert last.tasks <= first.tasks + SLACK
    assert last.descriptors <= first.descriptors + SLACK
