"""Reading a job's events: in order, each once, whatever the line does; and every lie is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh.conclusion import Conclusion
from novamesh.reader import AnswerReader, Step
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.messages import (
    ClientReceipt,
    Envelope,
    JobId,
    JobState,
    ReceiptVerdict,
    StreamAck,
    WatchResponse,
)
from novamesh_proto.receipt import encode_receipt, verify_receipt
from support.answers import STARTED_S, SentAnswer, assign, send_answer
from support.clock import START_MS
from support.fake_answer import NETWORK, Script
from support.parties import CLIENT, COORDINATOR, NODE, party

SENT = send_answer(Script(answer=tuple(f"w{n} " for n in range(12)), checkpoint_every=3))
TEXT = "".join(f"w{n} " for n in range(12))


def _take(reader: AnswerReader, event: WatchResponse, at_s: float = 0.5) -> Step:
    return reader.take(event, START_MS, STARTED_S + at_s)


def _read(sent: SentAnswer) -> AnswerReader:
    reader = sent.reader()
    for event in sent.events:
        _take(reader, event)
    return reader


def _text(done: Conclusion) -> str:
    return "".join(map(str, done.pieces))


def _ids(done: Conclusion) -> tuple[int, ...]:
    return tuple(token for piece in done.pieces for token in piece.token_ids)


def test_answer_is_whole_and_its_receipt_verifies() -> None:
    reader, text, acks = SENT.reader(), "", []
    for number, event in enumerate(SENT.events):
        step = _take(reader, event, 0.1 * number)
        text += str(step.piece or "")
        acks += [step.ack] * (step.ack is not None)
    assert text == TEXT
    assert reader.ended
    done = reader.conclude()
    assert (_text(done), _ids(done)) == (TEXT, tuple(range(12)))
    verified = verify_receipt(encode_receipt(done.receipt), COORDINATOR.node_id, CLIENT.node_id)
    assert verified.completion_tokens == 12
    assert done.client_receipt.message.ttft_us == 100_000
    assert len(acks) == 4


def test_every_checkpoint_is_acknowledged_with_a_fresh_challenge() -> None:
    reader = SENT.reader()
    sealed = [step.ack for event in SENT.events if (step := _take(reader, event)).ack]
    acks = [
        envelope.open(ack, StreamAck, network=NETWORK, audience=NODE.node_id).message
        for ack in sealed
        if ack is not None
    ]
    assert [ack.position for ack in acks] == [3, 6, 9, 12]
    assert len({ack.challenge for ack in acks}) == 4
    assert all(COORDINATOR.node_id in ack.header.audience for ack in acks)


@settings(deadline=None)
@given(data=st.data())
def test_whatever_the_line_does_nothing_is_lost_or_repeated(data: st.DataObject) -> None:
    """The stream breaks anywhere and is told again from anywhere before; the answer stays."""
    reader, pieces = SENT.reader(), []
    at = 0
    for _ in range(data.draw(st.integers(0, 4))):
        until = data.draw(st.integers(at, len(SENT.events) - 1))
        for event in SENT.events[at:until]:
            pieces.append(_take(reader, event).piece)
        at = data.draw(st.integers(0, until))
    for event in SENT.events[at:]:
        pieces.append(_take(reader, event).piece)
    assert "".join(str(piece) for piece in pieces if piece is not None) == TEXT
    assert _text(reader.conclude()) == TEXT


@settings(deadline=None)
@given(st.data())
def test_event_left_out_never_passes_for_a_whole_answer(data: st.DataObject) -> None:
    needed = [n for n, event in enumerate(SENT.events) if event.chunk or event.attestation]
    missing = data.draw(st.sampled_from(needed))
    reader = SENT.reader()
    with pytest.raises(NovaMeshError):
        _feed_without(reader, missing)


def _feed_without(reader: AnswerReader, missing: int) -> None:
    for number, event in enumerate(SENT.events):
        if number != missing:
            _take(reader, event)
    reader.conclude()


def test_new_attempt_is_taken_before_the_first_token_only() -> None:
    reader = SENT.reader()
    _take(reader, SENT.events[0])
    _take(reader, WatchResponse(assignment=assign(SENT.record, 2).envelope))
    assert (reader.attempt, reader.chunks, reader.delivered) == (2, 0, False)
    reader = SENT.reader()
    for event in SENT.events[:2]:
        _take(reader, event)
    with pytest.raises(NovaMeshError, match="began the answer again"):
        _take(reader, WatchResponse(assignment=assign(SENT.record, 2).envelope))


def test_older_attempt_is_refused() -> None:
    reader = SENT.reader()
    _take(reader, WatchResponse(assignment=assign(SENT.record, 2).envelope))
    with pytest.raises(NovaMeshError, match="another job or attempt"):
        _take(reader, SENT.events[0])


def test_stranger_to_the_wraps_is_refused() -> None:
    record = replace(SENT.record, candidates=())
    reader = AnswerReader(record, CLIENT, COORDINATOR.node_id, STARTED_S, bytes)
    with pytest.raises(NovaMeshError, match="no candidate"):
        _take(reader, SENT.events[0])


def test_other_coordinator_is_refused() -> None:
    reader = AnswerReader(SENT.record, CLIENT, party("other").node_id, STARTED_S, bytes)
    with pytest.raises(PeerError, match="signed by") as caught:
        _take(reader, SENT.events[0])
    assert caught.value.code is Code.FORBIDDEN


@pytest.mark.parametrize("kind", ["chunk", "checkpoint"])
def test_nothing_is_believed_before_an_assignment(kind: str) -> None:
    event = next(event for event in SENT.events if getattr(event, kind) is not None)
    with pytest.raises(NovaMeshError, match="before any assignment"):
        _take(SENT.reader(), event)


def test_an_answer_of_which_only_the_proof_is_left_is_lost_and_nobody_is_accused() -> None:
    reader = SENT.reader()
    for event in SENT.events:
        if event.assignment is None and event.chunk is None and event.checkpoint is None:
            _take(reader, event)
    with pytest.raises(NovaMeshError) as lost:
        reader.conclude()
    assert lost.value.code is Code.STALE
    assert not isinstance(lost.value, PeerError)


def test_evidence_of_another_job_is_refused() -> None:
    other = send_answer()
    for kind in ("checkpoint", "attestation"):
        event = next(event for event in other.events if getattr(event, kind) is not None)
        reader = SENT.reader()
        for mine in SENT.events[:3]:
            _take(reader, mine)
        with pytest.raises(PeerError):
            _take(reader, event)


@pytest.mark.parametrize("kind", ["relay_receipt", "settlement"])
def test_a_proof_that_would_not_verify_later_is_not_kept(kind: str) -> None:
    """The coordinator signs something rightly that speaks of another job."""
    reader = SENT.reader()
    foreign = next(event for event in send_answer().events if getattr(event, kind) is not None)
    for event in SENT.events:
        _take(reader, foreign if getattr(event, kind) is not None else event)
    with pytest.raises(NovaMeshError, match="does not hold together") as caught:
        reader.conclude()
    assert caught.value.code is Code.CORRUPT
    assert not isinstance(caught.value, PeerError)


def test_view_of_another_job_is_refused() -> None:
    last = SENT.events[-1].job
    assert last is not None
    with pytest.raises(NovaMeshError, match="another job"):
        _take(SENT.reader(), WatchResponse(job=replace(last, job=JobId(bytes(32)))))


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        (JobState.FAILED, Code.POLICY.value, Code.POLICY),
        (JobState.FAILED, "", Code.NODE_LOST),
        (JobState.EXPIRED, "", Code.EXPIRED),
        (JobState.CANCELLED, "", Code.CANCELLED),
        (JobState.FAILED, "a code of tomorrow", Code.INTERNAL),
    ],
)
def test_job_that_ended_badly_says_why(state: JobState, code: str, expected: Code) -> None:
    reader, last = SENT.reader(), SENT.events[-1].job
    assert last is not None
    _take(reader, WatchResponse(job=replace(last, state=state, code=code)))
    with pytest.raises(NovaMeshError) as caught:
        reader.conclude()
    assert caught.value.code is expected
    assert caught.value.message


def test_job_that_has_not_ended_is_not_concluded() -> None:
    with pytest.raises(NovaMeshError, match="before the job did"):
        SENT.reader().conclude()


@pytest.mark.parametrize("tampered", ["attestation", "cut"])
def test_verdict_is_in_the_countersignature(tampered: str) -> None:
    sent = send_answer(Script(tampered=tampered, checkpoint_every=4))
    events = [event for event in sent.events if tampered != "cut" or not _final(event)]
    reader, receipts = sent.reader(), []
    for event in events:
        receipts.append(_take(reader, event).receipt)
    (sealed,) = [receipt for receipt in receipts if receipt is not None]
    verdict = _open(sealed).verdict
    assert verdict is (ReceiptVerdict.INCOMPLETE if tampered == "cut" else ReceiptVerdict.MISMATCH)
    with pytest.raises(NovaMeshError, match="attests another" if tampered != "cut" else "proof"):
        reader.conclude()


def _final(event: WatchResponse) -> bool:
    return event.chunk is not None and event.chunk.final


def _open(sealed: Envelope) -> ClientReceipt:
    return envelope.open(sealed, ClientReceipt, network=NETWORK).message


def test_same_events_twice_change_nothing() -> None:
    reader = _read(SENT)
    before = reader.conclude()
    for event in SENT.events:
        assert _take(reader, event).piece is None
    assert _text(reader.conclude()) == _text(before)
    assert reader.conclude().client_receipt.id == before.client_receipt.id
