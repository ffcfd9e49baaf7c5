"""Where a node is in its life, as a pure state machine: events in, effects out.

starting → idle ⇄ working, either ⇄ paused, any → draining → stopped. Rules: the phase is computed
from a few facts and never stored; `now_ms` is the wall clock, because an owner who says "for two
hours" means that clock; a drain is bounded and a second interrupt ends it at once. Whether a job
may come in is the governor's business; what an effect does is the daemon's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

DRAIN_MS: Final = 60_000  # how long a stop waits for the work at hand


class Phase(StrEnum):
    """What an owner sees."""

    STARTING = "starting"
    IDLE = "idle"
    WORKING = "working"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class State:
    """The facts. `resumes_at_ms` 0: until told; `deadline_ms` 0: until the work is done."""

    ready: bool = False
    running: int = 0
    paused: bool = False
    resumes_at_ms: int = 0
    draining: bool = False
    deadline_ms: int = 0
    stopped: bool = False

    @property
    def phase(self) -> Phase:
        """The one word for these facts."""
        if self.stopped:
            return Phase.STOPPED
        if self.draining:
            return Phase.DRAINING
        if not self.ready:
            return Phase.STARTING
        if self.paused:
            return Phase.PAUSED
        return Phase.WORKING if self.running else Phase.IDLE

    @property
    def next_ms(self) -> int:
        """When a Tick will change something; 0 for never."""
        return self.deadline_ms if self.draining else self.resumes_at_ms * self.paused


@dataclass(frozen=True, slots=True)
class Loaded:
    """Models are loaded and the machine is known."""


@dataclass(frozen=True, slots=True)
class Took:
    """An attempt was accepted."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt ended, one way or another."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner wants no new work until `until_ms` (0: until resumed); `now`: nor the present."""

    until_ms: int = 0
    now: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """The owner allows work again; it also calls off a finish."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the work at hand however long it takes, then stop."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the work at hand within DRAIN_MS, then stop; a second time: at once."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Loaded | Took | Ended | Pause | Resume | Finish | Stop | Tick


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the pool how much more this node takes."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up every attempt at work, telling the pool."""


@dataclass(frozen=True, slots=True)
class Halt:
    """End the process; nothing is at work any more."""


Effect = Announce | Abandon | Halt


def step(state: State, event: Event, now_ms: int) -> tuple[State, tuple[Effect, ...]]:
    """The next state and what to do about it. Once stopped, nothing changes."""
    if state.stopped:
        return state, ()
    after = _apply(state, event, now_ms)
    effects: list[Effect] = []
    if after != state:
        effects.append(Announce())
    if isinstance(event, Pause) and event.now and after.running:
        effects.append(Abandon())
    if after.draining and _must_stop(state, after, event, now_ms):
        if after.running:
            effects.append(Abandon())
        effects.append(Halt())
        after = replace(after, stopped=True)
    return after, tuple(effects)


def _apply(state: State, event: Event, now_ms: int) -> State:
    match event:
        case Loaded():
            return replace(state, ready=True)
        case Took():
            return replace(state, running=state.running + 1)
        case Ended():
            return replace(state, running=max(0, state.running - 1))
        case Pause(until_ms=until):
            return replace(state, paused=True, resumes_at_ms=until)
        case Resume():
            return replace(state, paused=False, resumes_at_ms=0, draining=False, deadline_ms=0)
        case Finish():
            return state if state.draining else replace(state, draining=True)
        case Stop():
            deadline = state.deadline_ms or now_ms + DRAIN_MS
            return replace(state, draining=True, deadline_ms=deadline)
        case Tick():
            over = state.paused and 0 < state.resumes_at_ms <= now_ms
            return replace(state, paused=False, resumes_at_ms=0) if over else state


def _must_stop(before: State, after: State, event: Event, now_ms: int) -> bool:
    """Nothing is left to do, the time is up, or a second stop came."""
    again = isinstance(event, Stop) and before.draining and before.deadline_ms > 0
    late = 0 < after.deadline_ms <= now_ms
    return again or late or not after.running
