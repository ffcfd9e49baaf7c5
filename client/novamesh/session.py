"""Carry one answer through a pool: job after job until it is whole, then keep the proof.

A job that nobody waits for any more is cancelled. An answer whose node is lost goes on with another
job, within the one deadline; when and how is `failover`'s to say, and how a job runs is in `part`.
Before it goes on, what it has is on disk: whoever lost its client too is taken up from there. A
session runs in one task and is used once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from novamesh import retries
from novamesh.completion import Completion, Piece, parts_of
from novamesh.conclusion import Conclusion
from novamesh.desk import Desk
from novamesh.failover import Course
from novamesh.following import Emit
from novamesh.job_records import JobRecord
from novamesh.job_transport import JobPool
from novamesh.order import Options, Order, Prompt, digest_prompt
from novamesh.part import GRACE_S, Part
from novamesh.reader import AnswerReader
from novamesh.retries import ask, pause
from novamesh_proto.attestation import BURST_RULE, witnessed_speed
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ClientReceipt, FinishReason, JobId, PoolModel
from novamesh_proto.receipt import encode_receipt, verify_receipt

STOP_S: Final = 2.0  # a cancel order may take this long
GOING_ON_S: Final = 0.5  # and this long where the answer goes on meanwhile
# What cannot be reached now: the job may go on, and `Client.resume` takes it up.
_RESUMABLE: Final = frozenset({Code.UNAVAILABLE, Code.BUSY, Code.STORAGE})
_AWAY: Final = frozenset({Code.UNAVAILABLE, Code.EXPIRED})
_ENDS: Final = frozenset({FinishReason.STOP, FinishReason.LENGTH})

_log: Final = logging.getLogger(__name__)


class JobSession:
    """One order from its model's name to its receipt."""

    def __init__(self, desk: Desk, emit: Emit) -> None:
        self._desk = desk
        self._emit = emit
        self._pool: JobPool = desk.pool  # who chooses nodes; for each part anew
        self._part: Part | None = None  # the newest
        self._waiting: JobId | None = None  # whose record holds an answer that is to go on
        self._resumed = False
        self._tied = False  # to the coordinator: no way around it was found
        self._first: tuple[float, int] | None = None  # of several parts: handed in, ttft in µs
        self._finished = False  # the caller was told why the answer ended
        self.survived: list[NovaMeshError] = []  # failures after which the answer went on

    async def run(self, order: Order) -> Completion:
        """Deliver an answer piece by piece; then the whole of it, proved.

        Raises:
            NovaMeshError: why there is none; EXPIRED after the order's deadline.
        """
        return await self._guard(order.deadline_s, lambda: self._answer(order))

    async def resume(
        self, record: JobRecord, deadline_s: float, prompt: Prompt | None = None
    ) -> Completion:
        """Deliver an answer that was begun before, from its first piece.

        Without its `prompt` it goes on at no other node.

        Raises:
            NovaMeshError: as `run`; BAD_REQUEST if it was asked something else.
        """
        order = None if prompt is None else _order_again(record, deadline_s, prompt)
        return await self._guard(deadline_s, lambda: self._take_up(record, deadline_s, order))

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
            if error.code not in _RESUMABLE and self._part is not None:
                await self._part.stop(STOP_S)
            raise
        except asyncio.CancelledError:
            await self._stop()
            raise

    async def _answer(self, order: Order) -> Completion:
        """One part where all goes well; when a node is lost another one, as `failover` says."""
        ends_s = self._desk.clock.monotonic() + order.deadline_s
        if order.mesh:
            self._pool = await self._desk.without_coordinator()
        elif await self._desk.coordinator_is_away():
            await self._ask_nodes()
        model = await self._find_model(order)
        try:
            return await self._begin(order, model)
        except NovaMeshError as error:
            return await self._go_on(error, Course(), ends_s, order, model)

    async def _take_up(
        self, record: JobRecord, deadline_s: float, order: Order | None
    ) -> Completion:
        """What was received before, then what the job brings, or another one."""
        self._resumed, course = True, Course(parts=len(record.earlier))
        ends_s = self._desk.clock.monotonic() + deadline_s
        for piece in record.received:
            await self._deliver(piece)
        try:
            if record.over:
                self._waiting = record.job
                raise NovaMeshError(Code.NODE_LOST, "the answer broke off")
            part = self._new_part()
            return self._complete(part, await part.follow(record))
        except NovaMeshError as error:
            return await self._go_on(error, course, ends_s, order, before=record)

    async def _find_model(self, order: Order) -> PoolModel:
        settings = self._desk.settings
        while True:
            try:
                return await ask(
                    partial(self._pool.find_model, order.model),
                    *(settings.retries, order.deadline_s, self._may_try_again),
                )
            except NovaMeshError as error:
                if not await self._leave_coordinator(error):
                    raise

    async def _begin(self, order: Order, model: PoolModel) -> Completion:
        """The first part, from nodes themselves where the coordinator went before it had a job."""
        tries, deadline_s = self._desk.settings.retries, order.deadline_s
        while True:
            try:
                return await ask(
                    lambda: self._run_part(order, model, None, Course()),
                    tries, deadline_s, self._may_run_again,
                )  # fmt: skip
            except NovaMeshError as error:
                followed = self._part is not None and self._part.reader is not None
                if followed or not await self._leave_coordinator(error):
                    raise

    async def _run_part(
        self, order: Order, model: PoolModel, before: JobRecord | None, course: Course
    ) -> Completion:
        part = self._new_part()
        conclusion = await part.run(order, model, before, course.lost)
        return self._complete(part, conclusion)

    def _new_part(self) -> Part:
        self._part = Part(self._desk, self._pool, self._deliver, self._may_try_again, self._alone)
        return self._part

    @property
    def _running(self) -> JobId | None:
        """A job that was handed in, and is not known to have ended."""
        return None if self._part is None else self._part.running

    @property
    def _alone(self) -> bool:
        """Whether the answer can go on without the coordinator."""
        return (self._desk.alone and not self._tied) or self._pool is not self._desk.pool

    async def _leave_coordinator(self, error: NovaMeshError) -> bool:
        """Ask nodes themselves from now on, where it is away and nobody has taken the job.

        Whether asking again may help: where there is no way around it, it is asked as often as if
        there never had been one.
        """
        if not self._may_leave(error):
            return False
        if await self._ask_nodes() and self._desk.absence is not None:
            self._desk.absence.begin()
        return True

    async def _ask_nodes(self) -> bool:
        """Do without the coordinator, if there is a way."""
        try:
            self._pool = await self._desk.without_coordinator()
        except NovaMeshError as error:
            _log.info("%s; there is only the coordinator", error)
            self._tied = True
        return not self._tied

    def _may_leave(self, error: NovaMeshError) -> bool:
        desk = self._desk
        silent = error.code is Code.NODE_LOST and desk.pool.silent
        away = (error.code in _AWAY or silent) and self._running is None
        return away and desk.alone and not self._tied and self._pool is desk.pool

    def _may_try_again(self, error: NovaMeshError) -> bool | float:
        """Whether the same is asked again: not of a coordinator that is done without."""
        return not self._may_leave(error) and self._pool.may_try_again(error)

    def _may_run_again(self, error: NovaMeshError) -> bool | float:
        """A new answer is safe once the old job has ended without delivering anything."""
        reader = self._part.reader if self._part is not None else None
        if reader is None and self._running is None and self._pool.may_ask_another(error):
            return True
        if reader is None or reader.delivered or not reader.ended:
            return False
        return pause(error)

    async def _go_on(
        self,
        failure: NovaMeshError,
        course: Course,
        ends_s: float,
        order: Order | None,
        model: PoolModel | None = None,
        before: JobRecord | None = None,
    ) -> Completion:
        """Part after part after one that failed, each once it is time for it.

        `order` is None where the prompt is not known, `before` what the answer had before.

        Raises:
            NovaMeshError: the failure with which the answer ends.
        """
        clock = self._desk.clock
        while True:
            part = self._part
            reader = part.reader if part is not None else None
            told = reader is not None and reader.ended  # by a coordinator, which is there
            course, before = self._look_back(failure, course, before)
            pause_s = course.pause_s(failure, ends_s - clock.monotonic())
            if pause_s is None or order is None:
                if part is not None and reader is not None and _may_be_read_yet(reader, failure):
                    how, more = ", or at another node with its prompt", " ['PROMPT']"
                    raise _with_hint(failure, part.record.job, how, more)
                await self._set_aside(before)
                raise _with_hint(failure, before.job, ", with its prompt", " 'PROMPT'")
            self.survived.append(failure)
            _log.info("%s; the answer goes on in %.2f s", failure, pause_s)
            await self._set_aside(before)
            await retries.sleep(pause_s)
            if not told:
                await self._leave_coordinator(failure)
            try:
                model = model or await self._find_model(order)
                rest = replace(order, deadline_s=ends_s - clock.monotonic())
                return await self._run_part(rest, model, before, course)
            except NovaMeshError as error:
                failure = error

    def _look_back(
        self, failure: NovaMeshError, course: Course, before: JobRecord | None
    ) -> tuple[Course, JobRecord]:
        """Where an answer is after a part that failed, and all that it has.

        Raises:
            NovaMeshError: the failure, where no other part could do better, or where the job may go
                on without us.
        """
        part, records = self._part, self._desk.records
        reader = part.reader if part is not None else None
        if part is None or reader is None:
            course = course.after(failure, None, 0)
        else:
            # Where nodes can be asked themselves, one that nobody reaches is given up too.
            unreached = self._alone and failure.code is Code.UNAVAILABLE
            if not (reader.ended or unreached or failure.code is Code.NODE_LOST):
                if failure.code not in _RESUMABLE:
                    records.remove(part.record.job)
                    raise failure
                raise _with_hint(failure, part.record.job)
            tokens = sum(len(piece.token_ids) for piece in reader.pieces)
            course = course.after(failure, reader.node, tokens)
        if not course.may_go_on(failure):
            if part is not None and reader is not None:
                if _may_be_read_yet(reader, failure):
                    raise _with_hint(failure, part.record.job)
                records.remove(part.record.job)
            self._forget()
            raise failure
        if part is not None and reader is not None and reader.delivered:
            before = part.record
            if self._first is None and part.handed_in_s is not None:
                self._first = (part.handed_in_s, reader.ttft_us)
            earlier = (*before.earlier, reader.section())
            before = replace(before, earlier=earlier, received=(*before.received, *reader.pieces))
        assert before is not None, "an answer goes on only after something was delivered"
        return course, replace(before, over=True)

    async def _set_aside(self, before: JobRecord) -> None:
        """What the answer has is on disk until it goes on, and its last part is over."""
        records = self._desk.records
        records.prune(self._desk.clock.now_ms())  # else a client that lives long would keep all
        try:
            records.save(before)
        except NovaMeshError as error:  # a full disk ends no answer that can go on
            _log.info("%s; another process could not go on", error)
        if self._part is not None:  # it began again, or the pool's receipt got lost
            # The record of one that brought nothing would be resumed in the place of the next one.
            await self._part.stop(GOING_ON_S, forget=self._running != before.job)
        self._part, self._waiting = None, before.job

    def _forget(self) -> None:
        if self._waiting is not None:
            self._desk.records.remove(self._waiting)

    async def _stop(self) -> None:
        """Nobody waits for the answer any more: cancel its job, and forget it."""
        self._forget()
        if self._part is not None:
            await self._part.stop(STOP_S)

    async def _deliver(self, piece: Piece) -> None:
        """Pass a piece on; that a part ended is told once, and only where the answer did."""
        ends = piece.finish in _ENDS and not self._finished
        finish = piece.finish if ends else FinishReason.UNSPECIFIED
        if ends or piece.text or piece.token_ids:
            self._finished |= ends
            await self._emit(replace(piece, finish=finish))

    def _complete(self, part: Part, conclusion: Conclusion) -> Completion:
        record = part.record
        receipt, claim = conclusion.receipt, conclusion.attestation.message
        proof = verify_receipt(encode_receipt(receipt)) if record.earlier else conclusion.proof
        found = [*(one for part in proof.earlier for one in part.findings), *conclusion.findings]
        path = self._desk.receipts.save(record.job, receipt)
        self._desk.records.remove(record.job)
        seen, pieces = conclusion.client_receipt.message, (*record.received, *conclusion.pieces)
        # What another process asked for came when we read it: that tells nothing of its speed.
        resumed = self._resumed
        ttft_s, total_s = self._times_s(part, seen)
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

    def _times_s(self, part: Part, seen: ClientReceipt) -> tuple[float, float]:
        """From the first request to the first token and to the last one, whoever sent it."""
        if self._first is None or part.handed_in_s is None:
            return seen.ttft_us / 1e6, seen.total_us / 1e6
        first_s, ttft_us = self._first
        return ttft_us / 1e6, part.handed_in_s - first_s + seen.total_us / 1e6


def _order_again(record: JobRecord, deadline_s: float, prompt: Prompt) -> Order:
    """What was asked, by its record and its prompt. Raises BAD_REQUEST if that is another one."""
    known = record.prompt_digest
    if known and known != digest_prompt(prompt, record.client_seed):
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"job {record.job.hex()[:12]} was asked something else",
            "give the very prompt that it was asked, and the same system message",
        )
    model = record.terms.message.model_profile.hex()
    return Order(model, prompt, Options(stop=record.stop), deadline_s)


def _may_be_read_yet(reader: AnswerReader, failure: NovaMeshError) -> bool:
    """Whether nobody says that the job ended: perhaps only this machine is cut off."""
    return not reader.ended and failure.code in _RESUMABLE


def _with_hint(failure: NovaMeshError, job: JobId, how: str = "", more: str = "") -> NovaMeshError:
    """The same, with what brings the rest of the answer."""
    hint = f"within ten minutes{how}:  novamesh jobs resume {job.hex()[:12]}{more}"
    return NovaMeshError(failure.code, failure.message, hint, failure.retry_after_ms)
