"""Nodes killed every few seconds while answers stream: each answer is whole, none is paid twice.

A few jobs here; `make chaos` has two hundred done.
"""

from __future__ import annotations

import pytest

from support.chaos import Chaos


@pytest.mark.timeout(400)
async def test_nodes_die_all_the_time_and_every_answer_is_whole() -> None:
    done = await Chaos(jobs=16, every_s=4.0).run()
    assert done.problems == [], done.figures
    assert done.kills >= 2
    assert done.complete == len(done.wishes) == 16, done.figures
