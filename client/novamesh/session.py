"""Carry one answer through a pool: match, seal, submit, follow, go on elsewhere, keep the proof.

The order of things is the safety of things: keys are on disk before a job is handed in; the same
terms are handed in again however often the answer to that gets lost; an answer is followed from
where it broke off; a job that nobody waits for any more is cancelled. An answer whose node is lost
goes on with another job, within the one deadline; when and how is `failover`'s to say. What events
mean is decided by `reader`; this module moves them. A session runs in one task and is used once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from novamesh import retries
from novamesh.candidates import verify_candidates
from novamesh.completion import Completion, Piece, parts_of
from novamesh.conclusion import Conclusion
from novamesh.desk import Desk
from novamesh.failover import Course, continue_from
from novamesh.following import Emit, Following
from novamesh.job_records import JobRecord
from novamesh.job_transport import JobPool, JobTransport, Wanted
from novamesh.model_choice import choose_model
from novamesh.order import Draft, Order, draft, max_tokens, prompt_bytes
from novamesh.reader import AnswerReader
from novamesh.retries import ask, pause
from novamesh.two_ways import TwoWays
from novamesh_proto.attestation import BURST_RULE, witnessed_speed
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CONTROL_LIFE_MS
from novamesh_proto.messages import Candidate, ClientReceipt, FinishReason, JobId, NodeId, PoolModel
from novamesh_proto.receipt import encode_receipt, verify_receipt

GRACE_S: Final = 2.0  # the pool's own word about a deadline comes this much later at most
UNREACHED_S: Final = 5.0  # a node is given up that neither way leads to, where others can be asked
STOP_S: Final = 2.0  # a cancel order may take this long
# What cannot be reached now: the job may go on, and `Client.resume` takes it up.
_RESUMABLE: Final = frozenset({Code.UNAVAILABLE, Code.BUSY, Code.STORAGE})
# Nobody else offers the model, or none of them ever takes such a job.
_NOBODY_ELSE: Final = frozenset({Code.MODEL_NOT_FOUND, Code.NO_CAPACITY})
_NOT_TAKEN: Final = frozenset({Code.BUSY, Code.POLICY})
_ENDS: Final = frozenset({FinishReason.STOP, FinishReason.LENGTH})

_log: Final = logging.getLogger(__name__)


class JobSession:
    """One order from its model's name to its receipt."""

    def __init__(self, desk: Desk, emit: Emit) -> None:
        self._desk = desk
        self._emit = emit
        self._reader: AnswerReader | None = None
        self._record: JobRecord | None = None
        self._pool: JobPool = desk.pool  # who chooses nodes; for each part anew
        self._way: JobTransport = desk.pool  # on which the job at hand comes
        self._running: JobId | None = None  # handed in, and not known to have ended
        self._handed_in_s: float | None = None
        self._first: tuple[float, int] | None = None  # of several parts: handed in, ttft in µs
        self._finished = False  # the caller was told why the answer ended
        self.survived: list[NovaMeshError] = []  # failures after which the answer went on

    async def run(self, order: Order) -> Completion:
        """Deliver an answer piece by piece; then the whole of it, proved.

        Raises:
            NovaMeshError: why there is none; EXPIRED after the order's deadline.
        """
        return await self._guard(order.deadline_s, lambda: self._answer(order))

    async def resume(self, record: JobRecord, deadline_s: float) -> Completion:
        """Deliver the answer of a job that was submitted before, from its first piece."""
        return await self._guard(deadline_s, lambda: self._take_up(record))

    async def _guard(
        self, deadline_s: float, work: Callable[[], Awaitable[Completion]]
    ) -> Completion:
        """Bound the work in time, and stop the job if it is left."""
        try:
            async with asyncio.timeout(deadline_s + GRACE_S):
                return await work()
        except TimeoutError:
            await self._stop()
            raise NovaMeshError(
                Code.EXPIRED,
                f"the job did not end within {deadline_s:g} s",
                "allow more time:  --deadline-s",
            ) from None
        except NovaMeshError as error:
            if error.code not in _RESUMABLE:
                await self._stop()
            raise
        except asyncio.CancelledError:
            await self._stop()
            raise

    async def _answer(self, order: Order) -> Completion:
        """One part where all goes well; when a node is lost another one, as `failover` says."""
        clock, settings = self._desk.clock, self._desk.settings
        ends_s, course = clock.monotonic() + order.deadline_s, Course()
        if order.mesh:
            self._pool = await self._desk.without_coordinator()
        try:
            models = await ask(
                self._pool.list_models, settings.retries, order.deadline_s, self._may_try_again
            )
        except NovaMeshError as error:
            if not await self._leave_coordinator(error):
                raise
            models = await self._pool.list_models()
        model = choose_model(order.model, models)
        try:
            return await self._begin(order, model)
        except NovaMeshError as error:
            failure = error
        before: JobRecord | None = None
        while True:
            left_s = ends_s - clock.monotonic()
            course, before = await self._go_on(failure, course, before, left_s)
            await self._leave_coordinator(failure)
            part = replace(order, deadline_s=ends_s - clock.monotonic())
            try:
                return await self._part(part, model, before, course.lost)
            except NovaMeshError as error:
                failure = error

    async def _begin(self, order: Order, model: PoolModel) -> Completion:
        """The first part, from nodes themselves where the coordinator went before it had a job."""
        tries, deadline_s = self._desk.settings.retries, order.deadline_s
        while True:
            try:
                return await ask(
                    lambda: self._part(order, model), tries, deadline_s, self._may_run_again
                )
            except NovaMeshError as error:
                if self._reader is not None or not await self._leave_coordinator(error):
                    raise

    async def _leave_coordinator(self, error: NovaMeshError) -> bool:
        """Ask nodes themselves from now on, where it is away and nobody has taken the job."""
        if not self._may_leave(error):
            return False
        self._pool = await self._desk.without_coordinator()
        return True

    def _may_leave(self, error: NovaMeshError) -> bool:
        away = error.code is Code.UNAVAILABLE and self._running is None
        return away and self._desk.alone and self._pool is self._desk.pool

    def _may_try_again(self, error: NovaMeshError) -> bool | float:
        """Whether the same is asked again: not of a coordinator that is done without."""
        return not self._may_leave(error) and self._pool.may_try_again(error)

    @property
    def _alone(self) -> bool:
        """Whether the answer can go on without the coordinator."""
        return self._desk.alone or self._pool is not self._desk.pool

    def _may_run_again(self, error: NovaMeshError) -> bool | float:
        """A new answer is safe once the old job has ended without delivering anything."""
        reader = self._reader
        if reader is None and self._running is None and self._pool.may_ask_another(error):
            return True
        if reader is None or reader.delivered or not reader.ended:
            return False
        return pause(error)

    async def _go_on(
        self, failure: NovaMeshError, course: Course, before: JobRecord | None, left_s: float
    ) -> tuple[Course, JobRecord]:
        """Where the answer is after a part that failed, once it is time for the next one.

        Raises:
            NovaMeshError: the failure, where the answer ends with it.
        """
        reader = self._reader
        # Where nodes can be asked themselves, one that nobody reaches any more is given up too.
        lost = failure.code is Code.NODE_LOST or (self._alone and failure.code is Code.UNAVAILABLE)
        if reader is not None and not (reader.ended or lost):
            raise failure  # the job may go on without us
        pieces = reader.pieces if reader is not None else ()
        tokens = sum(len(piece.token_ids) for piece in pieces)
        node = reader.node if reader is not None else None
        course = course.after(failure, node, tokens)
        pause_s = course.pause_s(failure, left_s)
        if pause_s is None:
            raise failure
        if reader is not None and tokens:
            record = self._require_record()
            if self._first is None and self._handed_in_s is not None:
                self._first = (self._handed_in_s, reader.ttft_us)
            earlier, received = (*record.earlier, reader.section()), (*record.received, *pieces)
            before = replace(record, earlier=earlier, received=received)
        assert before is not None, "an answer goes on only after something was delivered"
        self.survived.append(failure)
        await self._stop()  # an answer that began again, or a job whose receipt got lost
        _log.info("%s; the answer goes on in %.2f s", failure, pause_s)
        await retries.sleep(pause_s)
        return course, before

    async def _part(
        self,
        order: Order,
        model: PoolModel,
        before: JobRecord | None = None,
        lost: tuple[NodeId, ...] = (),
    ) -> Completion:
        """One job: the whole answer, or what is left of it after the parts that `before` holds."""
        pool, settings = self._pool, self._desk.settings
        self._reader = self._running = None
        self._way = pool
        after = continue_from(before) if before is not None else None
        tokens = max_tokens(order, model, settings.max_tokens)
        wanted = Wanted(
            model.model_profile,
            prompt_bytes(order.prompt),
            tokens if after is None else after.sampling.max_tokens,
            lost,
        )
        await pool.aim(wanted)
        life_ms = min(CONTROL_LIFE_MS, round((order.deadline_s + GRACE_S) * 1000))
        header = pool.header(life_ms=life_ms)
        made = draft(order, model, header, pool.key, settings.max_tokens, after)
        self._record = JobRecord(
            model=model.name,
            terms=made.terms,
            response_key=made.body.response_key,
            client_seed=made.body.client_seed,
            candidates=(),
            submitted_at_ms=self._desk.clock.now_ms(),
            earlier=before.earlier if before is not None else (),
            received=before.received if before is not None else (),
        )
        # The same terms are handed in again: a job that did arrive is not asked for twice.
        record = await ask(
            lambda: self._hand_in(made, model, wanted),
            settings.retries,
            order.deadline_s,
            self._may_try_again,
        )
        return await self._follow(record)

    def _choose_way(self, record: JobRecord) -> JobTransport:
        """Who carries a job that was handed in."""
        pool, lines = self._desk.pool, self._desk.lines
        if self._pool is not pool or lines is None:
            return self._pool
        return TwoWays(pool, lines, record, pool.rtt_s)

    async def _hand_in(self, made: Draft, model: PoolModel, wanted: Wanted) -> JobRecord:
        """Match, wrap, write the keys down, submit. What was matched before stays on record."""
        desk, first = self._desk, self._running is None
        try:
            chosen = verify_candidates(
                await self._match(wanted), model, self._pool.network, desk.clock.now_ms()
            )
        except NovaMeshError:
            # The job whose receipt by the pool got lost may hold the very slot that is missing.
            if first or not await self._is_known(made.job):
                raise
            return self._require_record()
        before = self._require_record()
        record = self._record = replace(
            before,
            candidates=(*before.candidates, *(one for one, _ in chosen)),
            submitted_at_ms=desk.clock.now_ms(),
        )
        desk.records.save(record)
        self._running, self._handed_in_s = made.job, desk.clock.monotonic()
        job = made.wrap([one for one, _ in chosen])
        try:
            await self._way.submit(job, [reservation for _, reservation in chosen])
        except NovaMeshError as error:
            if error.code is Code.CONFLICT and (parent := made.terms.message.parent_job):
                await self._way.cancel(JobId(parent))  # nobody could be told when it was lost
            if error.code in _NOT_TAKEN and first:  # nothing to resume or to stop
                self._running = None
                desk.records.remove(made.job)
            raise
        return record

    async def _is_known(self, job: JobId) -> bool:
        with contextlib.suppress(NovaMeshError):
            await self._way.get_job(job)
            return True
        return False

    def _require_record(self) -> JobRecord:
        assert self._record is not None, "a job is drafted before it is handed in"
        return self._record

    async def _match(self, wanted: Wanted) -> tuple[Candidate, ...]:
        """Candidates; nodes that lost the answer before only if nobody else offers the model."""
        try:
            return await self._pool.match(wanted)
        except NovaMeshError as error:
            if error.code not in _NOBODY_ELSE or not wanted.excluded:
                raise
        return await self._pool.match(replace(wanted, excluded=()))

    async def _take_up(self, record: JobRecord) -> Completion:
        """What was received before, then what the job brings."""
        self._record = record
        for piece in record.received:
            await self._deliver(piece)
        return await self._follow(record)

    async def _follow(self, record: JobRecord) -> Completion:
        """Read a submitted job to its end and keep its receipt."""
        desk, pool, started_s = self._desk, self._pool, self._request_s(record)
        reader = AnswerReader(record, pool.key, pool.coordinator, started_s, os.urandom)
        self._reader, self._running = reader, record.job
        self._way = self._choose_way(record)
        following = Following(
            record.job, self._way, reader, self._deliver, desk.clock, desk.settings,
            UNREACHED_S if self._alone else None,
        )  # fmt: skip
        try:
            await following.to_its_end()
            conclusion = reader.conclude()
        except NovaMeshError as failure:
            if reader.ended or failure.code not in _RESUMABLE:
                desk.records.remove(record.job)
                raise
            # The job may go on without us, and its record stays.
            hint = f"within ten minutes:  novamesh jobs resume {record.job.hex()[:12]}"
            raise NovaMeshError(failure.code, failure.message, hint) from failure
        finally:
            if reader.ended:
                self._running = None
        return self._complete(record, conclusion)

    async def _deliver(self, piece: Piece) -> None:
        """Pass a piece on; that a part ended is told once, and only where the answer did."""
        ends = piece.finish in _ENDS and not self._finished
        finish = piece.finish if ends else FinishReason.UNSPECIFIED
        if ends or piece.text or piece.token_ids:
            self._finished |= ends
            await self._emit(replace(piece, finish=finish))

    def _request_s(self, record: JobRecord) -> float:
        """Monotonic time of the request; of another process's request the wall clock knows."""
        if self._handed_in_s is not None:
            return self._handed_in_s
        clock = self._desk.clock
        return clock.monotonic() - max(0, clock.now_ms() - record.submitted_at_ms) / 1000

    async def _stop(self) -> None:
        """Cancel what was handed in and has not ended, if the pool can be told in time."""
        job, self._running = self._running, None
        if job is None:
            return
        with contextlib.suppress(NovaMeshError, TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._way.cancel(job)
        self._desk.records.remove(job)

    def _complete(self, record: JobRecord, conclusion: Conclusion) -> Completion:
        receipt, claim = conclusion.receipt, conclusion.attestation.message
        proof = verify_receipt(encode_receipt(receipt)) if record.earlier else conclusion.proof
        found = [*(one for part in proof.earlier for one in part.findings), *conclusion.findings]
        path = self._desk.receipts.save(record.job, receipt)
        self._desk.records.remove(record.job)
        seen, pieces = conclusion.client_receipt.message, (*record.received, *conclusion.pieces)
        # What another process asked for came when we read it: that tells nothing of its speed.
        resumed = self._handed_in_s is None
        ttft_s, total_s = self._times_s(seen)
        return Completion(
            job=record.job,
            model=record.model,
            model_profile=claim.model_profile,
            node=conclusion.attestation.issuer,
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            logprobs=tuple(one for piece in pieces for one in piece.logprobs),
            finish=claim.finish,
            prompt_tokens=claim.prompt_tokens,
            ttft_s=ttft_s,
            total_s=total_s,
            tokens_per_s=0.0 if resumed else witnessed_speed(seen),
            findings=tuple(one for one in found if not resumed or one.rule != BURST_RULE),
            receipt=receipt,
            receipt_path=path,
            resumed=resumed,
            parts=parts_of(proof),
        )

    def _times_s(self, seen: ClientReceipt) -> tuple[float, float]:
        """From the first request to the first token and to the last one, whoever sent it."""
        if self._first is None or self._handed_in_s is None:
            return seen.ttft_us / 1e6, seen.total_us / 1e6
        first_s, ttft_us = self._first
        return ttft_us / 1e6, self._handed_in_s - first_s + seen.total_us / 1e6
