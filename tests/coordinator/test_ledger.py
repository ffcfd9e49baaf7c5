"""The ledger: standings and paid positions, from records only."""

from __future__ import annotations

import pytest

from novamesh_coordinator.events import AttemptEnded, AttemptSettled
from novamesh_coordinator.ledger import SPEEDS_KEPT, Ledger, LedgerState, Standing
from novamesh_proto.messages import JobId, JobState, ProfileDigest
from support.parties import NODE
from support.story import tell

ROOT, PROFILE, OTHER = JobId(bytes(32)), ProfileDigest(b"p" * 32), ProfileDigest(b"o" * 32)
SEALED = tell().settlement.envelope


def settled(
    start: int, tokens: int, speed: int = 0, outcome: JobState = JobState.SETTLED
) -> AttemptSettled:
    return AttemptSettled(
        ROOT, 0, 1, 1, NODE.node_id, outcome, start, 10, tokens, speed, SEALED, SEALED, SEALED
    )


def test_settlements_add_up() -> None:
    ledger = Ledger(LedgerState())
    ledger.settle(settled(0, 5, 40_000), ROOT, PROFILE)
    ledger.settle(settled(5, 3, 60_000), ROOT, PROFILE)
    ledger.settle(settled(8, 0, outcome=JobState.CANCELLED), ROOT, PROFILE)
    standing = ledger.standing(NODE.node_id)
    assert (standing.jobs_settled, standing.tokens_settled) == (2, 8)
    assert standing.speed(PROFILE) == pytest.approx(50.0)
    assert standing.speed(OTHER) == 0.0
    assert standing.overall_speed() == pytest.approx(50.0)
    assert ledger.paid_until(ROOT) == 8
    assert (ledger.jobs_settled, ledger.prompt_tokens, ledger.completion_tokens) == (2, 30, 8)
    assert Ledger(ledger.dump()).dump() == ledger.dump()


def test_answers_stay_in_the_order_in_which_they_were_first_paid() -> None:
    ledger = Ledger(LedgerState())
    roots = [JobId(bytes([n]) * 32) for n in (9, 3, 7)]
    for start, root in [(0, root) for root in roots] + [(5, roots[1])]:
        ledger.settle(settled(start, 5), root, PROFILE)
    assert ledger.dump().paid == ((roots[0], 5), (roots[1], 10), (roots[2], 5))
    ledger = Ledger(ledger.dump())
    ledger.forget(roots[0])
    ledger.settle(settled(0, 1), roots[0], PROFILE)
    assert [root for root, _ in ledger.dump().paid] == [roots[1], roots[2], roots[0]]


def test_a_position_paid_twice_is_a_bug() -> None:
    ledger = Ledger(LedgerState())
    ledger.settle(settled(0, 5), ROOT, PROFILE)
    with pytest.raises(AssertionError):
        ledger.settle(settled(4, 2), ROOT, PROFILE)


def test_only_the_newest_speeds_count() -> None:
    standing = Standing(NODE.node_id)
    for speed in range(1, 100):
        standing = standing.with_speed(PROFILE, speed * 1000)
    standing = standing.with_speed(OTHER, 5)
    (speeds, _) = standing.speeds
    assert len(speeds.milli_tokens_per_s) == SPEEDS_KEPT
    assert standing.speed(PROFILE) == pytest.approx(91.5)


def test_lost_attempts_count_and_answers_are_forgotten() -> None:
    ledger = Ledger(LedgerState())
    ledger.lose(AttemptEnded(ROOT, 0, 1, 1, NODE.node_id, "node_lost", "", True))
    assert ledger.standing(NODE.node_id).jobs_lost == 1
    ledger.settle(settled(0, 5), ROOT, PROFILE)
    ledger.forget(ROOT)
    ledger.forget(ROOT)
    assert ledger.paid_until(ROOT) == 0
