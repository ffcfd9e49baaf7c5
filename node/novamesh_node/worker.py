"""The only bridge between asyncio and an engine: one thread that owns it, bounded both ways.

Coroutines submit and abort; the thread steps and hands outputs back. Rules: no engine is touched
from any other thread while its worker runs; what waits in either direction is bounded, and when
nobody reads the engine rests; a request that the engine refuses, or a step that raises, ends the
requests concerned with an error and never the node. Only books that disagree and a device that is
gone end the worker, since such an engine cannot be trusted: `fault` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from novamesh_engine.request import Request, StepOutput
from novamesh_node.answer import Usage
from novamesh_node.attestor import EnergyShares
from novamesh_node.clock import Clock
from novamesh_node.devices import UNHELD, DeviceLostError, Grip
from novamesh_proto.errors import Code, NovaMeshError

UNREAD_MAX: Final = 1024  # outputs that nobody has read yet, of all requests together
COMMANDS_MAX: Final = 256
ENERGY_NS: Final = 100_000_000  # how often a device's energy counter is read at most
TRACE_FRAMES: Final = 4
STOP_S: Final = 10.0
STALLED_NS: Final = 60_000_000_000  # a step that takes longer is no sign of life

_log = structlog.get_logger()


class Stats(Protocol):
    """What a worker reads of an engine's statistics."""

    @property
    def running(self) -> int:
        """Requests that share a step now."""
        ...

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed since the engine was made."""
        ...


class EngineLike(Protocol):
    """The part of an engine that a worker drives."""

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do or to say."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[StepOutput]:
        """Run one batch."""
        ...

    def abort(self, request_id: str) -> bool:
        """End a request."""
        ...

    def stats(self) -> Stats:
        """Counts."""
        ...

    def check_integrity(self) -> None:
        """Compare its books."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """One engine output with what the thread measured beside it."""

    step: StepOutput
    usage: Usage


Delivery = Output | NovaMeshError


class Ticket:
    """The outputs of one request, in order; the request's owner reads them to the end."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.name = name
        self.aborted = False
        self._worker = worker
        self._unread: asyncio.Queue[Delivery] = asyncio.Queue(UNREAD_MAX)

    async def next(self) -> Output:
        """The next output.

        Raises:
            NovaMeshError: why the request failed; nothing follows.
        """
        delivery = await self._unread.get()
        self._worker.release(1)
        if isinstance(delivery, NovaMeshError):
            raise delivery
        return delivery

    def deliver(self, delivery: Delivery) -> None:
        """Called by the worker only, on the loop."""
        self._unread.put_nowait(delivery)

    def discard(self) -> int:
        """Drop what nobody will read; how much that was."""
        count = self._unread.qsize()
        while not self._unread.empty():
            self._unread.get_nowait()
        return count


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request


@dataclass(frozen=True, slots=True)
class _Abort:
    name: str


@dataclass(frozen=True, slots=True)
class _Stop:
    """End the thread."""


_Command = _Submit | _Abort | _Stop


