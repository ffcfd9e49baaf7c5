"""The network: who reaches whom, how late, and what gets lost. Seeded; bytes are carried by `rpc`.

A call may lose its request or its reply, come twice, or overtake another one. A stream keeps its
order, as TCP does, or breaks. A cut holds what is under way in one direction back; connections that
are cut for KEEPALIVE_S break at both ends. Whoever wakes up at another address has no connection
any more, and neither end knows before a ping of STRAY_S is not answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Protocol

KEEPALIVE_S = 40.0
STRAY_S = 22.0  # a node pings every 12 s and waits for 10
WIRE = Context()
"""What is under way belongs to no process: it arrives although its sender was stopped."""


class Breakable(Protocol):
    """A stream between two parties."""

    ends: tuple[str, str]

    def snap(self, dead: str = "") -> None:
        """The connection is gone; `dead` names the end that was killed."""
        ...

    def resume(self) -> None:
        """A cut was mended: what was held back arrives."""
        ...

    def stray(self) -> None:
        """Nothing arrives any more at either end, and nobody is told."""
        ...


@dataclass
class Weather:
    """How bad it is; every share is a probability a message or call."""

    delay_s: tuple[float, float] = (0.001, 0.02)
    lost: float = 0.0
    twice: float = 0.0
    slow: float = 0.0  # a message that takes seconds
    snaps: float = 0.0  # a stream that breaks at a message


@dataclass
class Network:
    """All links; `cuts` holds directed pairs of names that nothing passes."""

    loop: asyncio.AbstractEventLoop
    rng: random.Random
    note: Callable[[str], None]
    weather: Weather = field(default_factory=Weather)
    cuts: dict[tuple[str, str], float] = field(default_factory=dict)
    streams: list[Breakable] = field(default_factory=list)
    moves: dict[str, int] = field(default_factory=dict)  # how often a party changed its address

    def chance(self, share: float) -> bool:
        """Whether something of that probability happens."""
        return share > 0 and self.rng.random() < share

    def delay(self) -> float:
        """How long one message takes."""
        if self.chance(self.weather.slow):
            return self.rng.uniform(0.5, 4.0)
        return self.rng.uniform(*self.weather.delay_s)

    def reaches(self, source: str, target: str) -> bool:
        """Whether anything passes in that direction now."""
        return (source, target) not in self.cuts

    def cut(self, source: str, target: str, seconds: float) -> None:
        """Nothing passes in that direction for a while."""
        until = self.loop.time() + seconds
        self.cuts[source, target] = until
        self.note(f"cut {source} → {target} for {seconds:.1f} s")
        self.loop.call_later(KEEPALIVE_S, self._notice, source, target, until)
        self.loop.call_later(seconds, self.mend, source, target, until)

    def mend(self, source: str, target: str, until: float | None = None) -> None:
        """Everything passes again, unless a newer cut holds on."""
        if until is not None and self.cuts.get((source, target)) != until:
            return
        if self.cuts.pop((source, target), None) is not None:
            self.note(f"mended {source} → {target}")
            for stream in [s for s in self.streams if {source, target} == set(s.ends)]:
                stream.resume()

    def drop(self, name: str) -> None:
        """Every connection of a party breaks; the party lives on."""
        for stream in [s for s in self.streams if name in s.ends]:
            stream.snap()

    def silence(self, name: str) -> None:
        """A party was killed: every connection it had breaks."""
        for stream in [s for s in self.streams if name in s.ends]:
            stream.snap(name)

    def move(self, name: str) -> None:
        """A party has another address: what it had open leads nowhere."""
        self.moves[name] = self.moves.get(name, 0) + 1
        for stream in [s for s in self.streams if name in s.ends]:
            self.lose(stream)

    def lose(self, stream: Breakable) -> None:
        """A connection that leads nowhere, until its ends notice."""
        stream.stray()
        self.loop.call_later(STRAY_S, stream.snap, context=WIRE)

    def clear(self) -> None:
        """Fine weather and no cuts."""
        self.weather = Weather()
        for source, target in list(self.cuts):
            self.mend(source, target)

    def _notice(self, source: str, target: str, until: float) -> None:
        if self.cuts.get((source, target)) == until:
            for stream in [s for s in self.streams if {source, target} == set(s.ends)]:
                stream.snap()
