"""What is paid: every bound binds, nothing is paid twice, nothing is paid above any bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto import envelope as envelopes
from novamesh_proto import wire
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    InferenceAttestation,
    JobAssignment,
    JobState,
    JobTerms,
    MessageId,
    RelayReceipt,
    StreamAck,
)
from novamesh_proto.settlement import Payment, Work, record, settle
from support.evidence_vectors import render
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, PROFILE, digest, head
from support.story import tell
from support.vectors import ROOT, Vector, golden

STORY = tell()
WORK = STORY.work
DIED = replace(WORK, attestation=None, checkpoint=STORY.checkpoint.message)
DIRECT = replace(WORK, relay_receipt=None, ack=STORY.ack.message)


def changed(work: Work, part: str, **changes: Any) -> Work:
    """The work with other fields in one of its messages."""
    return replace(work, **{part: replace(getattr(work, part), **changes)})


def sampling(max_tokens: int) -> Any:
    return replace(WORK.terms.sampling, max_tokens=max_tokens)


def test_an_attested_and_relayed_answer_is_paid_in_full() -> None:
    assert settle(WORK) == Payment(0, 120, 100)


def test_completion_is_paid_up_to_what_the_relay_saw() -> None:
    payment = settle(changed(WORK, "relay_receipt", tokens=80, chunks=80))
    assert payment == Payment(0, 120, 80, ("the relay saw 80 tokens",))


def test_completion_is_paid_up_to_what_the_terms_allow() -> None:
    payment = settle(changed(WORK, "terms", sampling=sampling(90)))
    assert payment == Payment(0, 120, 90, ("the terms allow 90 tokens",))


def test_prompt_is_paid_up_to_the_bytes_of_the_sealed_body() -> None:
    payment = settle(changed(WORK, "attestation", prompt_tokens=5_000))
    assert payment.prompt_tokens == 1_040
    assert payment.reasons == ("the sealed body has 1040 bytes, so at most as many prompt tokens",)


def test_an_old_fence_earns_nothing() -> None:
    payment = settle(replace(WORK, fence=8))
    assert payment == Payment(0, 0, 0, ("fence 7 is old, the job is at 8",))


def test_without_a_word_of_the_node_nothing_is_paid() -> None:
    payment = settle(replace(WORK, attestation=None))
    assert (payment.prompt_tokens, payment.completion_tokens) == (0, 0)
    assert payment.reasons == ("the node signed neither an attestation nor a checkpoint",)


def test_without_a_witness_no_completion_is_paid() -> None:
    payment = settle(replace(WORK, relay_receipt=None))
    assert payment == Payment(0, 120, 0, ("nobody saw a token",))


def test_another_chain_than_the_relayed_one_earns_nothing() -> None:
    payment = settle(changed(WORK, "attestation", chain_head=digest("another")))
    assert payment == Payment(0, 0, 0, ("the node signed another chain than the relay saw",))


@pytest.mark.parametrize("part", ["attestation", "relay_receipt"])
@pytest.mark.parametrize("field", [{"attempt": 2}, {"fence": 6}, {"job": digest("another job")}])
def test_evidence_of_another_attempt_earns_nothing(part: str, field: dict[str, Any]) -> None:
    payment = settle(changed(WORK, part, **field))
    assert payment == Payment(0, 0, 0, ("the evidence speaks of another attempt",))


def test_a_node_that_died_is_paid_up_to_its_checkpoint() -> None:
    assert settle(DIED) == Payment(0, 0, 64)


def test_a_checkpoint_ahead_of_the_relay_is_paid_up_to_the_relay() -> None:
    assert settle(changed(DIED, "relay_receipt", tokens=10, chunks=10)).completion_tokens == 10


def test_an_attestation_counts_before_a_checkpoint() -> None:
    assert settle(replace(WORK, checkpoint=STORY.checkpoint.message)) == settle(WORK)


def test_a_direct_path_is_paid_up_to_the_highest_ack() -> None:
    assert settle(DIRECT) == Payment(0, 120, 64, ("the client signed for 64 tokens",))


def test_a_client_receipt_signs_for_the_rest() -> None:
    work = replace(DIRECT, client_receipt=STORY.client_receipt.message)
    assert settle(work) == Payment(0, 120, 100)


def test_an_ack_for_another_chain_earns_nothing() -> None:
    work = replace(DIRECT, attestation=None, checkpoint=STORY.checkpoint.message)
    assert settle(work).completion_tokens == 64
    refused = settle(changed(work, "ack", chain_head=digest("another")))
    assert refused.reasons == ("the node signed another chain than the client signed for",)


def test_a_relay_counts_before_the_word_of_the_client() -> None:
    low = changed(WORK, "relay_receipt", tokens=10, chunks=10)
    work = replace(low, ack=STORY.ack.message, client_receipt=STORY.client_receipt.message)
    assert settle(work).completion_tokens == 10


def test_a_continuing_job_is_paid_from_where_it_begins() -> None:
    work = changed(WORK, "terms", start_position=40)
    work = changed(work, "attestation", start_position=40)
    assert settle(work) == Payment(40, 120, 100)
    assert settle(work).paid_until == 140


def test_a_continuing_job_is_paid_up_to_what_the_relay_saw() -> None:
    work = changed(WORK, "terms", start_position=40)
    payment = settle(changed(work, "relay_receipt", tokens=80, chunks=80))
    assert payment == Payment(40, 120, 80, ("the relay saw 80 tokens",))


def test_a_continuing_job_is_not_paid_for_what_its_parent_was() -> None:
    work = changed(WORK, "terms", start_position=40)
    payment = settle(replace(work, paid_until=64))
    assert payment == Payment(64, 120, 76, ("positions up to 64 are already paid",))


def test_an_answer_paid_in_full_earns_only_its_prompt() -> None:
    payment = settle(replace(WORK, paid_until=150))
    assert (payment.prompt_tokens, payment.completion_tokens) == (120, 0)
    assert payment.paid_until == 150


def test_the_record_says_who_did_what_for_whom() -> None:
    evidence = (MessageId(digest("a")), MessageId(digest("b")))
    made = record(head(COORDINATOR), WORK, settle(WORK), JobState.SETTLED, evidence)
    assert (made.client, made.node) == (CLIENT.node_id, NODE.node_id)
    assert (made.job, made.attempt, made.fence) == (STORY.terms.id, 1, 7)
    assert (made.model_profile, made.outcome) == (PROFILE, JobState.SETTLED)
    assert (made.start_position, made.prompt_tokens, made.completion_tokens) == (0, 120, 100)
    assert made.evidence == evidence


counts = st.integers(0, 300)


@st.composite
def works(draw: st.DrawFn, start: int | None = None) -> Work:
    """Any evidence at all, consistent or not."""
    begin = draw(counts) if start is None else start
    work = changed(WORK, "terms", start_position=begin, body_bytes=draw(st.integers(1, 300)))
    work = changed(work, "terms", sampling=sampling(draw(st.integers(1, 600))))
    work = changed(work, "attestation", completion_tokens=draw(counts), prompt_tokens=draw(counts))
    work = changed(work, "attestation", chunks=draw(st.integers(99, 101)), start_position=begin)
    work = changed(work, "relay_receipt", tokens=draw(counts), chunks=draw(st.integers(99, 101)))
    point = replace(STORY.checkpoint.message, position=draw(st.integers(0, 600)))
    ack = replace(STORY.ack.message, position=draw(st.integers(0, 600)))
    return replace(
        work,
        attestation=draw(st.sampled_from([work.attestation, None])),
        checkpoint=draw(st.sampled_from([point, None])),
        relay_receipt=draw(st.sampled_from([work.relay_receipt, None])),
        ack=draw(st.sampled_from([ack, None])),
        fence=draw(st.sampled_from([7, 7, 7, 8])),
        paid_until=draw(st.integers(0, 600)),
    )


@given(works())
def test_nothing_is_ever_paid_above_a_bound(work: Work) -> None:
    payment = settle(work)
    start = work.terms.start_position
    assert payment.start_position >= max(start, work.paid_until)
    assert 0 <= payment.prompt_tokens <= work.terms.body_bytes
    assert payment.completion_tokens >= 0
    if not payment.completion_tokens:
        return
    assert work.fence == work.assignment.fence
    assert payment.paid_until <= work.terms.sampling.max_tokens
    if work.relay_receipt is not None:
        assert payment.paid_until <= start + work.relay_receipt.tokens
    else:
        assert work.ack is not None
        assert payment.paid_until <= work.ack.position
    if work.attestation is not None:
        assert payment.paid_until <= start + work.attestation.completion_tokens
    else:
        assert work.checkpoint is not None
        assert payment.paid_until <= work.checkpoint.position


@given(st.lists(st.tuples(st.integers(0, 300), st.data()), min_size=1, max_size=6))
def test_the_parts_of_an_answer_never_pay_a_position_twice(
    parts: list[tuple[int, st.DataObject]],
) -> None:
    paid: set[int] = set()
    paid_until = 0
    for start, data in parts:
        payment = settle(replace(data.draw(works(start)), paid_until=paid_until))
        positions = set(range(payment.start_position, payment.paid_until))
        assert not positions & paid
        paid |= positions
        paid_until = max(paid_until, payment.paid_until)
    assert len(paid) <= paid_until


PARTS: dict[str, Any] = {
    "terms": JobTerms,
    "assignment": JobAssignment,
    "attestation": InferenceAttestation,
    "checkpoint": ChunkCheckpoint,
    "relay_receipt": RelayReceipt,
    "ack": StreamAck,
    "client_receipt": ClientReceipt,
}


@golden("settlement/settlement")
def test_golden_settlements(vector: Vector) -> None:
    parts = {
        part: envelopes.open(wire.decode(Envelope, vector.data(part)), cls, network=NETWORK).message
        for part, cls in PARTS.items()
        if part in vector.fields
    }
    work = Work(fence=vector["fence"], paid_until=vector["paid_until"], **parts)
    payment = settle(work)
    assert payment.start_position == vector["start_position"]
    assert payment.prompt_tokens == vector["prompt_tokens"]
    assert payment.completion_tokens == vector["completion_tokens"]


def test_golden_settlements_are_made_the_same_again() -> None:
    table = "settlement/settlement"
    assert (ROOT / f"{table}.json").read_text() == render(table)
