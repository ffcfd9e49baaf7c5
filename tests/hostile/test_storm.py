"""Some thousand hostile messages to a real coordinator: each gets its own refusal, and no more.

`make hostile MESSAGES=100000` sends more of them.
"""

from __future__ import annotations

import pytest

from support.hostile.shots import KINDS
from support.hostile.storm import GROWTH_BYTES_MAX, storm
from support.hostile.streams import STREAM_KINDS

MESSAGES = 4_000


@pytest.mark.timeout(400)
async def test_every_message_gets_its_own_refusal_and_honest_jobs_are_answered() -> None:
    seen = await storm(MESSAGES, seed=1)
    assert not seen.problems
    assert seen.sent >= MESSAGES
    assert {kind for kind, _ in seen.came_back} == {
        *KINDS,
        *(f"Attach {kind}" for kind in STREAM_KINDS),
    }
    assert seen.jobs >= 2
    assert seen.growth_bytes <= GROWTH_BYTES_MAX
