"""The one owner of a running node's lifecycle: feeds it events and carries out its effects.

Everybody who changes or asks where the node is in its life does so here: desk, signals, control
socket, ticker. Rules: on the loop only; the machine itself is `lifecycle`, what it means for work
is `governor`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, tzinfo

import structlog

from novamesh_node import lifecycle
from novamesh_node.clock import Clock
from novamesh_node.governor import Readings, Ruling, allow
from novamesh_proto.messages import NodeLoad

_log = structlog.get_logger()


@dataclass(slots=True)
class Hands:
    """What carries out effects; set once session and desk exist."""

    announce: Callable[[], None] = lambda: None
    abandon: Callable[[], None] = lambda: None


Watch = Callable[[lifecycle.State, lifecycle.State], None]


def _unwatched(before: lifecycle.State, after: lifecycle.State) -> None:
    """Nobody sits at this node's terminal."""


class Keeper:
    """Where the node is, and what follows from it. `watch` hears of every change, after it."""

    def __init__(
        self, slots: int, clock: Clock, state: lifecycle.State, watch: Watch = _unwatched
    ) -> None:
        self.slots = slots
        self._clock = clock
        self._watch = watch
        self.state = state
        self.hands = Hands()
        self.halted = asyncio.Event()
        self.taken = 0  # attempts admitted in this process's life

    def ruling(self, zone: tzinfo | None = UTC) -> Ruling:
        """What may come in now; `zone` None for the owner's own screen."""
        return allow(self._clock.wall_ms(), Readings(self.state, self.slots), zone)

    def load(self) -> NodeLoad:
        """The ruling as the pool is told it."""
        ruling = self.ruling()
        return NodeLoad(ruling.free_slots, ruling.accepting, ruling.reason)

    def lend(self, slots: int) -> None:
        """So many slots there are from now on; the pool is told."""
        before, self.slots = self.slots, slots
        if slots != before:
            self.hands.announce()

    def took(self) -> None:
        """An attempt was admitted."""
        self.taken += 1
        self.apply(lifecycle.Took())

    def ended(self) -> None:
        """An attempt ended."""
        self.apply(lifecycle.Ended())

    def apply(self, event: lifecycle.Event) -> None:
        """Let something happen."""
        before = self.state
        self.state, effects = lifecycle.step(before, event, self._clock.wall_ms())
        if self.state.phase is not before.phase:
            _log.debug("phase", now=self.state.phase.value, before=before.phase.value)
        for effect in effects:
            match effect:
                case lifecycle.Announce():
                    self.hands.announce()
                case lifecycle.Abandon():
                    self.hands.abandon()
                case lifecycle.Halt():
                    self.halted.set()
        if self.state != before:
            self._watch(before, self.state)
