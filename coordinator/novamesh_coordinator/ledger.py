"""What was paid, and each node's record: the owner of settlements.

Rules: an attempt is settled once; each position of an answer is paid once, across all jobs that
continue it (they share a root); what is paid is `settlement.settle`'s decision alone. A node's
record (jobs settled, jobs lost, witnessed speeds) comes from records only. No prices, no credits.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Final

from novamesh_coordinator.events import AttemptEnded, AttemptSettled
from novamesh_proto.messages import JobId, JobState, NodeId, ProfileDigest

SPEEDS_KEPT: Final = 16
PROFILES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Speeds:
    """Witnessed decode speeds of one model on one node, newest last, thousandths of tokens/s."""

    model_profile: ProfileDigest
    milli_tokens_per_s: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """The record of a node."""

    node: NodeId
    jobs_settled: int = 0
    tokens_settled: int = 0
    jobs_lost: int = 0
    speeds: tuple[Speeds, ...] = ()

    def speed(self, profile: ProfileDigest) -> float:
        """Median of the last witnessed speeds of a model, tokens/s; 0 before the first."""
        for speeds in self.speeds:
            if speeds.model_profile == profile:
                return statistics.median(speeds.milli_tokens_per_s) / 1000
        return 0.0

    def overall_speed(self) -> float:
        """The same over all models."""
        all_speeds = [one for speeds in self.speeds for one in speeds.milli_tokens_per_s]
        return statistics.median(all_speeds) / 1000 if all_speeds else 0.0

    def with_speed(self, profile: ProfileDigest, milli_tokens_per_s: int) -> Standing:
        """The record with one more witnessed speed."""
        others = tuple(one for one in self.speeds if one.model_profile != profile)
        before = next((s.milli_tokens_per_s for s in self.speeds if s.model_profile == profile), ())
        now = Speeds(profile, (*before, milli_tokens_per_s)[-SPEEDS_KEPT:])
        return replace(self, speeds=(*others, now)[-PROFILES_KEPT:])


@dataclass(frozen=True, slots=True)
class LedgerState:
    """All of it, standings sorted.

    `paid` is, for each answer in the order of first payments, the first position still unpaid.
    """

    standings: tuple[Standing, ...] = ()
    paid: tuple[tuple[JobId, int], ...] = ()
    jobs_settled: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Ledger:
    """Standings and paid positions."""

    def __init__(self, state: LedgerState) -> None:
        self._standings = {standing.node: standing for standing in state.standings}
        self._paid = dict(state.paid)
        self.jobs_settled = state.jobs_settled
        self.prompt_tokens = state.prompt_tokens
        self.completion_tokens = state.completion_tokens

    def dump(self) -> LedgerState:
        """The state."""
        return LedgerState(
            tuple(self._standings[node] for node in sorted(self._standings)),
            tuple(self._paid.items()),
            self.jobs_settled,
            self.prompt_tokens,
            self.completion_tokens,
        )

    def standing(self, node: NodeId) -> Standing:
        """The record of a node; an empty one if it has none."""
        return self._standings.get(node) or Standing(node)

    def paid_until(self, root: JobId) -> int:
        """First position of an answer that is still unpaid."""
        return self._paid.get(root, 0)

    def settle(self, record: AttemptSettled, root: JobId, profile: ProfileDigest) -> None:
        """Book a settlement. Its positions were never paid before: the rule sees to that."""
        paid = self.paid_until(root)
        assert record.completion_tokens == 0 or record.start_position >= paid
        end = record.start_position + record.completion_tokens
        if record.completion_tokens:
            self._paid[root] = end
        standing = self.standing(record.node)
        finished = record.outcome is JobState.SETTLED
        standing = replace(
            standing,
            jobs_settled=standing.jobs_settled + finished,
            tokens_settled=standing.tokens_settled + record.completion_tokens,
        )
        if record.milli_tokens_per_s:
            standing = standing.with_speed(profile, record.milli_tokens_per_s)
        self._standings[record.node] = standing
        self.jobs_settled += finished
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens

    def lose(self, record: AttemptEnded) -> None:
        """Count a lost attempt against its node."""
        standing = self.standing(record.node)
        self._standings[record.node] = replace(standing, jobs_lost=standing.jobs_lost + 1)

    def forget(self, root: JobId) -> None:
        """No job of this answer is left, so nobody can claim a position of it again."""
        self._paid.pop(root, None)
