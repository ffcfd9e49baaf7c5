"""What the coordinator signs: bound to its evidence, and the same whenever its inputs are."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from novamesh_coordinator.clearing import ASSIGNMENT_LIFE_MS, Clearing, Part
from novamesh_coordinator.effects import Turn
from novamesh_coordinator.events import AttemptSettled
from novamesh_proto import envelope
from novamesh_proto.envelope import message_id
from novamesh_proto.limits import LEASE_MS, RECORD_LIFE_MS
from novamesh_proto.messages import (
    ChunkCheckpoint,
    InferenceAttestation,
    JobState,
    RelayReceipt,
    Settlement,
)
from support.actors import Attempt
from support.parties import COORDINATOR, NETWORK
from support.table import Table

CLEARING = Clearing(COORDINATOR, NETWORK)


@pytest.fixture
def table() -> Table:
    return Table()


def turn(table: Table) -> Turn:
    return Turn(table.now, random.Random(7), lambda record: None)


def half_done(table: Table) -> Attempt:
    """An attempt that sent five tokens, 10 ms apart, a checkpoint after two of them."""
    client, node = table.client(), table.node()
    table.order(client, node)
    attempt = table.assigned(node)
    table.decide(attempt)
    for number in range(5):
        table.clock.advance(0.01)
        table.send(attempt, attempt.chunk())
        if number == 1:
            table.checkpoint(attempt)
    return attempt


def part(table: Table, attempt: Attempt, attested: bool, paid_until: int = 0) -> Part:
    job, stream = table.core.jobs.get(attempt.ids["job"]), table.core.relay.get(attempt.ids["job"])
    assert job is not None
    assert stream is not None
    assert stream.checkpoint is not None
    claim = envelope.open(attempt.attest(table.now_ms), InferenceAttestation, network=NETWORK)
    return Part(
        job=job,
        terms=attempt.terms,
        stream=stream,
        claim=claim if attested else stream.checkpoint,
        outcome=JobState.SETTLED if attested else JobState.FAILED,
        paid_until=paid_until,
        descriptor=table.core.registry.descriptor(attempt.node.id),
    )


def settlement(record: AttemptSettled) -> Settlement:
    return envelope.open(record.settlement, Settlement, network=NETWORK).message


def test_an_assignment_is_for_its_node_and_its_client(table: Table) -> None:
    attempt = half_done(table)
    made = CLEARING.assign(turn(table), attempt.terms, attempt.node.id, 2, 9)
    header = made.message.header
    assert made.issuer == COORDINATOR.node_id
    assert header.audience == (attempt.node.id, attempt.terms.issuer)
    assert header.expires_at_ms - header.issued_at_ms == ASSIGNMENT_LIFE_MS
    assert header.in_reply_to == attempt.terms.id
    given = made.message
    assert (given.attempt, given.fence, given.lease_ms) == (2, 9, LEASE_MS)


def test_what_is_paid_names_the_evidence_that_it_rests_on(table: Table) -> None:
    attempt = half_done(table)
    work = part(table, attempt, attested=True)
    record = CLEARING.clear(turn(table), work)
    paid = settlement(record)
    relay = envelope.open(record.relay_receipt, RelayReceipt, network=NETWORK)
    assert (paid.completion_tokens, paid.outcome) == (5, JobState.SETTLED)
    assert paid.evidence == (
        attempt.terms.id,
        work.stream.assignment.id,
        message_id(record.claim),
        relay.id,
    )
    assert (relay.message.tokens, relay.message.chunks) == (5, 5)
    assert relay.message.last_us - relay.message.first_us == 40_000
    assert record.milli_tokens_per_s == 100_000


def test_a_checkpoint_pays_up_to_itself_and_ranks_nobody(table: Table) -> None:
    attempt = half_done(table)
    record = CLEARING.clear(turn(table), part(table, attempt, attested=False))
    assert settlement(record).completion_tokens == 2
    assert record.milli_tokens_per_s == 0
    envelope.open(record.claim, ChunkCheckpoint, network=NETWORK)


def test_positions_that_are_paid_are_not_paid_again(table: Table) -> None:
    attempt = half_done(table)
    record = CLEARING.clear(turn(table), part(table, attempt, attested=True, paid_until=2))
    assert (record.start_position, record.completion_tokens) == (2, 3)
    assert settlement(record).completion_tokens == 3


def test_the_same_turn_signs_the_same_bytes(table: Table) -> None:
    work = part(table, half_done(table), attested=True)
    assert CLEARING.clear(turn(table), work) == CLEARING.clear(turn(table), work)


def test_every_signed_word_is_dated_named_and_answers_its_claim(table: Table) -> None:
    attempt = half_done(table)
    work, at = part(table, attempt, attested=True, paid_until=2), turn(table)
    record = CLEARING.clear(at, work)
    relay = envelope.open(record.relay_receipt, RelayReceipt, network=NETWORK).message
    nonces = random.Random(7)
    for header in (relay.header, settlement(record).header):
        assert header == envelope.header(
            COORDINATOR,
            NETWORK,
            (attempt.terms.issuer, attempt.node.id),
            at.now.wall_ms,
            RECORD_LIFE_MS,
            in_reply_to=work.claim.id,
            nonce=nonces.randbytes(16),
        )
    assert (relay.rtt_us, relay.chain_head) == (500, attempt.sealer.head)
    given = CLEARING.assign(turn(table), attempt.terms, attempt.node.id, 2, 9).message
    assert given.header.nonce == random.Random(7).randbytes(16)
    assert (given.header.issued_at_ms, given.job) == (at.now.wall_ms, work.job.job)


@pytest.mark.parametrize("attested", [True, False])
def test_the_record_says_what_the_settlement_says(table: Table, attested: bool) -> None:
    attempt = half_done(table)
    work, at = part(table, attempt, attested, paid_until=1), turn(table)
    record = CLEARING.clear(at, work)
    paid = settlement(record)
    assert (record.job, record.at_ms, record.node) == (
        work.job.job,
        at.now.wall_ms,
        attempt.node.id,
    )
    assert (record.attempt, record.fence) == (paid.attempt, paid.fence) == (1, work.job.fence)
    assert record.outcome is paid.outcome is work.outcome
    assert record.start_position == paid.start_position == 1
    assert record.prompt_tokens == paid.prompt_tokens == (20 if attested else 0)
    assert record.claim == work.claim.envelope


def test_nobody_is_ranked_by_a_machine_that_is_not_known(table: Table) -> None:
    work = part(table, half_done(table), attested=True)
    assert CLEARING.clear(turn(table), replace(work, descriptor=None)).milli_tokens_per_s == 0
