"""A pool in memory behind a real pinned port of loopback: real signatures, real sealing, no engine.

It answers every job with the words of `script.answer`, one chunk a word, from nodes with real keys.
What goes wrong is scripted too. It keeps what clients handed in, for tests to look at.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc

from novamesh.config import Pool
from novamesh_proto import envelope, sealing, wire
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import DESCRIPTOR_LIFE_MS, TAIL_KEPT_MS
from novamesh_proto.messages import (
    CancelOrder,
    ClientReceipt,
    Envelope,
    ErrorDetail,
    Hardware,
    JobAssignment,
    JobBody,
    JobId,
    JobQuery,
    JobsQuery,
    JobState,
    JobTerms,
    JobView,
    JoinClaim,
    JoinCode,
    MatchQuery,
    ModelOffer,
    ModelsQuery,
    NodeDescriptor,
    NodeId,
    PoolCard,
    PoolModel,
    SealedJob,
    StreamAck,
    WatchQuery,
    WatchResponse,
)
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.transport_identity import make_certificate
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc as rpc
from support.fake_answer import NETWORK, Play, Script, sign
from support.parties import hpke_key, party

T = TypeVar("T", bound=Signable)

INVITE = b"let me in"
HANG_S = 20.0


@dataclass
class _Job:
    """One submitted job and its events."""

    terms: Verified[JobTerms]
    body: JobBody
    view: JobView
    events: list[WatchResponse]
    cancelled: threading.Event = field(default_factory=threading.Event)


class FakePool(rpc.PoolServiceServicer):
    """Use as `with FakePool() as pool`; `pool.entry` is its `[pool]` table."""

    def __init__(self, script: Script | None = None, name: str = "coordinator") -> None:
        self.script = script or Script()
        self.key = party(name)
        self.nodes = [party("node one"), party("node two")]
        self.address = ""
        self.members: set[bytes] = set()
        self.calls: Counter[str] = Counter()
        self.jobs: dict[JobId, _Job] = {}
        self.acks: deque[StreamAck] = deque(maxlen=1000)
        self.receipts: deque[ClientReceipt] = deque(maxlen=1000)
        self.bodies: deque[JobBody] = deque(maxlen=1000)
        self.excluded: deque[tuple[NodeId, ...]] = deque(maxlen=1000)
        self._fence = 0
        self._server: grpc.Server | None = None

    def __enter__(self) -> FakePool:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port of last time if there was one."""
        certificate = make_certificate(self.key, datetime.now(UTC))
        pair = (certificate.private_key_pem, certificate.certificate_pem)
        self._server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
        rpc.add_PoolServiceServicer_to_server(self, self._server)
        port = self._server.add_secure_port(
            self.address or "127.0.0.1:0", grpc.ssl_server_credentials([pair])
        )
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """Hang up on everybody."""
        for job in self.jobs.values():
            job.cancelled.set()
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    @property
    def join_code(self) -> JoinCode:
        """What lets somebody in."""
        return JoinCode(self.address, self.key.node_id, NETWORK, INVITE)

    @property
    def entry(self) -> Pool:
        """The `[pool]` table of its members."""
        return Pool.from_join_code(self.join_code)

    # The calls, in the order of the .proto file.

    def Hello(self, request: Any, context: Any) -> pb.HelloResponse:
        self._begin("Hello", context)
        card = PoolCard(self._header(self.key), self._now_ms(), "0.1.0", False)
        return pb.HelloResponse(card=wire.to_pb(envelope.seal(card, self.key)))

    def Join(self, request: Any, context: Any) -> pb.JoinResponse:
        self._begin("Join", context)
        claim = self._open(request.claim, JoinClaim, context)
        if self.script.needs_invite and claim.message.invite != INVITE:
            self._refuse(context, NovaMeshError(Code.FORBIDDEN, "this invite is used up", "ask"))
        self.members.add(claim.issuer)
        return pb.JoinResponse()

    def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        self._begin("ListModels", context)
        self._member(self._open(request.query, ModelsQuery, context), context)
        models = [PoolModel(digest, name, 2, 3, 512) for name, digest in self.script.models]
        return pb.ListModelsResponse(models=[wire.to_pb(model) for model in models])

    def Match(self, request: Any, context: Any) -> pb.MatchResponse:
        self._begin("Match", context)
        query = self._member(self._open(request.query, MatchQuery, context), context)
        found = [
            pb.Candidate(
                descriptor=wire.to_pb(self.descriptor(node).envelope),
                reason="about 1.2 s: 80 tokens/s claimed, 4 of 4 slots free, new here",
                reservation=bytes(16),
            )
            for node in self.nodes
            if node.node_id not in query.message.excluded
        ]
        self.excluded.append(query.message.excluded)
        if not found:
            self._refuse(context, NovaMeshError(Code.NO_CAPACITY, "excluded by the client"))
        return pb.MatchResponse(candidates=found)

    def Submit(self, request: Any, context: Any) -> pb.SubmitResponse:
        self._begin("Submit", context)
        sealed = wire.from_pb(SealedJob, request.job)
        terms = self._open(request.job.terms, JobTerms, context)
        self._member(terms, context)
        job = JobId(terms.id)
        parent = terms.message.parent_job
        if parent and not self._find(JobId(parent), context).view.state.terminal:
            self._refuse(context, NovaMeshError(Code.CONFLICT, "cancel it first"))
        if job not in self.jobs:
            self.jobs[job] = self._perform(sealed, terms)
        return pb.SubmitResponse(job=wire.to_pb(replace(self.jobs[job].view)))

    def Watch(self, request: Any, context: Any) -> Iterator[pb.WatchResponse]:
        self._begin("Watch", context)
        query = self._open(request.query, WatchQuery, context).message
        job = self._find(query.job, context)
        attempt = chunks = 0
        for event in job.events:
            if event.assignment is not None:
                attempt += 1
                chunks = 0
            if event.chunk is not None:
                if self.script.break_after and chunks >= self.script.break_after[0]:
                    self.script.break_after.pop(0)
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
                if chunks == self.script.hang_after:
                    job.cancelled.wait(HANG_S)
                    if job.view.state is JobState.CANCELLED:
                        break
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator stops")
                chunks += 1
                if attempt == query.attempt and event.chunk.index < query.from_chunk:
                    continue
            yield wire.to_pb(event)
        yield wire.to_pb(WatchResponse(job=job.view))

    def Acknowledge(self, request: Any, context: Any) -> pb.AcknowledgeResponse:
        self._begin("Acknowledge", context)
        self.acks.append(self._open(request.ack, StreamAck, context).message)
        return pb.AcknowledgeResponse()

    def SubmitReceipt(self, request: Any, context: Any) -> pb.SubmitReceiptResponse:
        self._begin("SubmitReceipt", context)
        self.receipts.append(self._open(request.receipt, ClientReceipt, context).message)
        return pb.SubmitReceiptResponse()

    def Cancel(self, request: Any, context: Any) -> pb.CancelResponse:
        self._begin("Cancel", context)
        order = self._open(request.order, CancelOrder, context).message
        job = self._find(order.job, context)
        job.view = replace(job.view, state=JobState.CANCELLED, code=Code.CANCELLED)
        job.cancelled.set()
        return pb.CancelResponse(job=wire.to_pb(job.view))

    def GetJob(self, request: Any, context: Any) -> pb.GetJobResponse:
        self._begin("GetJob", context)
        query = self._open(request.query, JobQuery, context).message
        return pb.GetJobResponse(job=wire.to_pb(self._find(query.job, context).view))

    def ListJobs(self, request: Any, context: Any) -> pb.ListJobsResponse:
        self._begin("ListJobs", context)
        query = self._member(self._open(request.query, JobsQuery, context), context)
        views = [job.view for job in reversed(self.jobs.values())][: query.message.count]
        return pb.ListJobsResponse(jobs=[wire.to_pb(view) for view in views])

    # What stands behind them.

    def descriptor(self, node: PrivateKey) -> Verified[NodeDescriptor]:
        """What a node advertises."""
        offers = tuple(
            ModelOffer(digest, name, 512, 80.0, 800.0, 0) for name, digest in self.script.models
        )
        tampered = self.script.tampered
        if tampered == "offer":
            offers = ()
        age_ms = 2 * DESCRIPTOR_LIFE_MS if tampered == "old descriptor" else 0
        network = "elsewhere" if tampered == "foreign descriptor" else NETWORK
        made = NodeDescriptor(
            header=envelope.header(node, network, (), self._now_ms() - age_ms, DESCRIPTOR_LIFE_MS),
            sequence=1,
            hpke_key=hpke_key(node.node_id.hex()).public,
            models=offers,
            hardware=Hardware("cpu", "test machine", 2**30),
            engine_build="0.1.0 fake",
            slots=4,
        )
        return sign(made, node, network)

    def _perform(self, sealed: SealedJob, terms: Verified[JobTerms]) -> _Job:
        """Open the job as its node would, and write down everything that will happen."""
        events: list[WatchResponse] = []
        view = JobView(
            JobId(terms.id), JobState.ADMITTED, 0, b"", terms.message.model_profile, self._now_ms()
        )
        events.append(WatchResponse(job=view))
        attempt = 0
        while attempt < self.script.lost_attempts:
            attempt += 1
            events.append(WatchResponse(assignment=self._assign(sealed, terms, attempt).envelope))
        attempt += 1
        given = self._assign(sealed, terms, attempt)
        node = next(key for key in self.nodes if key.node_id == given.message.node)
        body = sealing.open_body(sealed, terms, hpke_key(node.node_id.hex()), node.node_id)
        self.bodies.append(body)
        view = replace(view, attempt=attempt, node=node.node_id)
        if self.script.failures:
            error = self.script.failures.pop(0)
            failed = replace(view, state=JobState.FAILED, code=error.code, message=error.message)
            return _Job(terms, body, failed, events)
        death = self.script.deaths.pop(0) if self.script.deaths else None
        play = Play(self.script, self.key, node, terms, given, body, death)
        events += [WatchResponse(assignment=given.envelope), *play.events()]
        if death is not None:
            message = f"its node was {death.how}"
            failed = replace(view, state=JobState.FAILED, code=death.code, message=message)
            return _Job(terms, body, failed, events)
        if self.script.tampered == "restart":
            self.script.tampered = ""
            again = self._assign(sealed, terms, attempt + 1)
            events.insert(5, WatchResponse(assignment=again.envelope))
        tokens = len(self.script.answer)
        return _Job(terms, body, replace(view, state=JobState.SETTLED, tokens=tokens), events)

    def _assign(
        self, sealed: SealedJob, terms: Verified[JobTerms], attempt: int
    ) -> Verified[JobAssignment]:
        self._fence += 1
        node = sealed.wraps[(attempt - 1) % len(sealed.wraps)].node
        key = self.nodes[0] if self.script.tampered == "assignment" else self.key
        made = JobAssignment(
            header=self._header(key, node, terms.issuer, in_reply_to=terms.id),
            job=JobId(terms.id),
            node=node,
            attempt=attempt,
            fence=self._fence,
            lease_ms=15_000,
        )
        return sign(made, key)

    def _begin(self, call: str, context: Any) -> None:
        self.calls[call] += 1
        if self.script.refusals.get(call):
            self._refuse(context, self.script.refusals[call].pop(0))

    def _open(self, sealed: Any, cls: type[T], context: Any) -> Verified[T]:
        try:
            return envelope.open(
                wire.from_pb(Envelope, sealed),
                cls,
                network=NETWORK,
                audience=self.key.node_id,
                now_ms=self._now_ms(),
            )
        except NovaMeshError as error:
            self._refuse(context, error)

    def _member(self, opened: Verified[T], context: Any) -> Verified[T]:
        if opened.issuer not in self.members:
            hint = "novamesh pool join CODE"
            self._refuse(context, NovaMeshError(Code.NOT_A_MEMBER, "you are no member", hint))
        return opened

    def _find(self, job: JobId, context: Any) -> _Job:
        if job not in self.jobs:
            self._refuse(context, NovaMeshError(Code.NOT_FOUND, "there is no such job of yours"))
        return self.jobs[job]

    def _refuse(self, context: Any, error: NovaMeshError) -> NoReturn:
        detail = ErrorDetail(error.code, error.message, error.hint, error.retry_after_ms)
        context.set_trailing_metadata(((ERROR_METADATA, wire.encode(detail)),))
        context.abort(grpc.StatusCode[error.meaning.grpc], error.message)
        raise AssertionError("abort raises")

    def _now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.script.clock_offset_ms

    def _header(self, key: PrivateKey, *audience: bytes, in_reply_to: bytes = b"") -> Any:
        return envelope.header(
            key, NETWORK, audience, self._now_ms(), TAIL_KEPT_MS, in_reply_to=in_reply_to
        )
