"""One job that its coordinator assigned, followed on the best of two ways: relayed, and directly.

The coordinator says who works on the job; once it does, the node is asked itself, and where it can
be reached its chunks come from it alone. Rules: both streams are in order, so whichever brings the
next chunk brings it, and nothing comes twice; what ends a job waits until the direct stream has
ended; when that breaks, the relay goes on, and when the coordinator is away, the direct stream
does. What the client signs goes to whoever can use it. What events mean is `reader`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from novamesh.direct_lines import DirectLine, DirectLines
from novamesh.job_records import JobRecord
from novamesh.job_transport import JobTransport
from novamesh.paths import is_better
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    Envelope,
    JobAssignment,
    JobId,
    JobPath,
    JobView,
    NodeId,
    SealedJob,
    WatchResponse,
)

EVENTS_WAITING_MAX: Final = 16  # of each stream; then it waits for its reader
SETTLING_S: Final = 3.0  # a coordinator that is away longer settles without us


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
        self._line: DirectLine | None = None
        self._chunks = 0  # of the present attempt, passed on so far
        self._attested = False
        self._events: asyncio.Queue[_Arrival] = asyncio.Queue(EVENTS_WAITING_MAX)
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
        if self._line is not None:
            with contextlib.suppress(NovaMeshError):
                await self._line.connection.acknowledge(ack)
        await self._pool.acknowledge(ack)

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
        self._chunks, self._events = from_chunk, asyncio.Queue(EVENTS_WAITING_MAX)
        relay = self._pool.watch(job, attempt, from_chunk)
        tasks = [asyncio.create_task(self._relay(relay), name="relayed")]
        try:
            async with contextlib.aclosing(self._merge(job, attempt, tasks)) as events:
                async for event in events:
                    yield event
        finally:
            self._line = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _merge(
        self, job: JobId, attempt: int, tasks: list[asyncio.Task[None]]
    ) -> AsyncGenerator[WatchResponse]:
        """Both streams as one. Raises NovaMeshError where neither goes on."""
        held: list[WatchResponse] = []
        broken: NovaMeshError | None = None

        def go_direct(number: int, insist: bool) -> bool:
            if self._node is None or self._attested or number == 0:
                return False
            task = self._follow_node(job, number, insist)
            tasks.append(asyncio.create_task(task, name="direct"))
            return True

        relayed, direct = True, go_direct(attempt, False)
        while True:
            arrival = await self._next(direct)
            event = arrival.event
            if event is None and arrival.direct:
                direct, self._line = False, None
                for kept in held:
                    yield kept
                if any(_ends(kept) for kept in held):
                    return
                held.clear()
                if not relayed:
                    raise broken or _away()
            elif event is None:
                relayed, broken = False, arrival.error or _away()
                direct = direct or go_direct(attempt, True)
                if not direct:
                    raise broken
            elif direct and not arrival.direct and _concludes(event):
                held.append(event)
            else:
                if event.assignment is not None and not arrival.direct:
                    attempt = self._take_assignment(event.assignment, attempt)
                    direct = direct or go_direct(attempt, False)
                if self._is_next(event, arrival.direct):
                    yield event
                if _ends(event):
                    return

    async def _next(self, direct: bool) -> _Arrival:
        """What comes next; a proved answer waits for its settlement for a moment only."""
        try:
            async with asyncio.timeout(SETTLING_S if self._attested and not direct else None):
                return await self._events.get()
        except TimeoutError:
            raise _away() from None

    def _take_assignment(self, sealed: Envelope, attempt: int) -> int:
        """Remember who works; that it says so truly is checked by the reader."""
        given = wire.decode(JobAssignment, sealed.payload)
        if given.attempt != attempt:  # else it is told again after a broken connection
            self._chunks = 0
        self._node = given.node
        return given.attempt

    def _is_next(self, event: WatchResponse, direct: bool) -> bool:
        """Whether an event is passed on: chunks each once, in order, whoever brings them."""
        if event.attestation is not None and direct:
            self._attested = True
        if event.chunk is None:
            return not (direct and event.job is not None)
        if event.chunk.index != self._chunks:
            return False
        self._chunks += 1
        if direct and self._line is not None:
            self.path = self._line.path
        elif not direct:
            self.path = JobPath.RELAYED
        return True

    async def _follow_node(self, job: JobId, attempt: int, insist: bool) -> None:
        """Follow the attempt at its node, where that is better than the relayed way."""
        node = self._node
        assert node is not None
        try:
            descriptor = self._record.candidate(node)
            if descriptor is None:
                raise _away()
            line = await self._lines.open(descriptor, insist=insist)
            if not insist and not is_better(line.path, line.rtt_s, self._relay_rtt_s):
                raise NovaMeshError(Code.UNAVAILABLE, "the direct way is a detour")
        except NovaMeshError as error:
            await self._events.put(_Arrival(True, None, error))
            return
        self._line = line
        if await self._pump(line.connection.watch(job, attempt, self._chunks), True):
            await self._lines.drop(node)

    async def _relay(self, events: AsyncGenerator[WatchResponse]) -> None:
        await self._pump(events, False)

    async def _pump(self, events: AsyncGenerator[WatchResponse], direct: bool) -> bool:
        """Pass a stream's events on, then its end; whether it broke."""
        failure: NovaMeshError | None = None
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    await self._events.put(_Arrival(direct, event))
        except NovaMeshError as error:
            failure = error
        await self._events.put(_Arrival(direct, None, failure))
        return failure is not None


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What came on one of the two ways: an event, or the stream's end and why."""

    direct: bool
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
