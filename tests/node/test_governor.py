"""What the owner's rules allow in each phase."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from novamesh_node.governor import Readings, allow, moment
from novamesh_node.lifecycle import State

NOW = 1_800_000_000_000


def rule(slots: int = 4, **facts: object) -> tuple[int, bool, str]:
    state = State(**{"ready": True, **facts})  # type: ignore[arg-type]
    ruling = allow(NOW, Readings(state, slots))
    return ruling.free_slots, ruling.accepting, ruling.reason


def test_free_slots_are_what_is_not_at_work() -> None:
    assert rule() == (4, True, "")
    assert rule(running=3) == (1, True, "")
    assert rule(running=9) == (0, True, "")


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"ready": False}, "starting"),
        ({"paused": True}, "paused"),
        ({"draining": True, "running": 1}, "finishes"),
        ({"stopped": True}, "finishes"),
    ],
)
def test_nothing_comes_in_otherwise_and_the_reason_is_given(
    facts: dict[str, object], word: str
) -> None:
    free, accepting, reason = rule(**facts)
    assert (free, accepting) == (0, False)
    assert word in reason


def test_a_pause_that_is_over_counts_no_more() -> None:
    assert rule(paused=True, resumes_at_ms=NOW) == (4, True, "")
    assert "until" in rule(paused=True, resumes_at_ms=NOW + 1)[2]


def test_strangers_are_told_the_time_in_utc() -> None:
    reason = rule(paused=True, resumes_at_ms=NOW + 60_000)[2]
    assert reason.endswith(f" until {datetime.fromtimestamp(NOW / 1000 + 60, UTC):%H:%M} UTC")
    here = allow(NOW, Readings(State(ready=True, paused=True, resumes_at_ms=NOW + 60_000), 1), None)
    assert here.reason.endswith(f" until {datetime.fromtimestamp(NOW / 1000 + 60):%H:%M}")


def test_another_day_is_named() -> None:
    at_ms = int(datetime(2026, 3, 1, 23, 30, tzinfo=UTC).timestamp() * 1000)
    assert moment(at_ms, at_ms - 60_000, UTC) == "23:30 UTC"
    assert moment(at_ms, at_ms - 86_400_000, UTC) == "2026-03-01 23:30 UTC"
    assert moment(at_ms, at_ms - 60_000, timezone(timedelta(hours=2))) == "01:30"
