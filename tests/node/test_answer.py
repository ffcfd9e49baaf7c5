"""An answer on its way out: chunks in time, checkpoints, one attestation, and a tail to resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.request import FinishReason, StepOutput, TokenLogprob
from novamesh_node.admission import Admitted
from novamesh_node.answer import CHUNK_TOKENS, FLUSH_LEAST_MS, FLUSH_MS, Answer, Usage, Work
from novamesh_node.attestor import Machine
from novamesh_proto import envelope, sealing
from novamesh_proto.attestation import check_attestation
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CHECKPOINT_MS, CHECKPOINT_TOKENS, CHUNK_BYTES_MAX
from novamesh_proto.messages import (
    AttachRequest,
    ChunkBody,
    ChunkCheckpoint,
    ClientReceipt,
    InferenceAttestation,
    JobTerms,
    ReceiptVerdict,
    StreamAck,
)
from novamesh_proto.messages import FinishReason as Finish
from support.clock import START_MS
from support.fake_engine import TIMING
from support.offers import SIGNER, Offer, Offers
from support.parties import CLIENT, COORDINATOR, HARDWARE, NETWORK, NODE, head, nonce, party, sign

MACHINE = Machine(HARDWARE, "0.1.0 fake")


class Desk:
    """An answer, the clock it is told, and the client that reads what it sends."""

    def __init__(self, **sampling: Any) -> None:
        self.offer: Offer = Offers().make(sampling={"max_tokens": 400, **sampling})
        self.terms = envelope.open(self.offer.message.job.terms, JobTerms, network=NETWORK)
        admitted = Admitted(self.offer.assignment, self.terms, self.offer.message.job)
        work = Work(admitted, self.offer.body, (1, 2, 3), before_us=5)
        self.now_ms = 1000
        self.answer = Answer(work, SIGNER, MACHINE, self.now_ms)
        self.opener = self.offer.opener()
        self.position = 0
        self.read: list[ChunkBody] = []
        self.points = [(0, self.opener.head)]  # position and head after each chunk

    def push(
        self, finish: FinishReason | None = None, after_ms: int = 0, **changes: Any
    ) -> tuple[AttachRequest, ...]:
        self.now_ms += after_ms
        self.position += 1
        output = StepOutput(
            "r", (self.position,), "x", self.position, (), finish, TIMING if finish else None
        )
        return self._read(
            self.answer.push(replace(output, **changes), Usage(9, 2), self.now_ms, START_MS)
        )

    def tick(self, after_ms: int) -> tuple[AttachRequest, ...]:
        self.now_ms += after_ms
        return self._read(self.answer.tick(self.now_ms, START_MS))

    def _read(self, messages: tuple[AttachRequest, ...]) -> tuple[AttachRequest, ...]:
        for message in messages:
            if message.chunk is not None:
                self.read.append(self.opener.open(message.chunk.chunk))
                self.points.append((self.opener.position, self.opener.head))
        return messages

    def ack(self, chunks: int, challenge: str, **changes: Any) -> Verified[StreamAck]:
        client = changes.pop("client", CLIENT)
        key, (position, chain_head) = self.answer.key, self.points[min(chunks, len(self.read))]
        made = StreamAck(
            header=head(client, NODE, COORDINATOR, label=challenge),
            job=key.job, attempt=key.attempt, fence=key.fence, chunks=chunks,
            position=position, chain_head=chain_head, challenge=nonce(challenge),
        )  # fmt: skip
        return sign(replace(made, **changes), client)

    def receipt(self, claim: AttachRequest, **changes: Any) -> Verified[ClientReceipt]:
        client, key = changes.pop("client", CLIENT), self.answer.key
        assert claim.attestation is not None
        label = in_reply_to = changes.pop("to", envelope.message_id(claim.attestation))
        made = ClientReceipt(
            header=head(client, NODE, COORDINATOR, label=label.hex(), in_reply_to=in_reply_to),
            job=key.job, attempt=key.attempt, fence=key.fence, chain_head=self.opener.head,
            chunks=self.opener.chunks, completion_tokens=self.opener.position, ttft_us=1,
            total_us=2, burst_tokens=0, verdict=ReceiptVerdict.OK,
        )  # fmt: skip
        return sign(replace(made, **changes), client)


def checkpoints(messages: tuple[AttachRequest, ...]) -> list[ChunkCheckpoint]:
    return [
        envelope.open(m.checkpoint, ChunkCheckpoint, network=NETWORK).message
        for m in messages
        if m.checkpoint is not None
    ]


def test_the_first_token_leaves_at_once_and_the_next_ones_together() -> None:
    desk = Desk()
    assert len(desk.push()) == 1
    assert desk.push(after_ms=1) == ()
    assert desk.push(after_ms=1) == ()
    assert desk.answer.due_ms == 1000 + FLUSH_LEAST_MS
    assert desk.tick(after_ms=2) == ()
    assert len(desk.tick(after_ms=1)) == 1
    assert [body.token_ids for body in desk.read] == [(1,), (2, 3)]
    assert desk.answer.due_ms is None


def test_pauses_between_chunks_grow_to_their_most_and_no_chunk_holds_a_burst() -> None:
    desk = Desk()
    times = [desk.now_ms for _ in range(400) if any(m.chunk for m in desk.push(after_ms=1))]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (FLUSH_LEAST_MS, min(FLUSH_MS, CHUNK_TOKENS))
    for length in range(12, len(times)):
        made = sum(len(body.token_ids) for body in desk.read[:length])
        assert max(len(body.token_ids) for body in desk.read[:length]) <= made / 3


def test_a_slow_model_never_waits_longer_than_a_reader_sees() -> None:
    desk = Desk()
    desk.push()
    desk.push(after_ms=5000)
    desk.push(after_ms=10)
    assert desk.answer.due_ms == desk.now_ms - 10 + FLUSH_MS


def test_a_slow_model_sends_each_token_at_once() -> None:
    desk = Desk()
    for _ in range(5):
        assert len([m for m in desk.push(after_ms=FLUSH_MS) if m.chunk]) == 1


def test_a_full_chunk_leaves_before_its_time() -> None:
    desk = Desk()
    desk.push()
    sent = [desk.push() for _ in range(CHUNK_TOKENS)]
    assert [len(messages) for messages in sent[:-1]] == [0] * (CHUNK_TOKENS - 1)
    assert len(desk.read[1].token_ids) == CHUNK_TOKENS


def test_checkpoints_come_every_32_tokens_or_second() -> None:
    desk = Desk()
    found = [checkpoints(desk.push(after_ms=FLUSH_MS)) for _ in range(CHECKPOINT_TOKENS)]
    by_time = [number for number, each in enumerate(found) if each]
    assert by_time[0] == CHECKPOINT_MS // FLUSH_MS - 1
    fast = Desk()
    fast.push()
    messages = [m for _ in range(CHECKPOINT_TOKENS) for m in fast.push()]
    (point,) = checkpoints(tuple(messages))
    assert (point.chunks, point.position) == (2, 1 + CHECKPOINT_TOKENS)
    assert point.chain_head == fast.opener.head


def test_a_checkpoint_answers_the_newest_challenge() -> None:
    desk = Desk()
    desk.push()
    desk.answer.acknowledge(desk.ack(1, "one"))
    desk.answer.acknowledge(desk.ack(1, "two"))
    (point,) = checkpoints(desk.push(after_ms=CHECKPOINT_MS))
    assert point.challenge == nonce("two")


def test_an_ack_of_somebody_else_or_of_nothing_is_refused() -> None:
    desk = Desk()
    desk.push()
    with pytest.raises(NovaMeshError) as caught:
        desk.answer.acknowledge(desk.ack(1, "x", client=party("stranger")))
    assert caught.value.code is Code.FORBIDDEN
    with pytest.raises(NovaMeshError) as caught:
        desk.answer.acknowledge(desk.ack(2, "x"))
    assert caught.value.code is Code.STALE


def test_an_ack_that_was_overtaken_is_refused() -> None:
    desk = Desk()
    desk.push()
    desk.push(after_ms=FLUSH_MS)
    desk.answer.acknowledge(desk.ack(2, "new"))
    with pytest.raises(NovaMeshError) as caught:
        desk.answer.acknowledge(desk.ack(1, "old"))
    assert caught.value.code is Code.STALE
    (point,) = checkpoints(desk.push(after_ms=CHECKPOINT_MS))
    assert point.challenge == nonce("new")


@pytest.mark.parametrize("lie", [{"position": 0}, {"chain_head": bytes(32)}])
def test_an_ack_of_another_chain_is_refused(lie: dict[str, Any]) -> None:
    desk = Desk()
    desk.push()
    with pytest.raises(NovaMeshError) as caught:
        desk.answer.acknowledge(desk.ack(1, "x", **lie))
    assert caught.value.code is Code.CORRUPT
    assert checkpoints(desk.push(after_ms=CHECKPOINT_MS))[0].challenge == b""


def test_a_receipt_fits_the_whole_answer_or_not_at_all() -> None:
    desk = Desk()
    desk.push()
    _, last = desk.push(FinishReason.STOP, after_ms=FLUSH_MS)
    assert desk.answer.fits(desk.receipt(last))
    lies: tuple[dict[str, Any], ...] = (
        {"chunks": 1}, {"completion_tokens": 1}, {"chain_head": bytes(32)}, {"to": bytes(32)},
        {"client": party("stranger")},
        {"chunks": 1, "completion_tokens": desk.points[1][0], "chain_head": desk.points[1][1]},
    )  # fmt: skip
    assert not any(desk.answer.fits(desk.receipt(last, **lie)) for lie in lies)


def test_no_receipt_fits_before_the_end() -> None:
    desk, other = Desk(), Desk()
    desk.push()
    _, claim = other.push(FinishReason.STOP)
    assert not desk.answer.fits(desk.receipt(claim))


def test_without_an_ack_a_checkpoint_answers_none() -> None:
    desk = Desk()
    desk.push()
    assert checkpoints(desk.push(after_ms=CHECKPOINT_MS))[0].challenge == b""


def test_it_ends_with_a_final_chunk_and_the_attestation() -> None:
    desk = Desk()
    desk.push()
    desk.push()
    chunk, last = desk.push(FinishReason.STOP)
    assert chunk.chunk is not None
    assert chunk.chunk.chunk.final
    assert desk.read[-1].finish is Finish.STOP
    assert desk.opener.finished
    assert last.attestation is not None
    said = envelope.open(last.attestation, InferenceAttestation, network=NETWORK)
    attestation = check_attestation(said, desk.terms, desk.offer.assignment)
    salt = sealing.salt(desk.offer.body.response_key, desk.offer.job)
    assert attestation.output_digest == sealing.output_digest(salt, (1, 2, 3))
    assert attestation.chain_head == desk.opener.head
    assert attestation.chunks == desk.opener.chunks == 2
    assert (attestation.energy_mj, attestation.batch_size_max) == (9, 2)
    assert attestation.timing.total_us == TIMING.total_us + 5
    assert desk.answer.ended
    assert desk.push() == ()


def test_an_answer_without_a_token_is_attested_too() -> None:
    desk = Desk()
    chunk, _ = desk.push(FinishReason.ABORTED, token_ids=(), text="")
    assert chunk.chunk is not None
    assert chunk.chunk.chunk.tokens == 0
    assert desk.read[-1].finish is Finish.CANCELLED


def test_the_most_logprobs_fit_into_chunks() -> None:
    desk = Desk(logprobs=20)
    top = tuple((2**31, -1.5) for _ in range(20))
    one = TokenLogprob(2**31, float("-inf"), top)
    for _ in range(64):
        for message in desk.push(logprobs=(one,), token_ids=(2**31,), text="y" * 300):
            if message.chunk is not None:
                assert len(message.chunk.chunk.ciphertext) <= CHUNK_BYTES_MAX
    desk.push(FinishReason.LENGTH)
    assert sum(len(body.logprobs) for body in desk.read) == 64
    assert desk.read[0].logprobs[0].chosen.logprob == -1e9


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=80),
    st.integers(0, 200),
)
def test_what_arrives_is_what_was_made_and_resumes_anywhere(
    steps: list[tuple[int, bool]], cut: int
) -> None:
    desk = Desk()
    sent: list[AttachRequest] = []
    for after_ms, tick in steps:
        sent += desk.tick(after_ms) if tick else desk.push(after_ms=after_ms)
    sent += desk.push(FinishReason.LENGTH)
    made = [i for body in desk.read for i in body.token_ids]
    assert made == list(range(1, desk.position + 1))
    assert "".join(body.text for body in desk.read) == "x" * desk.position
    chunks = [m.chunk.chunk for m in sent if m.chunk is not None]
    assert desk.answer.tail.since(0) == tuple(sent)
    cut = min(cut, len(chunks))
    again = desk.answer.tail.since(cut)
    assert [m.chunk.chunk for m in again if m.chunk is not None] == chunks[cut:]
    assert again[-1] == sent[-1]
