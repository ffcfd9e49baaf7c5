"""Answers that went to their clients without us: settled by what both signed, and at most once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator.audit import Auditor
from novamesh_coordinator.effects import AskEcho, Assign, EndSession, TakeDonation
from novamesh_coordinator.events import AttemptSettled, WorkDonated
from novamesh_coordinator.inputs import EchoArrived, ProbeWanted, WorkOffered
from novamesh_coordinator.registry import PROBE_MS
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt, check_evidence
from novamesh_proto.messages import (
    ChunkCheckpoint,
    Donation,
    Envelope,
    JobState,
    NodeDescriptor,
    ReceiptVerdict,
    Settlement,
)
from support.actors import ClientActor, NodeActor
from support.donated_work import donated
from support.parties import COORDINATOR, NETWORK, party
from support.scene import Scene
from support.table import Table


@pytest.fixture
def scene() -> Scene:
    return Scene()


def settled(scene: Scene) -> AttemptSettled:
    (paid,) = scene.records(AttemptSettled)
    assert isinstance(paid, AttemptSettled)
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    assert [bad for record in scene.table.log for bad in auditor.take(record)] == []
    assert scene.table.replayed().state() == scene.table.core.state()
    return paid


def test_an_answer_that_only_its_client_saw_is_paid_by_its_receipt(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    for final in (False, False, True):
        attempt.chunk(2, final=final)
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    paid = settled(scene)
    assert (paid.outcome, paid.completion_tokens, paid.relay_receipt) == (JobState.SETTLED, 6, None)
    assert paid.milli_tokens_per_s == 0, "its client may be its friend"
    assert scene.state is JobState.SETTLED
    told = envelope.open(paid.settlement, Settlement, network=NETWORK).message
    assert envelope.message_id(paid.witness or paid.claim) in told.evidence


def test_a_claim_beyond_what_the_client_signed_for_needs_a_relay(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(3)
    table.witness(attempt, scene.client.acknowledge(attempt, table.now_ms))
    attempt.chunk(4, final=True)
    for chunk in attempt.sent:  # the client signs no more, so its node brings the answer to us
        table.send(attempt, chunk)
    table.attest(attempt, attempt.attest(table.now_ms))
    paid = settled(scene)
    assert (paid.completion_tokens, paid.relay_receipt is None) == (7, False)


def test_a_claim_that_nobody_saw_is_no_answer(scene: Scene) -> None:
    """One checkpoint of the node's own making does not make it the client's word."""
    table, attempt = scene.table, scene.attempt
    attempt.chunk(3)
    table.checkpoint(attempt)
    table.witness(attempt, scene.client.acknowledge(attempt, table.now_ms, chunks=0))
    attempt.chunk(4, final=True)
    table.attest(attempt, attempt.attest(table.now_ms))
    assert scene.state is JobState.FAILED
    assert all(paid.prompt_tokens == 0 for paid in scene.records(AttemptSettled))


def test_what_was_committed_ahead_of_us_is_held_against_the_chain_when_it_comes(
    scene: Scene,
) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(2)
    table.checkpoint(attempt)
    table.send(attempt, attempt.sent[0])
    stream = table.core.relay.get(scene.order.id)
    assert stream is not None
    assert (stream.ahead, stream.checkpoint is not None) == (None, True)
    attempt.chunk(2)
    table.checkpoint(attempt, chain_head=bytes(32))
    table.send(attempt, attempt.sent[1])
    assert table.view(scene.client, scene.order.id).code == "corrupt"


def test_a_direct_answer_outlasts_a_broken_stream_of_its_node(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(3)
    table.checkpoint(attempt)
    table.detach(scene.node)
    table.pass_time(8)
    (resumed,) = table.attach(scene.node, (attempt.running,))
    assert resumed.attempt == attempt.ids["attempt"]
    attempt.chunk(2, final=True)
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    assert settled(scene).completion_tokens == 5


def test_a_part_that_was_relayed_first_is_paid_once(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(2))
    attempt.chunk(5, final=True)
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    assert settled(scene).completion_tokens == 7


def test_without_a_witness_another_chain_than_ours_is_a_lie(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(2))
    attempt.chunk(5, final=True)
    table.attest(attempt, attempt.attest(table.now_ms))
    assert table.view(scene.client, scene.order.id).code == "corrupt"
    assert scene.records(AttemptSettled) == []


def test_a_witness_that_is_not_the_client_counts_for_nothing(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    stranger = table.client("stranger")
    attempt.chunk(5, final=True)
    table.witness(attempt, stranger.countersign(attempt, table.now_ms))
    attempt.ids["fence"] += 1
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    attempt.ids["fence"] -= 1
    table.attest(attempt, attempt.attest(table.now_ms))
    assert scene.records(AttemptSettled) == []


def test_checkpoints_keep_the_lease_of_work_that_we_do_not_see(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    for _ in range(4):
        table.pass_time(10)
        attempt.chunk()
        table.checkpoint(attempt)
    assert scene.state is JobState.RUNNING
    table.checkpoint(attempt)  # the same again is no progress
    table.pass_time(10)
    table.checkpoint(attempt)
    table.pass_time(6)
    assert scene.state is JobState.FAILED


def test_a_node_lost_on_a_direct_path_is_paid_up_to_what_both_signed(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(4)
    table.checkpoint(attempt)
    table.acknowledge(scene.client.acknowledge(attempt, table.now_ms))
    table.detach(scene.node)
    table.pass_time(20)
    paid = settled(scene)
    assert (scene.state, paid.outcome) == (JobState.FAILED, JobState.FAILED)
    assert (paid.completion_tokens, paid.prompt_tokens) == (4, 0)
    _holds_together(scene, paid)


def _holds_together(scene: Scene, paid: AttemptSettled) -> None:
    """What its client keeps of such a part verifies, although its acks are not in the file."""
    assert scene.node.advert is not None
    kept = VerifiedReceipt(
        descriptor=envelope.open(scene.node.advert, NodeDescriptor, network=NETWORK),
        terms=scene.attempt.terms,
        assignment=scene.attempt.assignment,
        checkpoint=envelope.open(paid.claim, ChunkCheckpoint, network=NETWORK),
        attestation=None,
        relay_receipt=None,
        client_receipt=None,
        settlement=envelope.open(paid.settlement, Settlement, network=NETWORK),
    )
    check_evidence(kept)
    more = scene.attempt.checkpoint(scene.table.now_ms, position=3)  # less than was paid for
    opened = envelope.open(more, ChunkCheckpoint, network=NETWORK)
    with pytest.raises(NovaMeshError):
        check_evidence(replace(kept, checkpoint=opened))


def test_an_answer_that_began_elsewhere_is_not_begun_again() -> None:
    table = Table()
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two)
    first = one if any(e.node == one.id for e in table.effects if isinstance(e, Assign)) else two
    attempt = table.assigned(first)
    table.decide(attempt)
    attempt.chunk()
    table.checkpoint(attempt)
    table.detach(first)
    table.pass_time(20)
    assert table.view(client, order.id).state is JobState.FAILED
    assert not table.taken(Assign), "its client goes on from what it has"


def test_a_checkpoint_beyond_the_terms_ends_the_attempt(scene: Scene) -> None:
    scene.attempt.chunk()
    scene.table.checkpoint(scene.attempt, position=10**6)
    assert scene.table.view(scene.client, scene.order.id).code == "corrupt"


def test_a_restart_in_between_loses_nothing(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(3)
    table.checkpoint(attempt)
    table.restart()
    (resumed,) = table.attach(scene.node, (attempt.running,))
    assert resumed.chunks == 0
    attempt.chunk(2, final=True)
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    assert settled(scene).completion_tokens == 5


def test_a_deadline_that_passed_while_we_were_away_takes_no_pay(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(5, final=True)
    table.clock.advance(61)
    table.restart()
    table.pass_time(0.5)
    assert scene.state is JobState.EXPIRED
    (resumed,) = table.attach(scene.node, (attempt.running,))
    assert resumed.chunks == attempt.running.chunks, "nothing more is wanted but the claim"
    table.witness(attempt, scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    paid = settled(scene)
    assert (paid.outcome, paid.completion_tokens) == (JobState.EXPIRED, 5)
    assert table.attach(scene.node, (attempt.running,)) == ()


def test_what_the_client_hands_in_itself_is_a_witness_too(scene: Scene) -> None:
    """Its node cannot bring it along any more: it was told to stop."""
    table, attempt = scene.table, scene.attempt
    attempt.chunk(5, final=True)
    table.pass_time(61)
    table.countersign(scene.client.countersign(attempt, table.now_ms))
    table.attest(attempt, attempt.attest(table.now_ms))
    assert settled(scene).completion_tokens == 5


def test_a_node_that_we_did_not_hear_is_paid_for_what_its_client_has_whole(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(5, final=True)
    table.countersign(scene.client.countersign(attempt, table.now_ms))
    table.detach(scene.node)
    table.pass_time(16)
    assert scene.state is JobState.FAILED
    assert len(table.attach(scene.node, (attempt.running,))) == 1
    table.attest(attempt, attempt.attest(table.now_ms))
    paid = settled(scene)
    assert (paid.outcome, paid.completion_tokens) == (JobState.FAILED, 5)


def test_a_node_that_was_lost_with_a_part_of_an_answer_does_not_go_on(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk(5)
    table.checkpoint(attempt)
    table.detach(scene.node)
    table.pass_time(16)
    assert table.attach(scene.node, (attempt.running,)) == ()


def offer(table: Table, node: NodeActor, given: Donation) -> None:
    proof = table.verifier.open_donation(given)
    table.do(WorkOffered(node.id, table.sessions[node.id], proof))


def test_donated_work_is_logged_once_and_never_paid() -> None:
    table = Table()
    client, node = table.client(), table.node()
    given = donated(table, client, node)
    for _ in range(2):
        offer(table, node, given)
    (record,) = [r for r in table.log if isinstance(r, WorkDonated)]
    assert (record.node, record.client, record.completion_tokens) == (node.id, client.id, 3)
    assert len(table.taken(TakeDonation)) == 2, "the node is told again, so that it can forget"
    assert table.core.donations.of(node.id).jobs == 1
    assert table.core.ledger.completion_tokens == 0
    assert table.replayed().state() == table.core.state()


def test_what_was_not_the_nodes_own_or_does_not_hold_together_is_refused() -> None:
    table = Table()
    client, node, other = table.client(), table.node(), table.node("other")
    given = donated(table, client, node)
    with pytest.raises(NovaMeshError) as refused:
        offer(table, other, given)
    assert refused.value.code is Code.FORBIDDEN
    with pytest.raises(NovaMeshError):
        table.verifier.open_donation(
            Donation(given.terms, given.assignment, given.attestation, given.receipt, _other())
        )
    with pytest.raises(NovaMeshError):
        offer(table, node, donated(table, ClientActor("nobody", COORDINATOR.node_id), node))
    assert not [r for r in table.log if isinstance(r, WorkDonated)]


def _other() -> Envelope:
    return NodeActor("elsewhere", COORDINATOR.node_id).descriptor(Table().now_ms)


def test_only_an_answer_that_its_client_confirms_counts() -> None:
    table = Table()
    client, node = table.client(), table.node()
    given = donated(table, client, node, verdict=ReceiptVerdict.MISMATCH)
    with pytest.raises(NovaMeshError) as refused:
        offer(table, node, given)
    assert refused.value.code is Code.BAD_REQUEST


def test_a_hint_that_a_node_is_gone_is_a_question_to_the_node(scene: Scene) -> None:
    table, node = scene.table, scene.node
    table.do(ProbeWanted(node.id))
    table.do(ProbeWanted(node.id))
    (asked,) = table.taken(AskEcho)
    table.do(EchoArrived(node.id, asked.session, asked.nonce))
    table.pass_time(PROBE_MS / 1000 + 1)
    assert table.core.registry.sessions.get(node.id) is not None
    assert scene.state is JobState.RUNNING
    table.do(ProbeWanted(node.id))
    table.do(EchoArrived(node.id, asked.session, bytes(16)))  # not what it was asked
    table.pass_time(PROBE_MS / 1000 - 1)
    assert not table.taken(EndSession)
    table.pass_time(2)
    (ended,) = table.taken(EndSession)
    assert ended.code is Code.UNAVAILABLE
    assert table.core.registry.sessions.get(node.id) is None
    table.do(ProbeWanted(party("nobody").node_id))  # harmless
