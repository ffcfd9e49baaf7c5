"""A coordinator killed at every named place, mid-job: nothing that was acknowledged is lost.

Once a place here; `make crash` kills at each of them 25 times.
"""

from __future__ import annotations

import pytest

from support.crash import campaign
from support.failpoints import FAILPOINTS


@pytest.mark.timeout(400)
async def test_killed_at_every_place() -> None:
    stories = await campaign(list(FAILPOINTS), range(1))
    assert not {story.name: story.problems for story in stories if story.problems}
    never = [story.name for story in stories if not story.kills]
    assert len(FAILPOINTS) >= 20
    assert not never, "the story does not get there"
