"""Attempts: assigned, renewed, lost, declined, cancelled, expired; each job ends once."""

from __future__ import annotations

import pytest

from novamesh_coordinator.effects import Assign, EndSession, Publish, StopAttempt
from novamesh_coordinator.events import AttemptSettled, EvidenceKept
from novamesh_proto.errors import Code
from novamesh_proto.messages import FinishReason, JobState
from support.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


def settlements(table: Table) -> list[AttemptSettled]:
    return [record for record in table.log if isinstance(record, AttemptSettled)]


def test_a_job_is_assigned_answered_and_settled(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    attempt = table.assigned(node)
    table.answer(attempt)
    view = table.view(client, order.id)
    assert (view.state, view.tokens, view.attempt) == (JobState.SETTLED, 3, 1)
    paid = settlements(table)[0]
    assert (paid.prompt_tokens, paid.completion_tokens, paid.node) == (20, 3, node.id)
    assert table.core.ledger.standing(node.id).jobs_settled == 1
    last = table.taken(Publish)[-1]
    kinds = [
        name
        for item in last.tail
        for name in ("attestation", "relay_receipt", "settlement")
        if getattr(item, name)
    ]
    assert kinds == ["attestation", "relay_receipt", "settlement"]


def test_a_node_that_declines_costs_one_attempt(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    table.decide(table.assigned(one), accepted=False, code="policy")
    second = table.assigned(two)
    assert second.ids["attempt"] == 2
    assert second.ids["fence"] > 1
    table.answer(second)
    assert table.view(client, order.id).state is JobState.SETTLED
    assert table.core.ledger.standing(one.id).jobs_lost == 0


def test_a_job_that_all_decline_fails_with_their_reason(table: Table) -> None:
    client, one, two, three = table.client(), *(table.node(n) for n in ("one", "two", "three"))
    order = table.order(client, one, two, three)
    table.decide(table.assigned(one), accepted=False)
    table.decide(table.assigned(two), accepted=False, code="policy")
    view = table.view(client, order.id)
    assert (view.state, view.code) == (JobState.FAILED, "policy")
    assert not [e for e in table.taken(Assign) if e.node == three.id]


def test_a_node_that_vanishes_before_its_first_token_is_replaced_at_once(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    table.decide(table.assigned(one))
    table.detach(one)
    second = table.assigned(two)
    table.answer(second)
    assert table.view(client, order.id).state is JobState.SETTLED
    assert table.core.ledger.standing(one.id).jobs_lost == 1


def test_without_another_candidate_a_vanished_node_has_its_lease_to_come_back(
    table: Table,
) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.detach(node)
    table.pass_time(10)
    assert table.view(client, order.id).state is JobState.RUNNING
    assert table.attach(node, (attempt.running,)) == (attempt.running,)
    table.answer(attempt)
    assert table.view(client, order.id).state is JobState.SETTLED


def test_after_a_restart_an_attempt_that_was_taken_is_not_begun_again(table: Table) -> None:
    """Its first tokens may have reached the client before: it would get them twice."""
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    attempt = table.assigned(one)
    table.decide(attempt)
    table.send(attempt, attempt.chunk())
    table.restart()
    table.attach(two)
    table.pass_time(60)
    view = table.view(client, order.id)
    assert (view.state, view.code, view.attempt) == (JobState.FAILED, "node_lost", 1)


def test_a_lease_that_nobody_renews_ends_the_attempt(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.decide(table.assigned(node))
    table.pass_time(14.9)
    assert table.view(client, order.id).state is JobState.RUNNING
    table.pass_time(0.2)
    view = table.view(client, order.id)
    assert (view.state, view.code) == (JobState.FAILED, "node_lost")
    assert table.taken(StopAttempt)[-1].code is Code.STALE


def test_prefill_renews_the_lease_only_while_it_moves(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    for done in (10, 20, 30):
        table.pass_time(10)
        table.progress(attempt, done)
    table.pass_time(10)
    table.progress(attempt, 30)
    table.pass_time(5.1)
    assert table.view(client, order.id).state is JobState.FAILED


def test_chunks_renew_the_lease_under_the_deadline(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    for _ in range(5):
        table.pass_time(10)
        table.send(attempt, attempt.chunk())
    table.pass_time(9.9)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    table.pass_time(0.2)
    view = table.view(client, order.id)
    assert (view.state, view.code, view.tokens) == (JobState.EXPIRED, "expired", 5)
    assert table.taken(StopAttempt)[-1].code is Code.EXPIRED


def test_a_node_lost_after_its_first_token_is_paid_up_to_its_last_checkpoint(
    table: Table,
) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    attempt = table.assigned(one)
    table.decide(attempt)
    for _ in range(3):
        table.send(attempt, attempt.chunk(2))
    table.checkpoint(attempt)
    table.send(attempt, attempt.chunk(2))
    table.detach(one)
    assert not table.taken(Assign)
    table.pass_time(4.9)
    assert table.view(client, order.id).state is JobState.RUNNING
    table.pass_time(0.2)
    view = table.view(client, order.id)
    assert (view.state, view.code) == (JobState.FAILED, "node_lost")
    paid = settlements(table)[0]
    assert (paid.outcome, paid.completion_tokens, paid.prompt_tokens) == (JobState.FAILED, 6, 0)


def test_an_old_fence_earns_nothing_and_is_kept_as_evidence(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    old = table.assigned(one)
    table.decide(old)
    table.detach(one)
    new = table.assigned(two)
    table.attach(one, (old.running,))
    table.send(old, old.chunk(final=True))
    assert table.taken(StopAttempt)[-1].fence == old.ids["fence"]
    table.attest(old)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    table.answer(new)
    table.attest(old)
    assert [paid.node for paid in settlements(table)] == [two.id]
    kept = [record for record in table.log if isinstance(record, EvidenceKept)]
    assert [(record.kind, record.issuer) for record in kept] == [("late_attestation", one.id)] * 2


def test_a_second_attestation_settles_nothing(table: Table) -> None:
    client, node = table.client(), table.node()
    table.order(client, node)
    attempt = table.assigned(node)
    table.answer(attempt)
    table.attest(attempt)
    assert len(settlements(table)) == 1


def test_cancel_stops_the_node_and_pays_what_it_did(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.send(attempt, attempt.chunk(2))
    assert table.cancel(client, order.id).state is JobState.CANCELLED
    assert table.taken(StopAttempt)[-1].code is Code.CANCELLED
    table.send(attempt, attempt.chunk(2, final=True))  # was on its way
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    paid = settlements(table)[0]
    assert (paid.outcome, paid.completion_tokens) == (JobState.CANCELLED, 2)
    assert table.view(client, order.id).state is JobState.CANCELLED
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    assert len(settlements(table)) == 1
    assert table.cancel(client, order.id).state is JobState.CANCELLED


@pytest.mark.parametrize(
    "lie",
    [
        {"chain_head": bytes(32)},
        {"chunks": 9},
        {"completion_tokens": 500},
        {"model_profile": bytes(32)},
        {"start_position": 1},
    ],
)
def test_an_attestation_that_does_not_fit_fails_the_job(
    table: Table, lie: dict[str, object]
) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt, attempt.attest(table.now_ms, **lie))
    assert table.view(client, order.id).state is JobState.FAILED
    assert not settlements(table)
    assert table.core.ledger.standing(node.id).jobs_lost == 1


def test_a_chunk_out_of_order_ends_the_attempt(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.send(attempt, attempt.chunk())
    attempt.chunk()
    table.send(attempt, attempt.chunk())
    view = table.view(client, order.id)
    assert (view.state, view.code) == (JobState.FAILED, "corrupt")


def test_a_chunk_sent_again_is_ignored(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    first = attempt.chunk()
    table.send(attempt, first)
    table.send(attempt, first)
    assert table.view(client, order.id).tokens == 1


def test_an_answer_above_the_terms_is_cut(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(150))
    table.send(attempt, attempt.chunk(51))
    view = table.view(client, order.id)
    assert (view.state, view.code) == (JobState.FAILED, "corrupt")


def test_a_checkpoint_of_another_chain_ends_the_attempt(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk())
    table.checkpoint(attempt, chain_head=bytes(32))
    assert table.view(client, order.id).code == "corrupt"


def test_a_failure_before_the_first_token_goes_to_another_node(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    table.order(client, one, two)
    first = table.assigned(one)
    table.decide(first)
    table.fail(first)
    assert table.assigned(two).ids["attempt"] == 2


def test_an_attestation_of_an_unfinished_answer_pays_its_part(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.send(attempt, attempt.chunk(3, final=True))
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.FAILED))
    assert table.view(client, order.id).state is JobState.FAILED
    assert settlements(table)[0].completion_tokens == 3


def test_a_newer_session_wins_and_the_old_one_is_told(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    old = table.sessions[node.id]
    assert table.attach(node, (attempt.running,)) == (attempt.running,)
    goodbye = table.taken(EndSession)[0]
    assert (goodbye.session, goodbye.code) == (old, Code.STALE)
    table.answer(attempt)
    assert table.view(client, order.id).state is JobState.SETTLED


def test_a_node_that_comes_back_without_the_attempt_gets_a_new_one(table: Table) -> None:
    client, node = table.client(), table.node(slots=1)
    order = table.order(client, node)
    old = table.assigned(node)
    table.decide(old)
    assert table.attach(node) == ()
    new = table.assigned(node)
    assert (new.ids["attempt"], new.ids["fence"] > old.ids["fence"]) == (2, True)
    table.answer(new)
    assert table.view(client, order.id).state is JobState.SETTLED


def test_a_running_attempt_survives_a_restart_of_the_coordinator(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    table.send(attempt, attempt.chunk())
    table.send(attempt, attempt.chunk())
    table.restart()
    table.clock.advance(5)
    resumed = table.attach(node, (attempt.running,))
    assert [(run.job, run.chunks) for run in resumed] == [(order.id, 0)]
    for chunk in attempt.sent:
        table.send(attempt, chunk)
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    view = table.view(client, order.id)
    assert (view.state, view.tokens) == (JobState.SETTLED, 3)


def test_after_a_restart_a_node_that_stays_away_costs_the_job(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.restart()
    table.pass_time(29.9)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    table.pass_time(0.2)
    assert table.view(client, order.id).state is JobState.FAILED


def test_the_tail_is_dropped_after_ten_minutes(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.answer(table.assigned(node))
    assert table.core.relay.get(order.id) is not None
    table.pass_time(599)
    assert table.core.relay.get(order.id) is not None
    table.pass_time(2)
    assert table.core.relay.get(order.id) is None
    assert table.core.relay.bytes == 0
    assert table.view(client, order.id).tokens == 3


def test_a_banned_node_loses_its_stream_and_its_work(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    table.order(client, one, two)
    table.ban(one.id, "wrong answers")
    assert table.taken(EndSession)[0].code is Code.BANNED
    assert table.assigned(two).ids["attempt"] == 2
