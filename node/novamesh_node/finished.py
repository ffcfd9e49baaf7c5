"""Attempts that ended lately, kept because what they ended in may have been lost on its way.

Rules: bounded in number, bytes and time; the oldest goes first. What was asked of this node alone
is kept apart from the pool's work. One that ended before its answer began is kept for its client
alone, who may not have asked yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from novamesh_node.admission import Admitted
from novamesh_node.answer import Answer
from novamesh_node.attempt import AttemptKey
from novamesh_node.delivery import Delivery
from novamesh_proto.limits import MIB, TAIL_KEPT_MS

FINISHED_MAX: Final = 192
FINISHED_BYTES_MAX: Final = 64 * MIB
ALONE_MAX: Final = 64  # of work that was asked of this node alone
ALONE_BYTES_MAX: Final = 16 * MIB
FINISHED_MS: Final = TAIL_KEPT_MS  # a coordinator may be away for as long


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended at a monotonic time, its answer if it had one, and its delivery."""

    admitted: Admitted
    answer: Answer | None
    delivery: Delivery
    at_ms: int


@dataclass(slots=True)
class Finished:
    """Attempts that ended lately, oldest first."""

    number_max: int = FINISHED_MAX
    bytes_max: int = FINISHED_BYTES_MAX
    kept: dict[AttemptKey, Ended] = field(default_factory=dict)

    def add(self, ended: Ended) -> None:
        """Keep one more."""
        self.kept[ended.admitted.key] = ended
        while len(self.kept) > self.number_max or self._bytes() > self.bytes_max:
            del self.kept[next(iter(self.kept))]

    def fresh(self, now_ms: int) -> dict[AttemptKey, Ended]:
        """Those that still count."""
        old = [key for key, each in self.kept.items() if now_ms - each.at_ms > FINISHED_MS]
        for key in old:
            del self.kept[key]
        return dict(self.kept)

    def _bytes(self) -> int:
        return sum(each.answer.tail.size for each in self.kept.values() if each.answer is not None)
