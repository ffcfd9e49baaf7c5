"""What clients ask that reached this node themselves: to follow their attempt, or to work for them.

To them the node speaks as a pool of one. Rules: every query is signed, fresh and addressed to this
node; only the client that signed a job's terms hears of it; work without a coordinator names this
node alone, takes at most half of the slots, of each device too, so none where there is one, and
ends when its client has not come for ORPHAN_S. What a client signs counts where it fits the chain
that was sent. A query that is asked twice is answered twice: nothing here changes by being
repeated. What is taken is decided by the desk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from novamesh_node.answer import Answer
from novamesh_node.clock import Clock
from novamesh_node.delivery import Delivery
from novamesh_node.descriptor import Advertiser
from novamesh_node.desk import Desk
from novamesh_node.donations import Donations
from novamesh_node.outbox import Outbox
from novamesh_node.run import Attempt
from novamesh_node.statements import Signer, key_of
from novamesh_proto import envelope, wire
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    CancelOrder,
    ClientReceipt,
    Donation,
    Envelope,
    FinishReason,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobId,
    JobQuery,
    JobState,
    JobView,
    PoolCard,
    ReceiptVerdict,
    SealedJob,
    StreamAck,
    WatchQuery,
    WatchResponse,
)

ORPHAN_S: Final = 15.0
RETRY_MS: Final = 1_000
_ENDS: Final = {
    FinishReason.STOP: JobState.SETTLED,
    FinishReason.LENGTH: JobState.SETTLED,
    FinishReason.CANCELLED: JobState.CANCELLED,
}

T = TypeVar("T", bound=Signable)
_End = tuple[JobState, str, str]  # how an attempt stands, code and sentence of a failure


@dataclass(frozen=True, slots=True)
class Means:
    """What the front works with."""

    desk: Desk
    signer: Signer
    advertiser: Advertiser
    donations: Donations
    donate: Callable[[Donation], None]  # tells the coordinator, if it is there
    slots: Callable[[], int]
    clock: Clock
    version: str


class Front:
    """The counter at which clients ask; `tasks` outlives it."""

    def __init__(self, means: Means, tasks: asyncio.TaskGroup) -> None:
        self._means = means
        self._tasks = tasks
        self._orphans: dict[JobId, asyncio.TimerHandle] = {}  # work whose client is not here

    def card(self) -> Envelope:
        """Who this is and what time it is."""
        signer, now_ms = self._means.signer, self._means.clock.wall_ms()
        header = envelope.header(signer.key, signer.network, (), now_ms)
        return envelope.seal(PoolCard(header, now_ms, self._means.version, False), signer.key)

    def descriptor(self) -> Envelope:
        """This node's own. Raises STORAGE."""
        return self._means.advertiser.current(self._means.clock.wall_ms())

    def check_donating(self) -> None:
        """Raises POLICY if the owner donates nothing: said before anything is read or verified."""
        self._means.desk.check_donating()

    def submit(self, job: SealedJob) -> JobView:
        """Take a job that names this node alone; harmless when repeated.

        Raises:
            NovaMeshError: as `Admission.verify_alone` and `admit_alone`; BUSY; POLICY on a node
                of one slot, which is its pool's.
        """
        desk, most = self._means.desk, self._means.slots() // 2
        known = desk.find(JobId(envelope.message_id(job.terms)))
        if known is None and not most:
            raise NovaMeshError(
                Code.POLICY, "the only slot of this node is its pool's", "ask another node"
            )
        if known is None and desk.alone >= most:
            raise NovaMeshError(
                Code.BUSY, "this node donates no more at the same time", "ask another node",
                RETRY_MS,
            )  # fmt: skip
        attempt = desk.take_alone(job)
        if known is None:
            self._forsake(attempt)
        return self._view(attempt)

    async def watch(self, sealed: Envelope) -> AsyncGenerator[WatchResponse]:
        """The events of a client's attempt here, from the chunk it asks for, to the last.

        Raises:
            NovaMeshError: NOT_FOUND, STALE if that chunk is no longer here.
        """
        query = self._open(sealed, WatchQuery)
        attempt, asked = self._require(query, query.message.job), query.message
        from_chunk = asked.from_chunk if asked.attempt == attempt.number else 0
        delivery, answer = attempt.delivery, attempt.answer
        self._claim(asked.job)
        backlog, outbox = await delivery.follow(answer.tail if answer else None, from_chunk)
        try:
            yield WatchResponse(assignment=attempt.assignment.envelope)
            for message in (*backlog, *([delivery.last_word] if delivery.last_word else [])):
                for event in self._events(attempt, message):
                    yield event
            if not attempt.running:
                return
            while (next_message := await outbox.next()) is not None:
                for event in self._events(attempt, next_message):
                    yield event
        finally:
            self._tasks.create_task(self._unfollow(attempt, delivery, outbox), name="unfollow")

    def acknowledge(self, ack: Envelope) -> None:
        """A client holds the chain so far; one that does not fit is dropped. Raises NOT_FOUND."""
        said = self._open(ack, StreamAck)
        self._require(said, said.message.job)  # strangers write no line of our log
        self._means.desk.acknowledge(ack)

    def countersign(self, sealed: Envelope) -> None:
        """What the client makes of its answer; the first that fits it counts.

        Raises:
            NovaMeshError: NOT_FOUND; STALE for another attempt; CORRUPT if it does not fit the
                answer that ended here; WRONG_AUDIENCE if the coordinator cannot be shown it;
                STORAGE.
        """
        receipt = self._open(sealed, ClientReceipt)
        attempt = self._require(receipt, receipt.message.job)
        if key_of(receipt.message) != key_of(attempt.assignment.message):
            raise NovaMeshError(Code.STALE, "this receipt speaks of another attempt")
        delivery, answer, said = attempt.delivery, attempt.answer, receipt.message
        if answer is None or not answer.fits(receipt):
            raise NovaMeshError(Code.CORRUPT, "this receipt does not fit the answer of this node")
        if not delivery.alone and self._means.signer.coordinator not in said.header.audience:
            raise NovaMeshError(
                Code.WRONG_AUDIENCE, "this receipt does not name the coordinator", "name both"
            )
        if delivery.receipt is not None:
            return
        if delivery.alone:
            self._keep(attempt, answer, receipt)
        delivery.countersign(sealed, confirms=said.verdict is ReceiptVerdict.OK)

    def cancel(self, sealed: Envelope) -> JobView:
        """Stop a client's attempt. Raises NOT_FOUND."""
        order = self._open(sealed, CancelOrder)
        attempt = self._require(order, order.message.job)
        if attempt.running:
            self._means.desk.abort(order.message.job)
        return self._view(attempt)

    def view(self, sealed: Envelope) -> JobView:
        """Where a client's job is. Raises NOT_FOUND."""
        query = self._open(sealed, JobQuery)
        return self._view(self._require(query, query.message.job))

    def _open(self, sealed: Envelope, cls: type[T]) -> Verified[T]:
        signer = self._means.signer
        return envelope.open(
            sealed, cls, network=signer.network, audience=signer.key.node_id,
            now_ms=self._means.clock.wall_ms(),
        )  # fmt: skip

    def _require(self, query: Verified[T], job: JobId) -> Attempt:
        """The attempt, for its own client: others learn nothing, not even that it is here."""
        attempt = self._means.desk.find(job)
        if attempt is None or attempt.terms.issuer != query.issuer:
            raise NovaMeshError(Code.NOT_FOUND, f"job {job.hex()[:12]} is not on this node")
        return attempt

    def _events(self, attempt: Attempt, message: AttachRequest) -> tuple[WatchResponse, ...]:
        """A message of an attempt as its client gets it."""
        if message.chunk is not None:
            return (WatchResponse(chunk=message.chunk.chunk),)
        if message.checkpoint is not None:
            return (WatchResponse(checkpoint=message.checkpoint),)
        if message.attestation is not None:
            end = self._view(self._newest(attempt), _end_of(message.attestation))
            last = (WatchResponse(job=end),) if attempt.delivery.alone else ()
            return (WatchResponse(attestation=message.attestation), *last)
        ended = _refusal(message)
        if ended is None or not attempt.delivery.alone:
            return ()
        return (WatchResponse(job=self._view(self._newest(attempt), ended)),)

    def _view(self, attempt: Attempt, end: _End | None = None) -> JobView:
        state, code, message = end or _standing(attempt)
        given = attempt.assignment.message
        return JobView(
            job=given.job,
            state=state,
            attempt=given.attempt,
            node=given.node,
            model_profile=attempt.terms.message.model_profile,
            admitted_at_ms=given.header.issued_at_ms,
            tokens=attempt.answer.tokens if attempt.answer else 0,
            code=code,
            message=message,
        )

    def _keep(self, attempt: Attempt, answer: Answer, receipt: Verified[ClientReceipt]) -> None:
        """Donated work that its client confirms is told to the coordinator when it is there."""
        claim = _claim_of(answer)
        if claim is None or receipt.message.verdict is not ReceiptVerdict.OK:
            return
        donation = Donation(
            terms=attempt.terms.envelope,
            assignment=attempt.assignment.envelope,
            attestation=claim,
            receipt=receipt.envelope,
            descriptor=self._means.advertiser.sealed_to(answer.admitted.job),
        )
        self._means.donations.add(donation)
        self._means.donate(donation)

    async def _unfollow(self, attempt: Attempt, delivery: Delivery, outbox: Outbox) -> None:
        now = self._newest(attempt)
        await delivery.unfollow(outbox, now.answer.tail if now.answer else None)
        if now.running:
            self._forsake(now)

    def _newest(self, attempt: Attempt) -> Attempt:
        """The same attempt as it is now, where it still is here."""
        now = self._means.desk.find(attempt.assignment.message.job)
        return now if now is not None and now.delivery is attempt.delivery else attempt

    def _forsake(self, attempt: Attempt) -> None:
        """Work that nobody waits for ends; by a timer, since a node that stops awaits its tasks."""
        if not attempt.delivery.wanted and not attempt.delivery.direct:
            job = attempt.assignment.message.job
            self._claim(job)
            loop = asyncio.get_running_loop()
            self._orphans[job] = loop.call_later(ORPHAN_S, self._abort_orphan, job)

    def _claim(self, job: JobId) -> None:
        timer = self._orphans.pop(job, None)
        if timer is not None:
            timer.cancel()

    def _abort_orphan(self, job: JobId) -> None:
        del self._orphans[job]
        self._means.desk.abort(job)