class Worker:
    """One engine and its thread. Made and used on the loop; `start` and `stop` frame its life."""

    def __init__(self, engine: EngineLike, label: str, clock: Clock, device: Grip = UNHELD) -> None:
        self._engine = engine
        self._clock = clock
        self._device = device
        self._commands: queue.Queue[_Command] = queue.Queue(COMMANDS_MAX)
        self._tickets: dict[str, Ticket] = {}  # on the loop
        self._room = threading.Condition()
        self._unread = 0  # guarded by _room
        self._stopping = False  # guarded by _room
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{label}", daemon=True)
        self._live: dict[str, int] = {}  # largest batch by request; in the thread
        self._energy = EnergyShares()
        self._energy_ns = 0
        self._prefilled = 0  # written by the thread, read anywhere
        self._stepped_ns = self._clock.monotonic_ns()
        self.fault: asyncio.Future[NovaMeshError] | None = None

    def start(self) -> None:
        """Begin; from now on only the thread touches the engine."""
        self._loop = asyncio.get_running_loop()
        self.fault = self._loop.create_future()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step it is in; unread outputs are lost."""
        self._halt()
        await asyncio.to_thread(self._thread.join, STOP_S)

    def condemn(self, fault: NovaMeshError) -> None:
        """The device under the engine is out: every request ends with `fault`, then the thread."""
        self._end(fault)
        self._halt()

    def _halt(self) -> None:
        with self._room:
            self._stopping = True
            self._room.notify_all()
        with contextlib.suppress(queue.Full):
            self._commands.put_nowait(_Stop())

    def submit(self, request: Request) -> Ticket:
        """Hand a request over; what the engine thinks of it comes through the ticket.

        Raises:
            NovaMeshError: BUSY if too much waits already, CONFLICT for a name in use, the fault of
                a worker that has ended.
        """
        if self.fault is not None and self.fault.done():
            raise self.fault.result()
        if request.id in self._tickets:
            raise NovaMeshError(Code.CONFLICT, f"request {request.id} is already here")
        ticket = Ticket(self, request.id)
        self._tell(_Submit(request))
        self._tickets[request.id] = ticket
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """End a request early; its last output says so."""
        if ticket.name in self._tickets and not ticket.aborted:
            ticket.aborted = True
            self._tell(_Abort(ticket.name))

    def forget(self, ticket: Ticket) -> None:
        """The owner reads no more, ended or not; a live request is aborted."""
        if self._tickets.get(ticket.name) is ticket:
            del self._tickets[ticket.name]
            with contextlib.suppress(NovaMeshError):  # then it runs to its end, unheard
                self._tell(_Abort(ticket.name))
        self.release(ticket.discard())

    def release(self, count: int) -> None:
        """Outputs were read: the engine may go on."""
        with self._room:
            self._unread -= count
            self._room.notify_all()

    @property
    def prefilled(self) -> int:
        """Prompt tokens the engine has computed in its life."""
        return self._prefilled

    @property
    def alive(self) -> bool:
        """Whether the thread is known to make progress, or rests."""
        return self._clock.monotonic_ns() - self._stepped_ns < STALLED_NS

    def _tell(self, command: _Command) -> None:
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise NovaMeshError(
                Code.BUSY, "the engine does not keep up", "try again", retry_after_ms=1_000
            ) from None

    # In the thread from here on, but for _deliver and _end.

    def _run(self) -> None:
        try:
            self._device.hold()
            while self._obey() and self._rest():
                if self._engine.has_work:
                    self._deliver_all(self._step())
        except DeviceLostError as lost:
            self._call(self._end, lost)
        except Exception as error:  # task boundary: the engine's books disagree, see the module
            found = _surprise(error, "all")
            hint = "start the node again, and report its log if this comes back"
            self._call(self._end, NovaMeshError(found.code, found.message, hint))

    def _obey(self) -> bool:
        """Carry out what was asked; waits for it only if there is nothing to step."""
        while True:
            self._stepped_ns = self._clock.monotonic_ns()
            try:
                command = self._commands.get(block=not self._engine.has_work, timeout=1.0)
            except queue.Empty:
                if self._engine.has_work or self._stopping:
                    return True
                continue
            match command:
                case _Submit(request=request):
                    self._submit(request)
                case _Abort(name=name):
                    self._engine.abort(name)
                case _Stop():
                    return False

    def _rest(self) -> bool:
        """Wait while too much is unread; False to end."""
        with self._room:
            while self._unread >= UNREAD_MAX // 2 and not self._stopping:
                self._stepped_ns = self._clock.monotonic_ns()
                self._room.wait(1.0)
            return not self._stopping

    def _submit(self, request: Request) -> None:
        self._read_energy()
        try:
            self._engine.submit(request)
        except NovaMeshError as error:
            self._hand_over([(request.id, error)])
            return
        except Exception as error:  # boundary: one request must never end the others
            self._hand_over([(request.id, _surprise(error, request.id))])
            return
        self._live[request.id] = 1
        self._energy.begin(request.id)

    def _step(self) -> list[StepOutput]:
        try:
            outputs = self._engine.step()
        except Exception as error:  # boundary: the requests of a failed step end, the node goes on
            self._give_up(error)
            return []
        stats = self._engine.stats()
        self._prefilled = stats.prefill_tokens
        for name, most in self._live.items():
            self._live[name] = max(most, stats.running)
        if self._clock.monotonic_ns() - self._energy_ns > ENERGY_NS:
            self._read_energy()
        return outputs

    def _give_up(self, error: Exception) -> None:
        """End the requests of a failed step, then see whether anything can go on.

        Raises:
            DeviceLostError: the device is gone, which is then what ended them.
            Exception: the engine's books disagree.
        """
        failed = {name: _surprise(error, name) for name in self._live}
        for name in failed:
            self._engine.abort(name)
            self._close(name)
        try:
            self._device.check()
        except DeviceLostError as lost:
            self._hand_over([(name, lost) for name in failed])
            raise
        self._hand_over(list(failed.items()))
        self._engine.check_integrity()

    def _deliver_all(self, outputs: list[StepOutput]) -> None:
        if any(output.finish is not None for output in outputs):
            self._read_energy()
        deliveries: list[tuple[str, Delivery]] = []
        for output in outputs:
            usage = Usage() if output.finish is None else self._close(output.request_id)
            deliveries.append((output.request_id, Output(output, usage)))
        self._hand_over(deliveries)

    def _close(self, name: str) -> Usage:
        return Usage(self._energy.end(name), self._live.pop(name, 1))

    def _read_energy(self) -> None:
        self._energy_ns = self._clock.monotonic_ns()
        self._energy.read(self._device.energy_mj())

    def _hand_over(self, deliveries: list[tuple[str, Any]]) -> None:
        if deliveries:
            with self._room:
                self._unread += len(deliveries)
            self._call(self._deliver, deliveries)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the process ends and nobody listens
            _log.debug("engine output dropped at exit")

    def _deliver(self, deliveries: list[tuple[str, Delivery]]) -> None:
        for name, delivery in deliveries:
            ticket = self._tickets.get(name)
            if ticket is None:  # forgotten meanwhile
                self.release(1)
                continue
            ticket.deliver(delivery)
            if isinstance(delivery, NovaMeshError) or delivery.step.finish is not None:
                del self._tickets[name]

    def _end(self, fault: NovaMeshError) -> None:
        self._deliver([(name, fault) for name in list(self._tickets)])
        if self.fault is not None and not self.fault.done():
            self.fault.set_result(fault)


def _surprise(error: Exception, name: str) -> NovaMeshError:
    """A bug or a device's failure: where it was, without its text, which may hold content."""
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)[-TRACE_FRAMES:]
    trace = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    _log.error("the engine failed", request=name, kind=kind, trace=trace)
    return NovaMeshError(Code.INTERNAL, f"the engine failed: {kind}")
