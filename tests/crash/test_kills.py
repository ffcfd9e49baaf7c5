"""Nodes and clients killed with SIGKILL mid-job: everybody is answered, and the log agrees.

A few jobs here; `make crash` kills somebody every two seconds during two hundred.
"""

from __future__ import annotations

import pytest

from support.kills import Massacre


@pytest.mark.timeout(400)
async def test_members_die_and_everybody_is_answered() -> None:
    story = await Massacre(seed=1, nodes=3, clients=2, wishes=5, every_s=0.5).run()
    assert not story.problems
    assert story.kills["node"]
    assert story.kills["client"]
