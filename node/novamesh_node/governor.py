"""What the owner allows right now: one pure function that everybody asks.

The answer goes to the pool as the node's load, and admission refuses by it whoever asks. Rules: no
clock and no sensor is read here; a reason is a sentence for people and never names a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

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


def allow(now_ms: int, readings: Readings) -> Ruling:
    """What this node takes at wall clock `now_ms`."""
    free = max(0, readings.slots - readings.state.running)
    match readings.state.phase:
        case Phase.STARTING:
            return Ruling(0, accepting=False, reason="the node is starting")
        case Phase.PAUSED:
            return _paused(now_ms, readings.state, free)
        case Phase.DRAINING | Phase.STOPPED:
            return Ruling(0, accepting=False, reason="the node finishes its work and stops")
        case Phase.IDLE | Phase.WORKING:
            return Ruling(free, accepting=True)


def _paused(now_ms: int, state: State, free: int) -> Ruling:
    if 0 < state.resumes_at_ms <= now_ms:
        return Ruling(free, accepting=True)
    until = ""
    if state.resumes_at_ms:
        moment = datetime.fromtimestamp(state.resumes_at_ms / 1000).astimezone()
        until = f" until {moment:%H:%M}"
    return Ruling(0, accepting=False, reason=f"the owner paused this node{until}")
