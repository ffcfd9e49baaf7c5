"""Everything a client says to its coordinator: one method a call, values in and values out.

Rules: every query is freshly signed, so a retry is no replay; every call has a deadline; a refusal
becomes our error; when the coordinator cannot be reached the next call dials anew and checks the
pin again, and those who waited for that share what came of it; whether somebody still is there is
asked where a stream falls silent; whoever is no member yet shows its invite once. What the answers
mean is decided by the callers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc.aio

from novamesh import transport
from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.job_transport import Wanted
from novamesh.model_choice import choose_model
from novamesh.retries import pause
from novamesh.vigil import ASK_S, FellSilentError, Vigil, fresh_s
from novamesh_proto import envelope, wire
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import CANDIDATES_MAX, DESCRIPTORS_LISTED_MAX
from novamesh_proto.messages import (
    CancelOrder,
    Candidate,
    DescriptorsQuery,
    Envelope,
    Header,
    JobId,
    JobPath,
    JobQuery,
    JobsQuery,
    JobView,
    JoinClaim,
    MatchQuery,
    ModelsQuery,
    NodeId,
    PoolCard,
    PoolModel,
    SealedJob,
    WatchQuery,
    WatchResponse,
)
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc as rpc

T = TypeVar("T")

RTTS_KEPT: Final = 8
_NOBODY: Final = frozenset({Code.UNAVAILABLE, Code.EXPIRED})
CALL_S_MAX: Final = 600.0  # a server refuses calls with a later deadline


class _Line:
    """One dialed channel; a stale one is closed when its last call is over.

    `broken` is why it was given up, where it was.
    """

    def __init__(
        self,
        channel: transport.Channel,
        ask: Callable[[_Line], Awaitable[object]],
        give_up: Callable[[_Line], Awaitable[None]],
    ) -> None:
        self.channel = channel
        self.calls = 0
        self.stale = False
        self.broken: NovaMeshError | None = None
        self.vigil = Vigil(lambda: ask(self), lambda: give_up(self))

    def broken_off(self) -> NovaMeshError:
        """Why its calls have ended."""
        if self.broken is None:
            return NovaMeshError(Code.UNAVAILABLE, "the line was closed meanwhile")
        return self.broken.with_traceback(None)


class PoolConnection:
    """A member's connection to its coordinator. Use from one event loop; close it at the end."""

    def __init__(
        self,
        pool: Pool,
        key: PrivateKey,
        clock: Clock,
        connect_timeout_s: float,
        path: JobPath = JobPath.RELAYED,
    ) -> None:
        """`path`: which way answers come that are followed here."""
        self.path = path
        self._rtts_s: deque[float] = deque(maxlen=RTTS_KEPT)
        self.pool = pool
        self.network = pool.network
        self.key = key
        self.clock = clock
        self.coordinator = pool.coordinator_id
        self._dialer = transport.Dialer(pool.address, self.coordinator)
        self._timeout_s = connect_timeout_s
        self._dialing = asyncio.Lock()
        self._refusals = 0  # of dialling so far
        self._refusal: NovaMeshError | None = None  # the last one
        self._line: _Line | None = None
        self._claimed = False
        self.silent = False  # nobody has answered since a stream fell silent

    @property
    def rtt_s(self) -> float | None:
        """Round trip, seconds: of the last calls the fastest, since others had to be worked for."""
        return min(self._rtts_s, default=None)

    async def close(self) -> None:
        """Hang up; calls still under way are cancelled."""
        line, self._line = self._line, None
        if line is not None:
            await line.channel.close()

    def header(self, *others: NodeId, life_ms: int = 60_000, in_reply_to: bytes = b"") -> Header:
        """A header of ours to the coordinator and `others`."""
        audience = (self.coordinator, *others)
        now_ms = self.clock.now_ms()
        return envelope.header(
            self.key, self.pool.network, audience, now_ms, life_ms, in_reply_to=in_reply_to
        )

    async def hello(self) -> Verified[PoolCard]:
        """The pool's card, by the coordinator's own signature. Its freshness is not judged here:
        whoever wants to know how wrong a clock is needs the card to say it."""
        response = await self._call("Hello", pb.HelloRequest)
        card = wire.from_pb(Envelope, response.card)
        opened = envelope.open(card, PoolCard, network=self.pool.network)
        if opened.issuer != self.coordinator:
            raise NovaMeshError(Code.PIN_MISMATCH, "the pool's card is signed by somebody else")
        return opened

    async def answers(self) -> bool:
        """Whether somebody is there, asked for a short time only."""
        try:
            await self._ask_on(await self._dial(fresh_s(self.rtt_s)))
        except NovaMeshError:
            return False
        return True

    async def join(self) -> None:
        """Become a member; harmless when repeated."""
        invite = self.pool.invite_bytes
        await self._call(
            "Join", lambda: pb.JoinRequest(claim=self._sign(JoinClaim(self.header(), invite)))
        )
        self._claimed = True

    async def list_models(self) -> tuple[PoolModel, ...]:
        """What the pool serves now."""
        response = await self._ask(
            "ListModels", lambda: pb.ListModelsRequest(query=self._sign(ModelsQuery(self.header())))
        )
        return tuple(wire.from_pb(PoolModel, model) for model in response.models)

    async def find_model(self, text: str) -> PoolModel:
        """The one model of the pool that a text means. Raises as `choose_model`."""
        return choose_model(text, await self.list_models())

    async def list_descriptors(self) -> tuple[Envelope, ...]:
        """Descriptors of nodes that are here, unverified, to find them without a coordinator."""
        response = await self._ask(
            "ListDescriptors",
            lambda: pb.ListDescriptorsRequest(query=self._sign(DescriptorsQuery(self.header()))),
        )
        found = response.descriptors[:DESCRIPTORS_LISTED_MAX]
        return tuple(wire.from_pb(Envelope, sealed) for sealed in found)

    async def aim(self, wanted: Wanted) -> None:
        """Nothing: the coordinator chooses nodes when a job is there."""

    def may_try_again(self, error: NovaMeshError) -> bool | float:
        """What can heal; a pool that is full is waited for."""
        return pause(error)

    def may_ask_another(self, error: NovaMeshError) -> bool:
        """No: the coordinator has asked whom it could."""
        return False

    async def match(self, wanted: Wanted) -> tuple[Candidate, ...]:
        """Candidates for a job, best first, with a slot reserved at each."""

        def request() -> pb.MatchRequest:
            query = MatchQuery(
                self.header(),
                wanted.model_profile,
                wanted.prompt_bytes,
                wanted.max_tokens,
                excluded=wanted.excluded,
            )
            return pb.MatchRequest(query=self._sign(query))

        response = await self._ask("Match", request)
        found = response.candidates[:CANDIDATES_MAX]
        return tuple(wire.from_pb(Candidate, candidate) for candidate in found)

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        """Hand in a sealed job; the same terms are the same job, however often they are sent."""
        response = await self._ask(
            "Submit",
            lambda: pb.SubmitRequest(job=wire.to_pb(job), reservations=list(reservations)),
        )
        return wire.from_pb(JobView, response.job)

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        """The events of a job until its end, after those that `attempt` and `from_chunk` name."""
        line = await self._dial()
        query = WatchQuery(self.header(), job, attempt, from_chunk)
        line.calls += 1
        try:
            stub = rpc.PoolServiceStub(line.channel.channel)
            call: Any = stub.Watch(pb.WatchRequest(query=self._sign(query)), timeout=CALL_S_MAX)
            try:
                with line.vigil.due():
                    async for event in call:
                        self._hear(line)
                        yield wire.from_pb(WatchResponse, transport.require_message(event))
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            raise self._refused(line, error) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise line.broken_off() from None
        finally:
            await self._release(line)

    async def acknowledge(self, ack: Envelope) -> None:
        """Pass a StreamAck on to the node."""
        await self._call("Acknowledge", lambda: pb.AcknowledgeRequest(ack=wire.to_pb(ack)))

    async def submit_receipt(self, receipt: Envelope) -> None:
        """Hand in a ClientReceipt."""
        await self._call(
            "SubmitReceipt", lambda: pb.SubmitReceiptRequest(receipt=wire.to_pb(receipt))
        )

    async def cancel(self, job: JobId) -> JobView:
        """Stop a job; its state afterwards."""
        response = await self._ask(
            "Cancel", lambda: pb.CancelRequest(order=self._sign(CancelOrder(self.header(), job)))
        )
        return wire.from_pb(JobView, response.job)

    async def get_job(self, job: JobId) -> JobView:
        """Where a job is."""
        response = await self._ask(
            "GetJob", lambda: pb.GetJobRequest(query=self._sign(JobQuery(self.header(), job)))
        )
        return wire.from_pb(JobView, response.job)

    async def list_jobs(self, count: int) -> tuple[JobView, ...]:
        """Our jobs, newest first."""
        response = await self._ask(
            "ListJobs",
            lambda: pb.ListJobsRequest(query=self._sign(JobsQuery(self.header(), count))),
        )
        return tuple(wire.from_pb(JobView, job) for job in response.jobs)

    def _sign(self, message: Signable) -> Any:
        return wire.to_pb(envelope.seal(message, self.key))

    async def _ask(self, method: str, request: Callable[[], object]) -> Any:
        """Call as a member; whoever is none yet shows its invite, once a connection."""
        claimed = self._claimed
        try:
            return await self._call(method, request)
        except NovaMeshError as error:
            if error.code is not Code.NOT_A_MEMBER or claimed:
                raise
        if not self._claimed:  # another call may have joined meanwhile
            await self.join()
        return await self._call(method, request)

    async def _call(self, method: str, request: Callable[[], object]) -> Any:
        return await self._call_on(await self._dial(), method, request, self._timeout_s)

    async def _call_on(
        self, line: _Line, method: str, request: Callable[[], object], within_s: float
    ) -> Any:
        line.calls += 1
        try:
            call: Callable[..., Awaitable[Any]] = getattr(
                rpc.PoolServiceStub(line.channel.channel), method
            )
            began_s = self.clock.monotonic()
            came = await call(request(), timeout=within_s)
            self._hear(line)
            answer = transport.require_message(came)
            self._rtts_s.append(self.clock.monotonic() - began_s)
            return answer
        except grpc.aio.AioRpcError as error:
            raise self._refused(line, error) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise line.broken_off() from None
        finally:
            await self._release(line)

    async def _dial(self, within_s: float | None = None) -> _Line:
        refused = self._refusals
        async with self._dialing:
            if self._line is None:
                if self._refusal is not None and self._refusals != refused:
                    raise self._refusal.with_traceback(None)  # of who dialled while this waited
                try:
                    channel = await self._dialer.open(within_s or self._timeout_s)
                except NovaMeshError as error:
                    self._refusals, self._refusal = self._refusals + 1, error
                    raise
                self._line = _Line(channel, self._ask_on, self._give_up)
            return self._line

    async def _ask_on(self, line: _Line) -> None:
        """Whether somebody is there, and be it to refuse. Raises NovaMeshError if not, in ASK_S."""
        try:
            await self._call_on(line, "Hello", pb.HelloRequest, ASK_S)
        except NovaMeshError as error:
            if error.code in _NOBODY:
                raise

    async def _give_up(self, line: _Line) -> None:
        """End what is due on a line where nobody answers, and say whether a fresh one is better."""
        self._forget(line)
        if await self.answers():
            line.broken = NovaMeshError(Code.UNAVAILABLE, "the line fell silent; another is open")
        else:
            self.silent = True
            line.broken = FellSilentError(line.vigil.silent_s)
        await line.channel.close()

    def _hear(self, line: _Line) -> None:
        """Somebody is there, whatever it said."""
        self.silent = False
        line.vigil.hear()

    def _forget(self, line: _Line) -> None:
        line.stale = True
        if self._line is line:
            self._line = None

    def _refused(self, line: _Line, error: grpc.aio.AioRpcError) -> NovaMeshError:
        """Our error. What cannot be reached may have restarted with another certificate."""
        refusal = line.broken_off() if line.broken else transport.error_from_rpc(error)
        if refusal.code in _NOBODY:
            self._forget(line)
        else:
            self._hear(line)
        return refusal

    async def _release(self, line: _Line) -> None:
        line.calls -= 1
        if line.stale and not line.calls:
            await line.channel.close()


def _is_cancelled() -> bool:
    """Whether it was this task; gRPC ends the calls of a channel that is closed just as if."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
