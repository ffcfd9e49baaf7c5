"""Follow one submitted job over its transport to its end: events in, pieces out, acks back.

Rules: a stream that breaks off is taken up where it broke off, unless what broke it says that the
node is lost, or nobody was reached for as long as there is patience; a reader that is slower than
the node holds the stream back; acks overtake nobody and are bounded; everything that was sent has
been answered or given up when following ends. What events mean is decided by `reader`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings
from novamesh.job_transport import JobTransport
from novamesh.reader import AnswerReader
from novamesh.retries import ask, pause
from novamesh.vigil import FellSilentError
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX, TAIL_KEPT_MS
from novamesh_proto.messages import Envelope, JobId

Emit = Callable[[Piece], Awaitable[None]]

ACKS_WAITING_MAX: Final = 16  # then reading waits for them
REWATCHES: Final = 12  # tries at the stream of one job
IMPATIENT_S: Final = 0.2  # between tries where patience is short
WATCH_S_MAX: Final = (JOB_TIMEOUT_MS_MAX + TAIL_KEPT_MS) / 1000


@dataclass(slots=True)
class Following:
    """One job on its way to its client; used once, in one task.

    `patience_s` is how long a stream that broke is asked for again; None: REWATCHES times.
    """

    job: JobId
    transport: JobTransport
    reader: AnswerReader
    emit: Emit
    clock: Clock
    settings: ClientSettings
    patience_s: float | None = None
    _acking: set[asyncio.Task[None]] = field(default_factory=set)
    _broken_s: float | None = None  # since when nobody was reached, monotonic
    _acks: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ACKS_WAITING_MAX))

    async def to_its_end(self) -> None:
        """Read the job's events until it has ended.

        Raises:
            NovaMeshError: what reading raises; UNAVAILABLE where the stream stays broken;
                NODE_LOST at once where the transport, or the reader, knows that of the node.
        """
        failure: NovaMeshError | None = None
        async with asyncio.TaskGroup() as sends:
            # A group would wrap what its body raises; callers want the error itself.
            try:
                await ask(lambda: self._read(sends), REWATCHES, WATCH_S_MAX, self._again)
            except NovaMeshError as error:
                failure = error
                for ack in self._acking:  # the answer goes on elsewhere, and not after their time
                    ack.cancel()
        # An answer that is here and proved needs no coordinator; its settlement may come later.
        if failure is not None and not self.reader.attested:
            raise failure

    def _again(self, error: NovaMeshError) -> bool | float:
        left_s = self._left_s()
        over = self.reader.attested or error.code is Code.NODE_LOST or left_s == 0
        if over or left_s is None:
            return not over and pause(error)
        return pause(error) and IMPATIENT_S

    def _left_s(self) -> float | None:
        """How much longer a stream that broke is asked for again; None: nobody counts seconds."""
        if self.patience_s is None or self._broken_s is None:
            return None
        return max(0.0, self._broken_s + self.patience_s - self.clock.monotonic())

    async def _read(self, sends: asyncio.TaskGroup) -> None:
        """Follow the stream, from where the last one broke off."""
        try:
            async with asyncio.timeout(self._left_s()) as limit:
                await self._take_events(sends, limit)
        except (TimeoutError, NovaMeshError) as error:
            if self._broken_s is None:
                unheard_s = error.for_s if isinstance(error, FellSilentError) else 0.0
                self._broken_s = self.clock.monotonic() - unheard_s
            if isinstance(error, NovaMeshError):
                raise
            raise NovaMeshError(Code.UNAVAILABLE, "nobody who has the job was reached") from None

    async def _take_events(self, sends: asyncio.TaskGroup, limit: asyncio.Timeout) -> None:
        reader, clock = self.reader, self.clock
        watch = self.transport.watch(self.job, reader.attempt, reader.chunks)
        async with contextlib.aclosing(watch) as events:
            async for event in events:
                if self._broken_s is not None:
                    self._broken_s = None
                    limit.reschedule(None)
                reader.path = self.transport.path
                step = reader.take(event, clock.now_ms(), clock.monotonic())
                if step.piece is not None:
                    await self.emit(step.piece)
                if step.ack is not None:
                    await self._acks.acquire()
                    acking = sends.create_task(self._acknowledge(step.ack), name="acknowledge")
                    self._acking.add(acking)
                    acking.add_done_callback(self._acking.discard)
                if step.receipt is not None:
                    sends.create_task(self._countersign(step.receipt), name="hand in receipt")
                if reader.ended:
                    return
        raise NovaMeshError(Code.UNAVAILABLE, "the job's stream broke off")

    async def _acknowledge(self, ack: Envelope) -> None:
        # One ack that gets lost is made up for by the next one, or by the receipt.
        try:
            with contextlib.suppress(NovaMeshError):
                await self.transport.acknowledge(ack)
        finally:
            self._acks.release()

    async def _countersign(self, receipt: Envelope) -> None:
        """The pool gets our countersignature; where it does not want it, ours is on file."""
        with contextlib.suppress(NovaMeshError):
            await ask(
                lambda: self.transport.submit_receipt(receipt),
                self.settings.retries,
                self.settings.connect_timeout_s,
            )
