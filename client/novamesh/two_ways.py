"""One job that its coordinator assigned, followed on the best of two ways: relayed, and directly.

The coordinator says who works on the job; once it does, the node is asked itself, and where it can
be reached its chunks come from it alone; where the coordinator is far, through a tunnel too, which
opens while the answer is relayed. Rules: both streams are in order, so whichever brings the next
chunk brings it, and nothing comes twice; what ends a job waits until a direct stream that was begun
has ended or stands still; when that breaks, the relay goes on, and when the coordinator is away,
the direct stream does; where neither goes on and the node is not there any more, it is lost. What
the client signs goes to whoever can use it. What events mean is `reader`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from novamesh.direct_lines import DirectLine, DirectLines
from novamesh.job_records import JobRecord
from novamesh.job_transport import JobTransport
from novamesh.paths import is_better, is_far
from novamesh_proto import wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    Envelope,
    JobAssignment,
    JobId,
    JobPath,
    JobView,
    NodeDescriptor,
    NodeId,
    SealedJob,
    WatchResponse,
)

EVENTS_WAITING_MAX: Final = 16  # of each stream; then it waits for its reader
HELD_MAX: Final = 16  # events that end a job; no job has so many
HELD_S: Final = 3.0  # a node that brings nothing for so long, when its job has ended, stands still
SETTLING_S: Final = 3.0  # a coordinator that is away longer settles without us
_NEARER: Final = -1  # in the place of a stream's number: there is a tunnel now
_GONE: Final = frozenset({Code.UNAVAILABLE, Code.EXPIRED})


class TwoWays:
    """A JobTransport for one job of a record; used by one session."""

    def __init__(
        self, pool: JobTransport, lines: DirectLines, record: JobRecord, relay_rtt_s: float | None
    ) -> None:
        """`relay_rtt_s`: round trip to the coordinator, seconds; None if it was not measured."""
        self._pool = pool
        self._lines = lines
        self._record = record
        self._relay_rtt_s = relay_rtt_s
        self._node: NodeId | None = None
        self._line: DirectLine | None = None  # where the node takes what the client signs
        self._attempt = 0
        self._chunks = 0  # of it, passed on so far
        self._followed = 0  # the attempt of which the node itself brought a part
        self._attested = False  # by the node itself
        self._relayed = True  # the coordinator's stream is open
        self._direct = 0  # number of the node's stream that is open; 0: none
        self._dialed = 0  # streams to nodes so far
        self._tried: tuple[int, bool, int] | None = None  # attempt, insisting, chunks at the time
        self._nearer = 0  # the attempt for which a tunnel was opened beside the relayed way
        self._events: asyncio.Queue[_Arrival] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._ack: Envelope | None = None  # the newest that the coordinator was not told of yet
        self._acking: asyncio.Task[None] | None = None
        self.path = JobPath.RELAYED

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        """Hand in a sealed job."""
        return await self._pool.submit(job, reservations)

    async def cancel(self, job: JobId) -> JobView:
        """Stop a job; its state afterwards."""
        return await self._pool.cancel(job)

    async def get_job(self, job: JobId) -> JobView:
        """Where a job is."""
        return await self._pool.get_job(job)

    async def acknowledge(self, ack: Envelope) -> None:
        """The node needs it to go on, the coordinator to pay if the node is lost."""
        if self._line is None:
            await self._pool.acknowledge(ack)
            return
        with contextlib.suppress(NovaMeshError):
            await self._line.connection.acknowledge(ack)
        # Acks that wait for a coordinator that is away would hold the answer back.
        self._ack = ack
        if self._relayed and (self._acking is None or self._acking.done()):
            self._acking = self._start(self._pass_on_acks(), "acks")

    async def submit_receipt(self, receipt: Envelope) -> None:
        """The node passes it on where the coordinator is away."""
        if self._line is not None:
            with contextlib.suppress(NovaMeshError):
                await self._line.connection.submit_receipt(receipt)
        await self._pool.submit_receipt(receipt)

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        """The events of a job until its end, after those that `attempt` and `from_chunk` name."""
        self._attempt, self._chunks, self._tried, self._nearer = attempt, from_chunk, None, 0
        self._line, self._relayed, self._direct = None, True, 0
        self._events = asyncio.Queue(EVENTS_WAITING_MAX)
        self._start(self._relay(self._pool.watch(job, attempt, from_chunk)), "relayed")
        self._go_direct(insist=False)
        try:
            async with contextlib.aclosing(self._merge()) as events:
                async for event in events:
                    yield event
        finally:
            self._relayed = False
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _merge(self) -> AsyncGenerator[WatchResponse]:
        """Both streams as one. Raises NovaMeshError where neither goes on."""
        held: list[WatchResponse] = []
        broken = _away()
        while True:
            arrival = await self._next(bool(held))
            event, direct = arrival.event, bool(arrival.stream)
            ready: list[WatchResponse] = []
            if arrival.stream == _NEARER and self._nearer == self._attempt:
                self._tried = None
                self._go_direct(insist=False)
            if direct and arrival.stream != self._direct:
                continue  # of a stream that was given up
            if event is None and direct:
                self._direct, self._line = 0, None if arrival.error else self._line
            elif event is None:
                self._relayed, broken = False, arrival.error or broken
            elif self._direct and self._line is not None and not direct and _concludes(event):
                held.append(event)
                if len(held) > HELD_MAX:
                    raise NovaMeshError(Code.CORRUPT, "the coordinator ends this job without end")
            else:
                if event.assignment is not None:
                    self._take_assignment(event.assignment)
                if self._is_next(event, direct):
                    ready.append(event)
            if not self._direct:
                ready, held = [*held, *ready], []
            for each in ready:
                yield each
                if _ends(each):
                    return
            if event is not None and event.assignment is not None:
                self._go_direct(insist=False)
            if not self._direct and not self._relayed and not self._go_direct(insist=True):
                raise self._loss(broken)

    async def _next(self, held: bool) -> _Arrival:
        """What comes next; a proved answer waits for its settlement for a moment only."""
        settling = self._attested and not self._direct
        try:
            async with asyncio.timeout(HELD_S if held else SETTLING_S if settling else None):
                return await self._events.get()
        except TimeoutError:
            if held:
                return _Arrival(self._direct, None, _away())
            raise _away() from None

    def _take_assignment(self, sealed: Envelope) -> None:
        """Remember who works; that it says so truly is checked by the reader."""
        given = wire.decode(JobAssignment, sealed.payload)
        if given.attempt != self._attempt:  # else it is told again after a broken connection
            self._attempt, self._chunks, self._direct, self._line = given.attempt, 0, 0, None
        self._node = given.node

    def _is_next(self, event: WatchResponse, direct: bool) -> bool:
        """Whether an event is passed on: chunks each once, whoever brings them."""
        if event.chunk is None:
            if event.attestation is not None and direct and self.path is not JobPath.RELAYED:
                self._attested = True
            return True
        if event.chunk.index < self._chunks:
            return False
        self._chunks = event.chunk.index + 1
        if not direct:
            self.path = JobPath.RELAYED
        elif self._line is not None:
            self.path, self._followed = self._line.path, self._attempt
        return True

    def _go_direct(self, *, insist: bool) -> bool:
        """Ask the node itself, unless that brought nothing the last time; whether it is asked."""
        node, trying = self._node, (self._attempt, insist, self._chunks)
        if self._direct or node is None or not self._attempt or self._attested:
            return bool(self._direct)
        if self._tried == trying:
            return False
        self._tried = trying
        self._dialed += 1
        self._direct = self._dialed
        self._start(self._follow_node(node, self._direct, self._attempt, insist), "direct")
        return True

    async def _follow_node(self, node: NodeId, stream: int, attempt: int, insist: bool) -> None:
        """Follow the attempt at its node, where that is better than the relayed way."""
        descriptor = self._record.candidate(node)
        try:
            if descriptor is None:
                raise _away()
            line = await self._lines.open(descriptor, insist=insist)
            if not insist and not is_better(line.path, line.rtt_s, self._relay_rtt_s):
                line.doubt()  # for the next job
                raise NovaMeshError(Code.UNAVAILABLE, "the direct way is a detour")
        except NovaMeshError as error:
            await self._events.put(_Arrival(stream, None, error))
            if descriptor is not None and not insist and is_far(self._relay_rtt_s):
                await self._come_nearer(descriptor, attempt)
            return
        if stream != self._direct:
            return  # the job began again elsewhere meanwhile
        self._line = line
        job = self._record.job
        failure = await self._pump(line.connection.watch(job, attempt, self._chunks), stream)
        if failure is not None and failure.code in _GONE:
            await self._lines.drop(node, line)  # before it is told: the next one is dialled anew
        await self._events.put(_Arrival(stream, None, failure))

    async def _come_nearer(self, descriptor: Verified[NodeDescriptor], attempt: int) -> None:
        """Ask the node itself once there is a tunnel to it; until then the answer is relayed."""
        if self._nearer == attempt:
            return  # there is one, and it is no better
        self._nearer = attempt
        with contextlib.suppress(NovaMeshError):
            await self._lines.open_tunnel(descriptor)
            await self._events.put(_Arrival(_NEARER, None))

    async def _pass_on_acks(self) -> None:
        """The coordinator gets the newest ack; those before it say no more."""
        while self._relayed and self._ack is not None:
            ack, self._ack = self._ack, None
            with contextlib.suppress(NovaMeshError):
                await self._pool.acknowledge(ack)

    async def _relay(self, events: AsyncGenerator[WatchResponse]) -> None:
        failure = await self._pump(events, 0)
        await self._events.put(_Arrival(0, None, failure))

    async def _pump(
        self, events: AsyncGenerator[WatchResponse], stream: int
    ) -> NovaMeshError | None:
        """Pass a stream's events on; why it broke. Who works, only the coordinator says."""
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if stream and event.assignment is not None:
                        self._require_same(event.assignment)
                    elif not stream or event.job is None:
                        await self._events.put(_Arrival(stream, event))
        except NovaMeshError as error:
            return error
        return None

    def _require_same(self, sealed: Envelope) -> None:
        if wire.decode(JobAssignment, sealed.payload).attempt != self._attempt:
            raise NovaMeshError(Code.STALE, "the node works on another attempt")

    def _loss(self, broken: NovaMeshError) -> NovaMeshError:
        """What neither way goes on with; a node that had brought a part is lost."""
        if self._attested or not self._attempt or self._followed != self._attempt:
            return broken
        return NovaMeshError(
            Code.NODE_LOST, "neither the node nor the coordinator can be reached", broken.hint
        )

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        started = asyncio.create_task(work, name=name)
        self._tasks = [*(task for task in self._tasks if not task.done()), started]
        return started


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What came on a stream, 0 being the coordinator's: an event, or its end and why."""

    stream: int
    event: WatchResponse | None
    error: NovaMeshError | None = None


def _concludes(event: WatchResponse) -> bool:
    """Whether it belongs behind the last chunk."""
    after = (event.attestation, event.relay_receipt, event.settlement)
    return _ends(event) or any(one is not None for one in after)


def _ends(event: WatchResponse) -> bool:
    return event.job is not None and event.job.state.terminal


def _away() -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, "the job's stream broke off")
