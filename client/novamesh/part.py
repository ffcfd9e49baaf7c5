"""One job of an answer, the whole of it or a part: match, seal, hand in, follow, keep its record.

The order of things is the safety of things: keys are on disk before a job is handed in; the same
terms are handed in again however often the answer to that gets lost; a job is followed from where
it broke off. Its record goes when it is done or was stopped; whoever goes on with what it brought
keeps that first. What events mean is decided by `reader`; this module moves them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from novamesh.candidates import verify_candidates
from novamesh.conclusion import Conclusion
from novamesh.desk import Desk
from novamesh.failover import continue_from
from novamesh.following import Emit, Following
from novamesh.job_records import JobRecord
from novamesh.job_transport import JobPool, JobTransport, Wanted
from novamesh.order import Draft, Order, digest_prompt, draft, max_tokens, prompt_bytes
from novamesh.reader import AnswerReader
from novamesh.retries import ask
from novamesh.two_ways import TwoWays
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CONTROL_LIFE_MS
from novamesh_proto.messages import Candidate, JobId, NodeId, PoolModel

GRACE_S: Final = 2.0  # the pool's own word about a deadline comes this much later at most
UNREACHED_S: Final = 5.0  # a node is given up that neither way leads to, where others can be asked
# Nobody else offers the model, or none of them ever takes such a job.
_NOBODY_ELSE: Final = frozenset({Code.MODEL_NOT_FOUND, Code.NO_CAPACITY})
_NOT_TAKEN: Final = frozenset({Code.BUSY, Code.POLICY})


class Part:
    """One job; used once. `reader` is None until it is followed.

    `running`: handed in, and not known to have ended. `handed_in_s`: when, monotonic; None where
    another process did it. `alone`: whether the answer can go on without the coordinator.
    """

    def __init__(
        self,
        desk: Desk,
        pool: JobPool,
        emit: Emit,
        may_try_again: Callable[[NovaMeshError], bool | float],
        alone: bool,
    ) -> None:
        self._desk = desk
        self._pool = pool  # who chooses nodes
        self._way: JobTransport = pool  # on which the job comes
        self._emit = emit
        self._may_try_again = may_try_again
        self._alone = alone
        self._record: JobRecord | None = None
        self._before: JobId | None = None  # whose record this one's takes the place of
        self.reader: AnswerReader | None = None
        self.running: JobId | None = None
        self.handed_in_s: float | None = None

    @property
    def record(self) -> JobRecord:
        """What is known of it, once it is drafted."""
        assert self._record is not None, "a job is drafted before it is handed in"
        return self._record

    async def run(
        self,
        order: Order,
        model: PoolModel,
        before: JobRecord | None = None,
        lost: tuple[NodeId, ...] = (),
    ) -> Conclusion:
        """The whole answer, or what is left of it after the parts that `before` holds.

        Raises:
            NovaMeshError: why there is none.
        """
        pool, settings = self._pool, self._desk.settings
        self._before = before.job if before is not None else None
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
            stop=made.body.stop,
            prompt_digest=digest_prompt(order.prompt, made.body.client_seed),
        )
        # The same terms are handed in again: a job that did arrive is not asked for twice.
        record = await ask(
            lambda: self._hand_in(made, model, wanted),
            settings.retries,
            order.deadline_s,
            self._may_try_again,
        )
        if self._before is not None:
            self._desk.records.remove(self._before)  # what it brought is in this job's record
        return await self.follow(record)

    async def follow(self, record: JobRecord) -> Conclusion:
        """Read a job that was handed in to its end. Raises NovaMeshError for why it has none."""
        desk, pool, started_s = self._desk, self._pool, self._request_s(record)
        reader = AnswerReader(record, pool.key, pool.coordinator, started_s, os.urandom)
        self._record, self.reader, self.running = record, reader, record.job
        self._way = self._choose_way(record)
        following = Following(
            record.job, self._way, reader, self._emit, desk.clock, desk.settings,
            UNREACHED_S if self._alone else None,
        )  # fmt: skip
        try:
            await following.to_its_end()
            return reader.conclude()
        except NovaMeshError:
            if reader.ended and not reader.delivered:
                desk.records.remove(record.job)
            raise
        finally:
            if reader.ended:
                self.running = None

    async def stop(self, within_s: float, *, forget: bool = True) -> None:
        """Cancel what was handed in and has not ended, if whoever has it can be told in time."""
        job, self.running = self.running, None
        if job is None:
            return
        with contextlib.suppress(NovaMeshError, TimeoutError):
            async with asyncio.timeout(within_s):
                await self._way.cancel(job)
        if forget:
            self._desk.records.remove(job)

    def _choose_way(self, record: JobRecord) -> JobTransport:
        """Who carries a job that was handed in."""
        pool, lines = self._desk.pool, self._desk.lines
        if self._pool is not pool or lines is None:
            return self._pool
        return TwoWays(pool, lines, record, pool.rtt_s)

    async def _hand_in(self, made: Draft, model: PoolModel, wanted: Wanted) -> JobRecord:
        """Match, wrap, write the keys down, submit. What was matched before stays on record."""
        desk, first = self._desk, self.running is None
        try:
            chosen = verify_candidates(
                await self._match(wanted), model, self._pool.network, desk.clock.now_ms()
            )
        except NovaMeshError:
            # The job whose receipt by the pool got lost may hold the very slot that is missing.
            if first or not await self._is_known(made.job):
                raise
            return self.record
        before = self.record
        record = self._record = replace(
            before,
            candidates=(*before.candidates, *(one for one, _ in chosen)),
            submitted_at_ms=desk.clock.now_ms(),
        )
        desk.records.save(record)
        self.running, self.handed_in_s = made.job, desk.clock.monotonic()
        job = made.wrap([one for one, _ in chosen])
        try:
            await self._way.submit(job, [reservation for _, reservation in chosen])
        except NovaMeshError as error:
            if error.code is Code.CONFLICT and (parent := made.terms.message.parent_job):
                await self._way.cancel(JobId(parent))  # nobody could be told when it was lost
            if error.code in _NOT_TAKEN and first:  # nothing to resume or to stop
                self.running = None
                desk.records.remove(made.job)
            raise
        return record

    async def _is_known(self, job: JobId) -> bool:
        with contextlib.suppress(NovaMeshError):
            await self._way.get_job(job)
            return True
        return False

    async def _match(self, wanted: Wanted) -> tuple[Candidate, ...]:
        """Candidates; nodes that lost the answer before only if nobody else offers the model."""
        try:
            return await self._pool.match(wanted)
        except NovaMeshError as error:
            if error.code not in _NOBODY_ELSE or not wanted.excluded:
                raise
        return await self._pool.match(replace(wanted, excluded=()))

    def _request_s(self, record: JobRecord) -> float:
        """Monotonic time of the request; of another process's request the wall clock knows."""
        if self.handed_in_s is not None:
            return self.handed_in_s
        clock = self._desk.clock
        return clock.monotonic() - max(0, clock.now_ms() - record.submitted_at_ms) / 1000