def _standing(attempt: Attempt) -> _End:
    """Where an attempt is."""
    if attempt.running:
        return JobState.RUNNING, "", ""
    claim = _claim_of(attempt.answer) if attempt.answer is not None else None
    if claim is not None:
        return _end_of(claim)
    refused = _refusal(attempt.delivery.last_word) if attempt.delivery.last_word else None
    return refused or (JobState.FAILED, str(Code.NODE_LOST), "")


def _claim_of(answer: Answer) -> Envelope | None:
    """The attestation of an answer that has ended."""
    said = (message.attestation for message in answer.tail.statements())
    return next((each for each in said if each is not None), None)


def _end_of(attestation: Envelope) -> _End:
    """How an attempt ended by the node's own claim."""
    state = _ENDS.get(
        wire.decode(InferenceAttestation, attestation.payload).finish, JobState.FAILED
    )
    return state, str(Code.NODE_LOST) if state is JobState.FAILED else "", ""


def _refusal(message: AttachRequest) -> _End | None:
    """The end that a failure is, or the refusal of a job."""
    if message.failure is not None:
        failed = wire.decode(JobFailure, message.failure.payload)
        return JobState.FAILED, failed.code, failed.message
    if message.decision is not None:
        decided = wire.decode(JobDecision, message.decision.payload)
        return None if decided.accepted else (JobState.FAILED, decided.code, decided.message)
    return None
