"""Where assignments come in and answers go out: admission, opening, engine, sealed stream.

One task an attempt. Rules: what cannot be verified is dropped and logged, what can is always
decided; once taken, an attempt ends in its final chunk and attestation, in a signed failure, or in
silence where the pool has said that nobody wants it; no job ends the node. Attempts outlive the
session: answers go to whichever outbox is current and are sent again from their tails to the next
one. Nothing here knows gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from novamesh_engine.request import Request
from novamesh_node.admission import Admission, Admitted
from novamesh_node.answer import Answer, Work
from novamesh_node.attempt import AttemptKey
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew, Served, Station
from novamesh_node.descriptor import Advertiser
from novamesh_node.governor import Ruling
from novamesh_node.outbox import Outbox
from novamesh_node.request import build_request, render_prompt
from novamesh_node.statements import Signer, key_of, sign_decision, sign_failure
from novamesh_node.worker import Ticket
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import RUNNING_MAX
from novamesh_proto.messages import (
    AttachAssignment,
    AttachCancel,
    AttachRequest,
    Envelope,
    JobAssignment,
    JobBody,
    JobProgress,
    MessageId,
    RunningAttempt,
    StreamAck,
)
from novamesh_proto.sealing import open_body

PROGRESS_S: Final = 3.0  # a lease is 15 s
FINISHED_MAX: Final = 16  # ended answers whose attestation may have been lost on the way
FINISHED_MS: Final = 120_000
SLOTS_MAX: Final = RUNNING_MAX - FINISHED_MAX

GRACE_S: Final = 2.0  # so that the pool says first that a job's time is over
# Why an attempt is stopped of which the client keeps a part: what was sent until then is claimed.
_COUNTS: Final = frozenset({Code.CANCELLED.value, Code.EXPIRED.value})

_log = structlog.get_logger()


class Owner(Protocol):
    """Whom the desk asks and tells: the lifecycle, behind the governor."""

    def ruling(self) -> Ruling:
        """What may come in now."""
        ...

    def took(self) -> None:
        """An attempt was admitted."""
        ...

    def ended(self) -> None:
        """An attempt ended."""
        ...


@dataclass(frozen=True, slots=True)
class Fixtures:
    """What the desk works with; none of it changes while the node runs."""

    admission: Admission
    advertiser: Advertiser
    signer: Signer
    crew: Crew
    remember: Callable[[MessageId, int], None]  # an attempt, until wall ms; raises STORAGE
    clock: Clock


@dataclass(slots=True)
class _Run:
    """An attempt at work."""

    admitted: Admitted
    station: Station
    task: asyncio.Task[None] | None = None
    served: Served | None = None
    ticket: Ticket | None = None
    answer: Answer | None = None


@dataclass(slots=True)
class _Finished:
    """Answers that ended lately, oldest first."""

    answers: dict[AttemptKey, tuple[Answer, int]] = field(default_factory=dict)

    def add(self, answer: Answer, now_ms: int) -> None:
        """Keep one more."""
        self.answers[answer.key] = (answer, now_ms)
        while len(self.answers) > FINISHED_MAX:
            del self.answers[next(iter(self.answers))]

    def fresh(self, now_ms: int) -> list[Answer]:
        """Those that still count."""
        old = [key for key, (_, at) in self.answers.items() if now_ms - at > FINISHED_MS]
        for key in old:
            del self.answers[key]
        return [answer for answer, _ in self.answers.values()]


class Desk:
    """Owns every attempt of this node; `tasks` outlives it."""

    def __init__(self, fixtures: Fixtures, owner: Owner, tasks: asyncio.TaskGroup) -> None:
        self._fixtures = fixtures
        self._owner = owner
        self._tasks = tasks
        self._runs: dict[AttemptKey, _Run] = {}
        self._finished = _Finished()
        self._outbox = Outbox()
        self._outbox.closed = True  # until the first session

    @property
    def running(self) -> int:
        """Attempts at work."""
        return len(self._runs)

    def take(self, offer: AttachAssignment) -> None:
        """Decide about an assignment; if it is taken, its task starts."""
        tools = self._fixtures
        now_ms = tools.clock.wall_ms()
        try:
            assignment = tools.admission.verify(offer)
        except NovaMeshError as error:
            _log.warning("assignment dropped", code=error.code.value, message=error.message)
            return
        try:
            admitted = tools.admission.admit(offer, assignment, self._owner.ruling(), now_ms)
            tools.remember(admitted.key.digest, admitted.remembered_until_ms)
            station = tools.crew.assign(admitted.terms.message.model_profile)
        except NovaMeshError as refusal:
            self._decide(assignment, refusal)
            return
        run = _Run(admitted, station)
        self._runs[admitted.key] = run
        self._owner.took()
        run.task = self._tasks.create_task(self._serve(run), name=f"attempt-{admitted.key.name}")
        # Not in the task itself: one that is cancelled before it begins never runs its `finally`.
        run.task.add_done_callback(lambda _: self._close(run))

    def cancel(self, order: AttachCancel) -> None:
        """End an attempt: with last chunk and claim if what it sent counts, else silently."""
        key = key_of(order)
        self._finished.answers.pop(key, None)
        run = self._runs.get(key)
        if run is None:
            return
        _log.info("cancelled", attempt=key.name, code=order.code)
        if order.code in _COUNTS and run.ticket is not None and run.served is not None:
            run.served.worker.abort(run.ticket)
        else:
            _stop(run)

    def acknowledge(self, ack: Envelope) -> None:
        """Pass a client's ack to its attempt; one that does not fit is dropped."""
        signer, now_ms = self._fixtures.signer, self._fixtures.clock.wall_ms()
        me = signer.key.node_id
        try:
            said = envelope.open(ack, StreamAck, network=signer.network, audience=me, now_ms=now_ms)
            run = self._runs.get(key_of(said.message))
            if run is not None and run.answer is not None:
                run.answer.acknowledge(said)
        except NovaMeshError as error:
            _log.warning("ack dropped", code=error.code.value, message=error.message)

    def listing(self) -> tuple[RunningAttempt, ...]:
        """What a hello says is still here: at work, or ended and perhaps not received."""
        now_ms = self._fixtures.clock.monotonic_ms()
        chunks = {answer.key: answer.chunks for answer in self._finished.fresh(now_ms)}
        for key, run in self._runs.items():
            chunks[key] = 0 if run.answer is None else run.answer.chunks
        listed = list(chunks.items())[-RUNNING_MAX:]
        return tuple(RunningAttempt(k.job, k.attempt, k.fence, count) for k, count in listed)

    def resume(
        self, outbox: Outbox, wanted: tuple[RunningAttempt, ...]
    ) -> tuple[AttachRequest, ...]:
        """Go on in a new session: what it lacks, in order; what it does not want is dropped."""
        self._outbox = outbox
        chunks = {key_of(attempt): attempt.chunks for attempt in wanted}
        finished = {a.key: a for a in self._finished.fresh(self._fixtures.clock.monotonic_ms())}
        self._finished.answers = {
            key: kept for key, kept in self._finished.answers.items() if key in chunks
        }
        for key in [key for key in self._runs if key not in chunks]:
            _log.info("abandoned", attempt=key.name)
            _stop(self._runs[key])
        backlog: list[AttachRequest] = []
        for key, chunk in chunks.items():
            run = self._runs.get(key)
            answer = finished.get(key) if run is None else run.answer
            if answer is not None:
                backlog += self._since(answer, chunk)
        return tuple(backlog)

    def abandon(self, error: NovaMeshError) -> None:
        """Give up everything at work, telling the pool why."""
        for run in list(self._runs.values()):
            self._fail(run.admitted.assignment, error)
            _stop(run)

    def _since(self, answer: Answer, chunk: int) -> tuple[AttachRequest, ...]:
        try:
            return answer.tail.since(chunk)
        except NovaMeshError as error:
            run = self._runs.get(answer.key)
            if run is not None:
                self._fail(run.admitted.assignment, error)
                _stop(run)
            return ()

    async def _serve(self, run: _Run) -> None:
        """One attempt from admitted to its end."""
        assignment = run.admitted.assignment
        try:
            async with asyncio.timeout(run.admitted.terms.message.timeout_ms / 1000 + GRACE_S):
                await self._work(run)
        except TimeoutError:
            self._fail(assignment, NovaMeshError(Code.EXPIRED, "the job's time is over"))
        except NovaMeshError as error:
            self._fail(assignment, error)
        except Exception as error:  # task boundary: one job must never end the node
            kind = type(error).__name__
            _log.error("attempt failed", attempt=run.admitted.key.name, kind=kind)
            self._fail(assignment, NovaMeshError(Code.INTERNAL, f"the node failed: {kind}"))

    def _close(self, run: _Run) -> None:
        if run.ticket is not None and run.served is not None:
            run.served.worker.forget(run.ticket)
        self._fixtures.crew.release(run.station)
        del self._runs[run.admitted.key]
        self._owner.ended()

    async def _work(self, run: _Run) -> None:
        tools, admitted = self._fixtures, run.admitted
        try:
            body = open_body(
                admitted.job,
                admitted.terms,
                tools.advertiser.key_for(admitted.job),
                tools.signer.key.node_id,
            )
            opened_ns = tools.clock.monotonic_ns()
            served = run.station.served[admitted.terms.message.model_profile]
            request = await asyncio.to_thread(self._prepare, admitted, body, served)
        except NovaMeshError as refusal:
            self._decide(admitted.assignment, refusal)
            return
        self._decide(admitted.assignment, None)
        before_us = (tools.clock.monotonic_ns() - opened_ns) // 1000
        work = Work(admitted, body, request.prompt, before_us)
        run.answer = Answer(work, tools.signer, run.station.machine, tools.clock.monotonic_ms())
        run.served = served
        prefilled = served.worker.prefilled
        run.ticket = served.worker.submit(request)
        while not run.answer.ended:
            if not await self._advance(run.answer, run.ticket):
                await self._show_progress(run, served, len(request.prompt), prefilled)
        self._finished.add(run.answer, tools.clock.monotonic_ms())
        _log.info(
            "answered", attempt=admitted.key.name, tokens=run.answer.tokens,
            device=run.station.device.id,
        )  # fmt: skip

    def _prepare(self, admitted: Admitted, body: JobBody, served: Served) -> Request:
        """Tokenizing may take a while: this runs beside the loop."""
        prompt = render_prompt(body, served.encoder)
        return build_request(admitted.key.name, admitted.terms.message, body, prompt, served.shape)

    async def _advance(self, answer: Answer, ticket: Ticket) -> bool:
        """Wait for the next output or for what is due; False if there was neither."""
        clock, due_ms = self._fixtures.clock, answer.due_ms
        now_ms = clock.monotonic_ms()
        wait_s = PROGRESS_S if due_ms is None else max(0.0, (due_ms - now_ms) / 1000)
        try:
            async with asyncio.timeout(wait_s):
                output = await ticket.next()
        except TimeoutError:
            await self._send(self._outbox, answer.tick(clock.monotonic_ms(), clock.wall_ms()))
            return due_ms is not None
        if output.step.error is not None:
            raise output.step.error
        # The outbox of this moment: should a new session begin while we wait for room, its
        # backlog holds these messages, and the old outbox drops them.
        outbox = self._outbox
        now = clock.monotonic_ms(), clock.wall_ms()
        await self._send(outbox, answer.push(output.step, output.usage, *now))
        return True

    async def _show_progress(
        self, run: _Run, served: Served, prompt_tokens: int, prefilled: int
    ) -> None:
        """A sign of work that renews the lease, as long as the engine is known to live."""
        if served.worker.alive:
            key = run.admitted.key
            done = min(prompt_tokens, max(0, served.worker.prefilled - prefilled))
            progress = JobProgress(key.job, key.attempt, key.fence, done)
            await self._send(self._outbox, (AttachRequest(progress=progress),))

    async def _send(self, outbox: Outbox, messages: tuple[AttachRequest, ...]) -> None:
        for message in messages:
            await outbox.put(message)

    def _decide(self, assignment: Verified[JobAssignment], refusal: NovaMeshError | None) -> None:
        tools = self._fixtures
        if refusal is not None:
            _log.info("declined", code=refusal.code.value, message=refusal.message)
        signed = sign_decision(tools.signer, assignment, refusal, tools.clock.wall_ms())
        self._outbox.post(AttachRequest(decision=signed))

    def _fail(self, assignment: Verified[JobAssignment], error: NovaMeshError) -> None:
        tools = self._fixtures
        _log.warning("gave up", code=error.code.value, message=error.message)
        signed = sign_failure(tools.signer, assignment, error, tools.clock.wall_ms())
        self._outbox.post(AttachRequest(failure=signed))


def _stop(run: _Run) -> None:
    """End an attempt's task without another word."""
    if run.task is not None:
        run.task.cancel()
