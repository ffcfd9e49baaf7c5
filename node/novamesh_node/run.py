"""One attempt at work on this node, and the same attempt as its own client may follow it.

A run is owned by the desk; an attempt is what others are shown of it, or of an answer that ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from novamesh_node.admission import Admitted
from novamesh_node.answer import Answer
from novamesh_node.crew import Served, Station
from novamesh_node.delivery import Delivery
from novamesh_node.worker import Ticket
from novamesh_proto.envelope import Verified
from novamesh_proto.messages import JobAssignment, JobTerms


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt here; `answer` is None until its body was opened."""

    terms: Verified[JobTerms]
    assignment: Verified[JobAssignment]
    delivery: Delivery
    answer: Answer | None
    running: bool

    @property
    def number(self) -> int:
        """Which attempt at its job it is."""
        return self.assignment.message.attempt


@dataclass(slots=True)
class Run:
    """An attempt at work."""

    admitted: Admitted
    station: Station
    delivery: Delivery
    task: asyncio.Task[None] | None = None
    served: Served | None = None
    ticket: Ticket | None = None
    answer: Answer | None = None

    @property
    def seen(self) -> Attempt:
        """What its client may follow."""
        work = self.admitted
        return Attempt(work.terms, work.assignment, self.delivery, self.answer, True)

    def end(self, *, counts: bool) -> None:
        """End it: with last chunk and claim if what it sent counts, else silently."""
        if counts and self.ticket is not None and self.served is not None:
            self.served.worker.abort(self.ticket)
        else:
            self.stop()

    def stop(self) -> None:
        """End its task without another word."""
        if self.task is not None:
            self.task.cancel()
