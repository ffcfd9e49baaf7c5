"""Decisions, failures and checkpoints: signed, addressed, bound to their assignment."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.statements import (
    SENTENCE_BYTES_MAX,
    ChainPoint,
    cut_sentence,
    key_of,
    sign_checkpoint,
    sign_decision,
    sign_failure,
)
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ChunkCheckpoint, JobDecision, JobFailure
from support.clock import START_MS
from support.offers import SIGNER, Offers
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, digest, nonce

ASSIGNMENT = Offers().make().assignment
REFUSAL = NovaMeshError(Code.BUSY, "every slot is at work", "later")


def test_a_decision_answers_its_assignment() -> None:
    for refusal in (None, REFUSAL):
        sealed = sign_decision(SIGNER, ASSIGNMENT, refusal, START_MS)
        said = envelope.open(
            sealed, JobDecision, network=NETWORK, audience=COORDINATOR.node_id, now_ms=START_MS
        )
        assert said.issuer == NODE.node_id
        assert said.message.header.in_reply_to == ASSIGNMENT.id
        assert key_of(ASSIGNMENT.message).fence == said.message.fence
        assert said.message.accepted is (refusal is None)
        assert said.message.code == ("" if refusal is None else "busy")


def test_a_failure_names_code_and_message() -> None:
    sealed = sign_failure(SIGNER, ASSIGNMENT, REFUSAL, START_MS)
    said = envelope.open(sealed, JobFailure, network=NETWORK, audience=COORDINATOR.node_id)
    assert (said.message.code, said.message.message) == ("busy", "every slot is at work")


def test_a_checkpoint_is_a_record_for_client_and_coordinator() -> None:
    point = ChainPoint(3, 40, digest("head"))
    sealed = sign_checkpoint(
        SIGNER,
        ASSIGNMENT,
        CLIENT.node_id,
        point,
        challenge=nonce("challenge"),
        now_ms=START_MS,
    )
    said = envelope.open(sealed, ChunkCheckpoint, network=NETWORK, audience=CLIENT.node_id)
    assert said.message.header.audience == (COORDINATOR.node_id, CLIENT.node_id)
    assert (said.message.chunks, said.message.position) == (3, 40)
    assert said.message.chain_head == digest("head")
    assert said.message.challenge == nonce("challenge")
    assert said.message.header.expires_at_ms > START_MS + 86_400_000


@given(st.text(max_size=700))
def test_a_sentence_fits_its_field_and_keeps_whole_characters(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    cut = cut_sentence(text)
    assert len(cut.encode()) <= SENTENCE_BYTES_MAX
    assert text.startswith(cut)
