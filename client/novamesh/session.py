"""Carry one job through a pool: match, seal, submit, follow, acknowledge, keep the proof.

The order of things is the safety of things: keys are on disk before a job is handed in; the same
terms are handed in again however often the answer to that gets lost; an answer is followed from
where it broke off; a job that nobody waits for any more is cancelled. What events mean is decided
by `reader`; this module moves them. A session runs in one task and is used once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from novamesh.clock import Clock
from novamesh.completion import Completion, Piece
from novamesh.config import ClientSettings
from novamesh.job_records import JobRecord, JobRecords
from novamesh.model_choice import choose_model
from novamesh.order import Draft, Order, draft, max_tokens, prompt_bytes
from novamesh.pool import PoolConnection, Wanted
from novamesh.reader import AnswerReader, Conclusion
from novamesh.receipts import Receipts
from novamesh.retries import ask, pause
from novamesh_proto import envelope
from novamesh_proto.attestation import BURST_RULE, witnessed_speed
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CONTROL_LIFE_MS, JOB_TIMEOUT_MS_MAX, TAIL_KEPT_MS
from novamesh_proto.messages import Candidate, Envelope, JobId, NodeDescriptor, PoolModel

Emit = Callable[[Piece], Awaitable[None]]

GRACE_S: Final = 2.0  # the pool's own word about a deadline comes this much later at most
STOP_S: Final = 2.0  # a cancel order may take this long
ACKS_WAITING_MAX: Final = 16  # then reading waits for them
REWATCHES: Final = 12  # tries at the stream of one job
WATCH_S_MAX: Final = (JOB_TIMEOUT_MS_MAX + TAIL_KEPT_MS) / 1000
# What cannot be reached now: the job may go on, and `Client.resume` takes it up.
_RESUMABLE: Final = frozenset({Code.UNAVAILABLE, Code.BUSY, Code.STORAGE})


@dataclass(frozen=True, slots=True)
class Desk:
    """What every session of a client works with."""

    pool: PoolConnection
    settings: ClientSettings
    records: JobRecords
    receipts: Receipts
    clock: Clock


class JobSession:
    """One order from its model's name to its receipt."""

    def __init__(self, desk: Desk, emit: Emit) -> None:
        self._desk = desk
        self._emit = emit
        self._reader: AnswerReader | None = None
        self._record: JobRecord | None = None
        self._running: JobId | None = None  # handed in, and not known to have ended
        self._handed_in_s: float | None = None
        self._acks = asyncio.Semaphore(ACKS_WAITING_MAX)

    async def run(self, order: Order) -> Completion:
        """Deliver an answer piece by piece; then the whole of it, proved.

        Raises:
            NovaMeshError: why there is none; EXPIRED after the order's deadline.
        """
        return await self._guard(order.deadline_s, lambda: self._run_once(order))

    async def resume(self, record: JobRecord, deadline_s: float) -> Completion:
        """Deliver the answer of a job that was submitted before, from its first piece."""
        return await self._guard(deadline_s, lambda: self._follow(record))

    async def _guard(
        self, deadline_s: float, work: Callable[[], Awaitable[Completion]]
    ) -> Completion:
        """Bound the work in time, try it again where that is safe, stop the job if it is left."""
        settings = self._desk.settings
        try:
            async with asyncio.timeout(deadline_s + GRACE_S):
                return await ask(work, settings.retries, deadline_s, self._may_run_again)
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

    def _may_run_again(self, error: NovaMeshError) -> bool | float:
        """A new job is safe once the old one has ended without delivering anything."""
        reader = self._reader
        if reader is None or reader.delivered or not reader.ended:
            return False
        return pause(error)

    async def _run_once(self, order: Order) -> Completion:
        pool, settings = self._desk.pool, self._desk.settings
        self._reader = self._running = None
        models = await ask(pool.list_models, settings.retries, order.deadline_s)
        model = choose_model(order.model, models)
        life_ms = min(CONTROL_LIFE_MS, round((order.deadline_s + GRACE_S) * 1000))
        made = draft(order, model, pool.header(life_ms=life_ms), pool.key, settings.max_tokens)
        self._record = record = JobRecord(
            model=model.name,
            terms=made.terms,
            response_key=made.body.response_key,
            client_seed=made.body.client_seed,
            candidates=(),
            submitted_at_ms=self._desk.clock.now_ms(),
        )
        wanted = Wanted(
            model.model_profile,
            prompt_bytes(order.prompt),
            max_tokens(order, model, settings.max_tokens),
        )
        # The same terms are handed in again: a job that did arrive is not asked for twice.
        record = await ask(
            lambda: self._hand_in(made, model, wanted), settings.retries, order.deadline_s
        )
        return await self._follow(record)

    async def _hand_in(self, made: Draft, model: PoolModel, wanted: Wanted) -> JobRecord:
        """Match, wrap, write the keys down, submit. What was matched before stays on record."""
        desk, first = self._desk, self._running is None
        try:
            chosen = self._verify(await desk.pool.match(wanted), model)
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
            await desk.pool.submit(job, [reservation for _, reservation in chosen])
        except NovaMeshError as error:
            if (
                error.code is Code.BUSY and first
            ):  # certainly not taken: nothing to resume or to stop
                self._running = None
                desk.records.remove(made.job)
            raise
        return record

    async def _is_known(self, job: JobId) -> bool:
        try:
            await self._desk.pool.get_job(job)
        except NovaMeshError:
            return False
        return True

    def _require_record(self) -> JobRecord:
        assert self._record is not None, "a job is drafted before it is handed in"
        return self._record

    def _verify(
        self, candidates: Sequence[Candidate], model: PoolModel
    ) -> list[tuple[Verified[NodeDescriptor], bytes]]:
        """Candidates whose descriptor is signed, fresh and offers the model."""
        verified: list[tuple[Verified[NodeDescriptor], bytes]] = []
        refusal = NovaMeshError(Code.BUSY, "the pool named no candidate", "try again shortly")
        for candidate in candidates:
            try:
                opened = envelope.open(
                    candidate.descriptor,
                    NodeDescriptor,
                    network=self._desk.pool.pool.network,
                    now_ms=self._desk.clock.now_ms(),
                )
            except NovaMeshError as error:
                refusal = error
                continue
            offers = {offer.model_profile for offer in opened.message.models}
            if model.model_profile in offers:
                verified.append((opened, candidate.reservation))
            else:
                refusal = NovaMeshError(
                    Code.CORRUPT, "the pool named a candidate that does not offer the model"
                )
        if not verified:
            raise refusal
        return verified

    async def _follow(self, record: JobRecord) -> Completion:
        """Read a submitted job to its end and keep its receipt."""
        reader = AnswerReader(
            record,
            self._desk.pool.key,
            self._desk.pool.coordinator,
            self._request_s(record),
            os.urandom,
        )
        self._reader, self._running = reader, record.job
        failure: NovaMeshError | None = None
        async with asyncio.TaskGroup() as sends:
            # A group would wrap what its body raises; callers want the error itself.
            try:
                await ask(
                    lambda: self._read_events(reader, record.job, sends), REWATCHES, WATCH_S_MAX
                )
                conclusion = reader.conclude()
            except NovaMeshError as error:
                failure = error
        if reader.ended:
            self._running = None
        if failure is not None:
            if reader.ended or failure.code not in _RESUMABLE:
                self._desk.records.remove(record.job)
                raise failure
            # The job may go on without us, and its record stays.
            hint = f"within ten minutes:  novamesh jobs resume {record.job.hex()[:12]}"
            raise NovaMeshError(failure.code, failure.message, hint) from failure
        return self._complete(record, conclusion)

    def _request_s(self, record: JobRecord) -> float:
        """Monotonic time of the request; of another process's request the wall clock knows."""
        if self._handed_in_s is not None:
            return self._handed_in_s
        clock = self._desk.clock
        return clock.monotonic() - max(0, clock.now_ms() - record.submitted_at_ms) / 1000

    async def _read_events(
        self, reader: AnswerReader, job: JobId, sends: asyncio.TaskGroup
    ) -> None:
        """Follow the stream to the job's end, from where the last one broke off."""
        clock, pool = self._desk.clock, self._desk.pool
        watch = pool.watch(job, reader.attempt, reader.chunks)
        async with contextlib.aclosing(watch) as events:
            async for event in events:
                step = reader.take(event, clock.now_ms(), clock.monotonic())
                if step.piece is not None:
                    await self._emit(step.piece)
                if step.ack is not None:
                    await self._acks.acquire()
                    sends.create_task(self._acknowledge(step.ack), name="acknowledge")
                if step.receipt is not None:
                    sends.create_task(self._countersign(step.receipt), name="hand in receipt")
                if reader.ended:
                    return
        raise NovaMeshError(Code.UNAVAILABLE, "the job's stream broke off")

    async def _acknowledge(self, ack: Envelope) -> None:
        # One ack that gets lost is made up for by the next one, or by the receipt.
        try:
            with contextlib.suppress(NovaMeshError):
                await self._desk.pool.acknowledge(ack)
        finally:
            self._acks.release()

    async def _countersign(self, receipt: Envelope) -> None:
        """The pool gets our countersignature; where it does not want it, ours is on file."""
        settings = self._desk.settings
        with contextlib.suppress(NovaMeshError):
            await ask(
                lambda: self._desk.pool.submit_receipt(receipt),
                settings.retries,
                settings.connect_timeout_s,
            )

    async def _stop(self) -> None:
        """Cancel what was handed in and has not ended, if the pool can be told in time."""
        job, self._running = self._running, None
        if job is None:
            return
        with contextlib.suppress(NovaMeshError, TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self._desk.pool.cancel(job)
        self._desk.records.remove(job)

    def _complete(self, record: JobRecord, conclusion: Conclusion) -> Completion:
        path = self._desk.receipts.save(record.job, conclusion.receipt)
        self._desk.records.remove(record.job)
        claim, seen = conclusion.attestation.message, conclusion.client_receipt.message
        # What another process asked for came when we read it: that tells nothing of its speed.
        resumed = self._handed_in_s is None
        found = conclusion.findings
        return Completion(
            job=record.job,
            model=record.model,
            model_profile=claim.model_profile,
            node=conclusion.attestation.issuer,
            text=conclusion.text,
            token_ids=conclusion.token_ids,
            logprobs=conclusion.logprobs,
            finish=claim.finish,
            prompt_tokens=claim.prompt_tokens,
            ttft_s=seen.ttft_us / 1e6,
            total_s=seen.total_us / 1e6,
            tokens_per_s=0.0 if resumed else witnessed_speed(seen),
            findings=tuple(one for one in found if not resumed or one.rule != BURST_RULE),
            receipt=conclusion.receipt,
            receipt_path=path,
            resumed=resumed,
        )
