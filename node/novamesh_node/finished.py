"""Answers that ended lately, kept because their attestation may have been lost on its way.

Rules: bounded in number, bytes and time; the oldest goes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from novamesh_node.answer import Answer
from novamesh_node.attempt import AttemptKey
from novamesh_node.delivery import Delivery
from novamesh_proto.limits import MIB, TAIL_KEPT_MS

FINISHED_MAX: Final = 192
FINISHED_BYTES_MAX: Final = 64 * MIB
FINISHED_MS: Final = TAIL_KEPT_MS  # a coordinator may be away for as long


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that ended at a monotonic time, and how it was delivered."""

    answer: Answer
    delivery: Delivery
    at_ms: int


@dataclass(slots=True)
class Finished:
    """Answers that ended lately, oldest first."""

    kept: dict[AttemptKey, Ended] = field(default_factory=dict)

    def add(self, answer: Answer, delivery: Delivery, now_ms: int) -> None:
        """Keep one more."""
        self.kept[answer.key] = Ended(answer, delivery, now_ms)
        while len(self.kept) > FINISHED_MAX or self._bytes() > FINISHED_BYTES_MAX:
            del self.kept[next(iter(self.kept))]

    def fresh(self, now_ms: int) -> dict[AttemptKey, Ended]:
        """Those that still count."""
        old = [key for key, each in self.kept.items() if now_ms - each.at_ms > FINISHED_MS]
        for key in old:
            del self.kept[key]
        return dict(self.kept)

    def _bytes(self) -> int:
        return sum(each.answer.tail.size for each in self.kept.values())
