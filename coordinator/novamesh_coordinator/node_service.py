"""NodeService: the one stream of a node, from its challenge to its goodbye.

challenge → hello → welcome, then what the node says becomes inputs, one after the other, and its
outbox is written. Rules: nothing is taken before the hello is proven; a message that is refused is
counted and logged, and ends the stream only if the node broke the protocol; whoever does not read
for WRITE_S is gone; a stream that ends for whatever reason detaches its session and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

import grpc.aio
import structlog

from novamesh_coordinator.effects import Assign
from novamesh_coordinator.hub import Outbox, Outgoing
from novamesh_coordinator.inputs import (
    AttemptAttested,
    AttemptDecided,
    AttemptFailed,
    CheckpointArrived,
    ChunkArrived,
    DescriptorRenewed,
    EchoArrived,
    IdleAsked,
    Input,
    LoadChanged,
    NodeAttached,
    NodeDetached,
    PrefillMoved,
    WitnessArrived,
    WorkOffered,
)
from novamesh_coordinator.service import Context, Door, Pen, internal_error, refuse
from novamesh_proto import envelope, wire
from novamesh_proto.buckets import Buckets
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import short
from novamesh_proto.messages import (
    AttachAssignment,
    AttachChallenge,
    AttachGoodbye,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    ChunkCheckpoint,
    Donation,
    DonationTaken,
    Envelope,
    IdleReport,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobId,
    NodeDescriptor,
    NodeId,
    RunningAttempt,
    SealedJob,
)
from novamesh_proto.node_table import Source
from novamesh_proto.places import place_of
from novamesh_proto.v1 import job_pb2, node_pb2_grpc

HELLO_S: Final = 10.0
WRITE_S: Final = 30.0
NONCE_BYTES: Final = 32
SESSION_BYTES: Final = 16
# A message refused for these is an ordinary race; for anything else the node is at fault.
RACES: Final = frozenset({Code.STALE, Code.NOT_FOUND, Code.CONFLICT})

_log = structlog.get_logger()


class _StreamOver(Exception):  # noqa: N818  not an error: the way out of a task group
    """One side of the stream ended."""


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """The coordinator's side for nodes."""

    def __init__(self, door: Door) -> None:
        self.door = door

    async def Attach(  # type: ignore[override]  # reads and writes itself, each with a bound
        self, request_iterator: Any, context: Context
    ) -> None:
        """One stream of one node."""
        pen = Pen(context)
        try:
            await self._attach(context, pen)
            await pen.settle()
        except NovaMeshError as error:
            self.door.metrics.count_refusal(error.code)
            _log.info("stream refused", code=error.code.value, error=error.message)
            await pen.settle()
            await refuse(context, error)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            # The boundary of a stream: a bug of ours ends this stream and nothing else.
            _log.exception("a stream failed")
            await pen.settle()
            await refuse(context, internal_error())

    async def _attach(self, context: Context, pen: Pen) -> None:
        door = self.door
        nonce, session = os.urandom(NONCE_BYTES), os.urandom(SESSION_BYTES)
        asked_s = door.clock.monotonic()
        challenge = AttachChallenge(nonce, door.clock.now_ms())
        try:
            with door.guests.hold(place_of(context.peer())):
                async with asyncio.timeout(HELLO_S):
                    await pen.write(AttachResponse(challenge=challenge), HELLO_S)
                    first = await _read(context)
        except TimeoutError:
            raise NovaMeshError(Code.EXPIRED, "no hello came", "attach again") from None
        if first is None or first.hello is None:
            raise NovaMeshError(Code.WRONG_TYPE, "a stream begins with a hello")
        rtt_us = int((door.clock.monotonic() - asked_s) * 1_000_000)
        hello, descriptor = door.verifier.open_hello(
            first.hello, nonce, door.key_digest, door.clock.now_ms()
        )
        node = hello.issuer
        door.parties.take(node, door.clock.monotonic())
        outbox = door.hub.connect(node, session)
        try:
            attached = NodeAttached(hello, descriptor, session, rtt_us)
            resumed: Any = await door.sequencer.submit(attached)
            self._list(descriptor)
            await self._serve(context, pen, outbox, resumed)
        finally:
            door.hub.disconnect(outbox)
            # Also when the call was cancelled: the session must end, or its slots are never free.
            with contextlib.suppress(NovaMeshError):
                gone = NodeDetached(node, session, door.hub.stopping)
                await asyncio.shield(door.sequencer.insist(gone))

    async def _serve(
        self, context: Context, pen: Pen, outbox: Outbox, resumed: tuple[RunningAttempt, ...]
    ) -> None:
        log = _log.bind(node=short(outbox.node), session=outbox.session.hex()[:8])
        log.info("node attached", resumed=len(resumed))
        welcome = AttachWelcome(outbox.session, resumed)
        try:
            await self._send(pen, AttachResponse(welcome=welcome))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear(context, outbox), name="attach-reader")
                tasks.create_task(self._speak(pen, outbox), name="attach-writer")
        except* _StreamOver:
            log.info("node detached")
        except* NovaMeshError as group:
            error = group.exceptions[0]
            assert isinstance(error, NovaMeshError)
            log.warning("node dropped", code=error.code.value, error=error.message)
            raise error from None

    async def _hear(self, context: Context, outbox: Outbox) -> None:
        """What the node says, in order."""
        bucket = Buckets(self.door.limits.stream)
        while (message := await _read(context)) is not None:
            if pause_s := _pause(bucket, self.door.clock.monotonic()):
                await asyncio.sleep(pause_s)
            try:
                await self._take(message, outbox)
            except NovaMeshError as error:
                self.door.metrics.count_refusal(error.code)
                if error.code not in RACES:
                    raise
                _log.info("message refused", node=short(outbox.node), code=error.code.value)
        raise _StreamOver

    async def _take(self, message: AttachRequest, outbox: Outbox) -> None:
        if message.idle_query is not None:
            report = await self.door.sequencer.submit(IdleAsked(outbox.node, outbox.session))
            assert isinstance(report, IdleReport)
            outbox.put(AttachResponse(idle_report=report))
            return
        if message.donation is not None:
            await self._take_donation(message.donation, outbox)
            return
        if message.witness is not None:
            await self._take_witness(message.witness, outbox)
            return
        said = self._input(message, outbox.node, outbox.session)
        await self.door.sequencer.insist(said)
        if isinstance(said, DescriptorRenewed):
            self._list(said.descriptor)

    def _list(self, descriptor: Verified[NodeDescriptor]) -> None:
        """Have a node's newest descriptor in the table of who is here, whatever way it came."""
        with contextlib.suppress(NovaMeshError):  # a broker was faster
            self.door.table.put(descriptor, Source.COORDINATOR, self.door.clock.now_ms())

    async def _take_witness(self, sealed: Envelope, outbox: Outbox) -> None:
        """A client's word that its node brings; what is wrong with it is not the node's fault."""
        try:
            witness = self.door.verifier.open_witness(sealed, self.door.clock.now_ms())
            said = WitnessArrived(outbox.node, outbox.session, witness)
            await self.door.sequencer.insist(said)
        except NovaMeshError as error:
            if error.code is Code.STORAGE:
                raise
            self.door.metrics.count_refusal(error.code)
            _log.info("witness refused", node=short(outbox.node), code=error.code.value)

    async def _take_donation(self, given: Donation, outbox: Outbox) -> None:
        """Log donated work; what is refused once would be refused again, so the node forgets it."""
        try:
            self.door.donors.take(outbox.node, self.door.clock.monotonic())
        except NovaMeshError:
            return  # it keeps it, and tells us again when it attaches again
        try:
            proof = self.door.verifier.open_donation(given)
            await self.door.sequencer.insist(WorkOffered(outbox.node, outbox.session, proof))
        except NovaMeshError as error:
            if error.code is Code.STORAGE:
                raise
            self.door.metrics.count_refusal(error.code)
            _log.info("donation refused", node=short(outbox.node), error=error.message)
            job = JobId(envelope.message_id(given.terms))
            outbox.put(AttachResponse(donation_taken=DonationTaken(job)))

    def _input(self, message: AttachRequest, node: NodeId, session: bytes) -> Input:
        """The input that a message means, its signature checked."""
        verifier, now_ms = self.door.verifier, self.door.clock.now_ms()
        if message.chunk is not None:
            return ChunkArrived(node, session, message.chunk)
        if message.progress is not None:
            return PrefillMoved(node, session, message.progress)
        if message.load is not None:
            return LoadChanged(node, session, message.load)
        if message.decision is not None:
            decision = verifier.open_of(message.decision, JobDecision, node, now_ms)
            return AttemptDecided(session, decision)
        if message.checkpoint is not None:
            point = verifier.open_of(message.checkpoint, ChunkCheckpoint, node, now_ms)
            return CheckpointArrived(session, point)
        if message.attestation is not None:
            claim = verifier.open_of(message.attestation, InferenceAttestation, node, now_ms)
            return AttemptAttested(session, claim)
        if message.failure is not None:
            return AttemptFailed(
                session, verifier.open_of(message.failure, JobFailure, node, now_ms)
            )
        if message.descriptor is not None:
            renewed = verifier.open_descriptor(message.descriptor, node, now_ms)
            return DescriptorRenewed(node, session, renewed)
        if message.echo is not None:
            return EchoArrived(node, session, message.echo.nonce)
        raise NovaMeshError(Code.WRONG_TYPE, "a stream has one hello")

    async def _speak(self, pen: Pen, outbox: Outbox) -> None:
        """What the outbox holds, then the goodbye."""
        while (item := await outbox.next()) is not None:
            message = await self._complete(item, outbox.node)
            if message is not None:
                await self._send(pen, message)
        goodbye = outbox.closed or AttachGoodbye(Code.UNAVAILABLE)
        await self._send(pen, AttachResponse(goodbye=goodbye))
        raise _StreamOver

    async def _send(self, pen: Pen, message: AttachResponse) -> None:
        try:
            await pen.write(message, WRITE_S)
        except TimeoutError:
            raise NovaMeshError(Code.EXPIRED, "the node does not read its messages") from None

    async def _complete(self, item: Outgoing, node: NodeId) -> AttachResponse | None:
        """An assignment gets the sealed job, with this node's wrap only."""
        if not isinstance(item, Assign):
            return item
        data = await self.door.store.body(item.job)
        if data is None:
            return None  # the job ended while the assignment waited
        sealed = wire.from_pb(SealedJob, job_pb2.SealedJob.FromString(data))
        wraps = tuple(wrap for wrap in sealed.wraps if wrap.node == node)
        job = SealedJob(sealed.terms, sealed.body, wraps)
        return AttachResponse(assignment=AttachAssignment(item.assignment, job))


async def _read(context: Context) -> AttachRequest | None:
    """The next message; None when the node says nothing more."""
    message = await context.read()
    if message is grpc.aio.EOF:
        return None
    return wire.from_pb(AttachRequest, message)


def _pause(bucket: Buckets, now_s: float) -> float:
    """Seconds to wait before the next message is looked at: a node that floods is slowed down."""
    try:
        bucket.take("", now_s)
    except NovaMeshError as error:
        return error.retry_after_ms / 1000
    return 0.0
