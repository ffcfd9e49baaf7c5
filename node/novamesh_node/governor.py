"""What the owner allows right now: one pure function that everybody asks.

The answer goes to the pool as the node's load, and admission refuses by it whoever asks. Rules: no
clock and no sensor is read here; a reason is a sentence for people and never names a job; the time
in it is UTC and says so, since strangers read it, but on the owner's own screens.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from novamesh_node.lifecycle import Phase, State


@dataclass(frozen=True, slots=True)
class Readings:
    """What the rules look at: where the node is in its life, and the slots its owner lends."""

    state: State
    slots: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """How many more jobs may come in, whether any may, and why not."""

    free_slots: int
    accepting: bool
    reason: str = ""


def allow(now_ms: int, readings: Readings, zone: tzinfo | None = UTC) -> Ruling:
    """What this node takes at wall clock `now_ms`; `zone` None words times as this machine's."""
    free = max(0, readings.slots - readings.state.running)
    match readings.state.phase:
        case Phase.STARTING:
            return Ruling(0, accepting=False, reason="the node is starting")
        case Phase.PAUSED:
            return _paused(now_ms, readings.state, free, zone)
        case Phase.DRAINING | Phase.STOPPED:
            return Ruling(0, accepting=False, reason="the node finishes its work and stops")
        case Phase.IDLE | Phase.WORKING:
            return Ruling(free, accepting=True)


def moment(at_ms: int, now_ms: int, zone: tzinfo | None) -> str:
    """A wall clock time for people: 14:05 UTC, with its date on another day; None: local time."""
    at, now = (datetime.fromtimestamp(ms / 1000, zone) for ms in (at_ms, now_ms))
    text = f"{at:%H:%M}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"
    return f"{text} UTC" if zone is UTC else text


def _paused(now_ms: int, state: State, free: int, zone: tzinfo | None) -> Ruling:
    if 0 < state.resumes_at_ms <= now_ms:
        return Ruling(free, accepting=True)
    until = f" until {moment(state.resumes_at_ms, now_ms, zone)}" if state.resumes_at_ms else ""
    return Ruling(0, accepting=False, reason=f"the owner paused this node{until}")
