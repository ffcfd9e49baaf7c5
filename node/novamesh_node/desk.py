"""Where assignments come in and answers go out: admission, opening, engine, sealed stream.

One task an attempt. Rules: what cannot be verified is dropped and logged, what can is always
decided; once taken, an attempt ends in its final chunk and attestation, in a signed failure, or in
silence where the pool has said that nobody wants it; no job ends the node. Attempts outlive the
session; which way their messages go is their delivery's business. Nothing here knows gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from novamesh_engine.request import Request
from novamesh_node.admission import Admission, Admitted
from novamesh_node.answer import Answer, Work
from novamesh_node.attempt import AttemptKey
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew, Served
from novamesh_node.delivery import Delivery
from novamesh_node.descriptor import Advertiser
from novamesh_node.finished import (
    ALONE_BYTES_MAX,
    ALONE_MAX,
    FINISHED_MAX,
    Ended,
    Finished,
)
from novamesh_node.governor import Ruling
from novamesh_node.outbox import Outbox
from novamesh_node.request import build_request, render_prompt
from novamesh_node.run import Attempt, Run
from novamesh_node.statements import (
    Signer,
    key_of,
    sign_decision,
    sign_failure,
    sign_own_assignment,
)
from novamesh_node.worker import Ticket
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CONTEXT_TOKENS_MAX, RUNNING_MAX
from novamesh_proto.messages import (
    AttachAssignment,
    AttachCancel,
    AttachRequest,
    Envelope,
    JobAssignment,
    JobBody,
    JobId,
    JobProgress,
    MessageId,
    RunningAttempt,
    SealedJob,
    StreamAck,
)
from novamesh_proto.sealing import open_body

PROGRESS_S: Final = 3.0  # a lease is 15 s
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
    remember: Callable[[MessageId, int], None]  # a pool attempt, until wall ms; raises STORAGE
    clock: Clock


class Desk:
    """Owns every attempt of this node; `tasks` outlives it."""

    def __init__(self, fixtures: Fixtures, owner: Owner, tasks: asyncio.TaskGroup) -> None:
        self._fixtures = fixtures
        self._owner = owner
        self._tasks = tasks
        self._runs: dict[AttemptKey, Run] = {}
        self._finished = Finished()
        # Apart, so that nobody's short answers push out what the coordinator may still lack.
        self._finished_alone = Finished(ALONE_MAX, ALONE_BYTES_MAX)
        self._outbox = Outbox()
        self._outbox.closed = True  # until the first session

    @property
    def running(self) -> int:
        """Attempts at work."""
        return len(self._runs)

    @property
    def alone(self) -> int:
        """Of these, what was asked of this node alone."""
        return sum(run.delivery.alone for run in self._runs.values())

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
        self._begin(Run(admitted, station, Delivery(lambda: self._outbox)))

    def check_donating(self) -> None:
        """Raises POLICY if the owner donates nothing."""
        self._fixtures.admission.check_donating()

    def take_alone(self, job: SealedJob) -> Attempt:
        """Take a job that a client asked of this node and of nobody else; its task starts.

        Raises:
            NovaMeshError: why it is not taken.
        """
        tools = self._fixtures
        now_ms = tools.clock.wall_ms()
        terms = tools.admission.verify_alone(job, now_ms)
        known = self.find(JobId(terms.id))
        if known is not None:
            return known
        assignment = sign_own_assignment(tools.signer, terms, now_ms)
        admitted = tools.admission.admit_alone(job, terms, assignment, self._owner.ruling(), now_ms)
        station = tools.crew.assign(terms.message.model_profile, donated=True)
        run = Run(admitted, station, Delivery(None))
        self._begin(run)
        return run.seen

    def find(self, job: JobId) -> Attempt | None:
        """The newest attempt of a job that is here, at work or ended lately."""
        for run in reversed(self._runs.values()):
            if run.admitted.key.job == job:
                return run.seen
        now_ms = self._fixtures.clock.monotonic_ms()
        for kept in (self._finished, self._finished_alone):
            for ended in reversed(kept.fresh(now_ms).values()):
                work = ended.admitted
                if work.key.job == job:
                    return Attempt(work.terms, work.assignment, ended.delivery, ended.answer, False)
        return None

    def abort(self, job: JobId) -> None:
        """The client wants no more of what nobody else wants: last chunk and claim follow."""
        for run in self._runs.values():
            if run.admitted.key.job == job and not run.delivery.wanted:
                run.end(counts=True)

    def _begin(self, run: Run) -> None:
        admitted = run.admitted
        self._runs[admitted.key] = run
        self._owner.took()
        run.task = self._tasks.create_task(self._serve(run), name=f"attempt-{admitted.key.name}")
        # Not in the task itself: one that is cancelled before it begins never runs its `finally`.
        run.task.add_done_callback(lambda _: self._close(run))

    def cancel(self, order: AttachCancel) -> None:
        """End an attempt: with last chunk and claim if what it sent counts, else silently."""
        key = key_of(order)
        self._finished.kept.pop(key, None)
        run = self._runs.get(key)
        if run is None:
            return
        _log.info("cancelled", attempt=key.name, code=order.code)
        run.end(counts=order.code in _COUNTS)

    def acknowledge(self, ack: Envelope) -> None:
        """Pass a client's ack to its attempt; one that does not fit is dropped."""
        signer, now_ms = self._fixtures.signer, self._fixtures.clock.wall_ms()
        me = signer.key.node_id
        try:
            said = envelope.open(ack, StreamAck, network=signer.network, audience=me, now_ms=now_ms)
            run = self._runs.get(key_of(said.message))
            if run is not None and run.answer is not None:
                run.answer.acknowledge(said)
                if signer.coordinator in said.message.header.audience and not run.delivery.alone:
                    run.delivery.ack = ack
        except NovaMeshError as error:
            _log.warning("ack dropped", code=error.code.value, message=error.message)

    def listing(self) -> tuple[RunningAttempt, ...]:
        """What a hello says is still here: at work, or ended and perhaps not received."""
        now_ms = self._fixtures.clock.monotonic_ms()
        fresh = self._finished.fresh(now_ms)
        chunks = {
            key: ended.answer.chunks for key, ended in fresh.items() if ended.answer is not None
        }
        for key, run in self._runs.items():
            if not run.delivery.alone:
                chunks[key] = 0 if run.answer is None else run.answer.chunks
        listed = list(chunks.items())[-RUNNING_MAX:]
        return tuple(RunningAttempt(k.job, k.attempt, k.fence, count) for k, count in listed)

    def resume(
        self, outbox: Outbox, wanted: tuple[RunningAttempt, ...]
    ) -> tuple[AttachRequest, ...]:
        """Go on in a new session: what it lacks, in order; what it does not want is dropped."""
        self._outbox = outbox
        chunks = {key_of(attempt): attempt.chunks for attempt in wanted}
        finished = self._finished.fresh(self._fixtures.clock.monotonic_ms())
        self._finished.kept = {
            key: kept for key, kept in finished.items() if key in chunks or kept.delivery.direct
        }
        for key, run in list(self._runs.items()):
            if key in chunks or run.delivery.alone:
                continue
            run.delivery.wanted = False
            if not run.delivery.direct:
                _log.info("abandoned", attempt=key.name)
                run.stop()
        backlog: list[AttachRequest] = []
        for key, chunk in chunks.items():
            here = self._runs.get(key) or finished.get(key)
            if here is not None and here.answer is not None:
                backlog += self._since(here.answer, here.delivery, chunk)
        return tuple(backlog)

    def abandon(self, error: NovaMeshError) -> None:
        """Give up everything at work, telling the pool why."""
        for run in list(self._runs.values()):
            self._fail(run, error)
            run.stop()

    def _since(self, answer: Answer, delivery: Delivery, chunk: int) -> tuple[AttachRequest, ...]:
        try:
            return delivery.resume(answer.tail, chunk)
        except NovaMeshError as error:
            run = self._runs.get(answer.key)
            if run is not None:
                self._fail(run, error)
                run.stop()
            return ()

    async def _serve(self, run: Run) -> None:
        """One attempt from admitted to its end."""
        try:
            async with asyncio.timeout(run.admitted.terms.message.timeout_ms / 1000 + GRACE_S):
                await self._work(run)
        except TimeoutError:
            self._fail(run, NovaMeshError(Code.EXPIRED, "the job's time is over"))
        except NovaMeshError as error:
            self._fail(run, error)
        except Exception as error:  # task boundary: one job must never end the node
            kind = type(error).__name__
            _log.error("attempt failed", attempt=run.admitted.key.name, kind=kind)
            self._fail(run, NovaMeshError(Code.INTERNAL, f"the node failed: {kind}"))

    def _close(self, run: Run) -> None:
        if run.ticket is not None and run.served is not None:
            run.served.worker.forget(run.ticket)
        run.delivery.end()
        if run.delivery.alone and run.admitted.key not in self._finished_alone.kept:
            self._keep(run)  # why it failed; a coordinator was told, its client may not be here
        self._fixtures.crew.release(run.station, donated=run.delivery.alone)
        del self._runs[run.admitted.key]
        self._owner.ended()

    async def _work(self, run: Run) -> None:
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
            self._decide(admitted.assignment, refusal, run.delivery)
            return
        self._decide(admitted.assignment, None, run.delivery)
        before_us = (tools.clock.monotonic_ns() - opened_ns) // 1000
        work = Work(admitted, body, request.prompt, before_us)
        run.answer = Answer(work, tools.signer, run.station.machine, tools.clock.monotonic_ms())
        run.served = served
        prefilled = served.worker.prefilled
        run.ticket = served.worker.submit(request)
        while not run.answer.ended:
            if not await self._advance(run.answer, run.ticket, run.delivery):
                await self._show_progress(run, served, prefilled)
        self._keep(run)
        claim = run.delivery.conclude(run.answer.tail)
        self._tasks.create_task(claim, name="conclude")  # the slot is free meanwhile
        _log.info(
            "answered", attempt=admitted.key.name, tokens=run.answer.tokens,
            device=run.station.device.id,
        )  # fmt: skip

    def _keep(self, run: Run) -> None:
        now_ms = self._fixtures.clock.monotonic_ms()
        kept = self._finished_alone if run.delivery.alone else self._finished
        kept.add(Ended(run.admitted, run.answer, run.delivery, now_ms))

    def _prepare(self, admitted: Admitted, body: JobBody, served: Served) -> Request:
        """Tokenizing may take a while: this runs beside the loop."""
        prompt = render_prompt(body, served.encoder)
        return build_request(admitted.key.name, admitted.terms.message, body, prompt, served.shape)

    async def _advance(self, answer: Answer, ticket: Ticket, delivery: Delivery) -> bool:
        """Wait for the next output or for what is due; False if there was neither."""
        clock, due_ms = self._fixtures.clock, answer.due_ms
        now_ms = clock.monotonic_ms()
        wait_s = PROGRESS_S if due_ms is None else max(0.0, (due_ms - now_ms) / 1000)
        try:
            async with asyncio.timeout(wait_s):
                output = await ticket.next()
        except TimeoutError:
            due = answer.tick(clock.monotonic_ms(), clock.wall_ms())
            await delivery.send(due, answer.tail)
            return due_ms is not None
        if output.step.error is not None:
            raise output.step.error
        now = clock.monotonic_ms(), clock.wall_ms()
        await delivery.send(answer.push(output.step, output.usage, *now), answer.tail)
        return True

    async def _show_progress(self, run: Run, served: Served, prefilled: int) -> None:
        """A sign of work that renews the lease, as long as the engine is known to live.

        What the engine has read since it was asked, for whomever: it reads several prompts by
        turns, and none of them is lost while another one's turn it is.
        """
        if served.worker.alive:
            key = run.admitted.key
            done = min(CONTEXT_TOKENS_MAX, max(0, served.worker.prefilled - prefilled))
            progress = JobProgress(key.job, key.attempt, key.fence, done)
            await run.delivery.send((AttachRequest(progress=progress),))

    def _decide(
        self,
        assignment: Verified[JobAssignment],
        refusal: NovaMeshError | None,
        delivery: Delivery | None = None,
    ) -> None:
        """Take an assignment or decline it; one that was never begun has no delivery."""
        tools = self._fixtures
        if refusal is not None:
            _log.info("declined", code=refusal.code.value, message=refusal.message)
        signed = sign_decision(tools.signer, assignment, refusal, tools.clock.wall_ms())
        (delivery or self._outbox).post(AttachRequest(decision=signed))

    def _fail(self, run: Run, error: NovaMeshError) -> None:
        tools, assignment = self._fixtures, run.admitted.assignment
        _log.warning("gave up", code=error.code.value, message=error.message)
        signed = sign_failure(tools.signer, assignment, error, tools.clock.wall_ms())
        run.delivery.post(AttachRequest(failure=signed))
