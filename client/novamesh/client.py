"""The SDK: `async with Client() as client: async for piece in client.run("nova-pico", "…")`.

Rules: everything started inside the `async with` has ended when it is left; an answer that nobody
reads on is cancelled; every answer has a deadline; prompts leave this machine sealed. What a client
is set to comes from `config`; how one job runs is in `session`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Unpack

from novamesh.absence import Absence
from novamesh.asked import Asked
from novamesh.clock import Clock
from novamesh.completion import Completion, Piece
from novamesh.config import Config, Pool, load_config
from novamesh.desk import Desk
from novamesh.direct_lines import DirectLines
from novamesh.following import Emit
from novamesh.job_records import JobRecords
from novamesh.job_transport import JobPool
from novamesh.keys import load_or_create_key
from novamesh.mesh_pool import MeshPool
from novamesh.mesh_settings import load_mesh_settings
from novamesh.order import order_of, prompt_again
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts
from novamesh.search import Search
from novamesh.session import STOP_S, JobSession
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import parse_join_code
from novamesh_proto.limits import JOBS_LISTED_MAX
from novamesh_proto.messages import JobId, JobView, PoolCard, PoolModel

JOB_ID_BYTES: Final = 32
PIECES_WAITING_MAX: Final = 64  # a reader that is slower than the node holds the stream back


class Client:
    """A member's client. Use it as `async with Client() as client`, from one event loop."""

    def __init__(
        self,
        *,
        home: Path | str | None = None,
        config: Config | None = None,
        join: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            home: Folder of configuration, key and receipts; None takes NOVAMESH_HOME or the usual.
            config: All of it at once, in the place of `home`.
            join: A join code to use in the place of the configured pool.
            clock: Whose clocks; None takes this machine's.

        Raises:
            NovaMeshError: BAD_CONFIG, naming file and key, or BAD_REQUEST for a bad join code.
        """
        self.config = config or load_config(Path(home) if home is not None else None)
        if join is not None:
            pool = Pool.from_join_code(parse_join_code(join))
            self.config = replace(self.config, pool=pool)
        self._clock = clock or Clock.system()
        self._runs: set[Run] = set()
        self._tasks = asyncio.TaskGroup()
        self._desk: Desk | None = None

    async def __aenter__(self) -> Client:
        config = self.config
        pool = config.require_pool()
        key = load_or_create_key(config.places.client_key)
        connection = PoolConnection(pool, key, self._clock, config.client.connect_timeout_s)
        records = JobRecords(config.places.jobs)
        records.prune(self._clock.now_ms())
        receipts = Receipts(config.places.receipts)
        await self._tasks.__aenter__()
        self._search = Search(config, connection, self._clock)
        mesh = load_mesh_settings(config.places).on
        self._lines = lines = DirectLines(
            pool.network, key, self._clock, self._search.tunnel,
            self._search.warmed_up if mesh else None,
        )  # fmt: skip
        alone = mesh or bool(config.client.nodes or config.client.mqtt)
        if mesh:
            self._search.warm_up()
        self._desk = Desk(
            connection, config.client, records, receipts, self._clock,
            lines if config.client.direct else None, self._without_coordinator, alone,
            Absence(connection.answers, self._clock),
        )  # fmt: skip
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        desk = self._require_desk()
        try:
            for run in tuple(self._runs):
                await run.cancel()
            # The body's own error passes through as it is; a group would wrap it.
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._desk = None
            await self._lines.close()  # first, since tunnels lead through the search's mesh
            await self._search.close()
            await desk.pool.close()

    def run(self, model: str, prompt: str | None = None, **asked: Unpack[Asked]) -> Run:
        """An answer, to be read with `async for`; leaving the loop cancels the job.

        Args:
            model: A name, `name@digestprefix`, or a whole digest.
            prompt: What the user says; `messages`, `text` and `token_ids` stand in its place.
            **asked: See `asked.Asked`.

        Raises:
            NovaMeshError: BAD_REQUEST if what is asked makes no sense; what happens later is
                raised while reading.
        """
        order = order_of(model, prompt, asked, self.config.client.deadline_s)
        return self._start(lambda session: session.run(order))

    async def complete(
        self, model: str, prompt: str | None = None, **asked: Unpack[Asked]
    ) -> Completion:
        """The whole answer with its receipt; arguments as `run`."""
        return await self.run(model, prompt, **asked).completion()

    def resume(self, job: JobId | str, prompt: str | None = None, **asked: Unpack[Asked]) -> Run:
        """The answer of a job that an earlier process submitted, from its first piece.

        Where its node is lost, it goes on at another one only if its prompt is given again.

        Args:
            job: Its id, or that of any part of its answer.
            prompt: What the user said then; `messages`, `text` and `token_ids` stand in its place.
            **asked: `system` as it was then, and `deadline_s`; all else is known.

        Raises:
            NovaMeshError: BAD_REQUEST if this is no job id or nothing that can be asked again,
                NOT_FOUND if this machine holds no keys of that job.
        """
        record = self._require_desk().records.find(parse_job(job))
        again, seconds = prompt_again(prompt, asked, self.config.client.deadline_s)
        return self._start(lambda session: session.resume(record, seconds, again))

    async def join(self) -> Verified[PoolCard]:
        """Become a member of the configured pool; its card. Harmless when repeated."""
        pool = self._require_desk().pool
        card = await pool.hello()
        await pool.join()
        return card

    async def card(self) -> Verified[PoolCard]:
        """What the pool says of itself, its clock included."""
        return await self._require_desk().pool.hello()

    async def models(self) -> tuple[PoolModel, ...]:
        """What the pool serves now."""
        return await self._require_desk().pool.list_models()

    async def jobs(self, count: int = 50) -> tuple[JobView, ...]:
        """Our jobs, newest first, 1 to 200 of them. Raises BAD_REQUEST for another count."""
        if not 1 <= count <= JOBS_LISTED_MAX:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                f"{count} jobs cannot be listed",
                f"choose from 1 to {JOBS_LISTED_MAX}",
            )
        return await self._require_desk().pool.list_jobs(count)

    async def job(self, job: JobId | str) -> JobView:
        """Where a job is; `job` as `parse_job`."""
        return await self._require_desk().pool.get_job(parse_job(job))

    async def cancel(self, job: JobId | str) -> JobView:
        """Stop a job; its state afterwards. Harmless when repeated; `job` as `parse_job`."""
        return await self._require_desk().pool.cancel(parse_job(job))

    def resumable(self, beginning: str = "") -> tuple[JobId, ...]:
        """Jobs that an earlier process left, oldest first.

        `beginning`: hexadecimal digits with which the id of one, or of a part of it, begins.
        """
        return self._require_desk().records.jobs(beginning.lower())

    async def _without_coordinator(self) -> JobPool:
        """Nodes that are found and asked themselves; the search begins with the first question."""
        pool, finder = self._require_desk().pool, await self._search.finder()
        return MeshPool(finder, self._lines, pool.network, pool.key, self._clock)

    def _start(self, work: Callable[[JobSession], Awaitable[Completion]]) -> Run:
        desk = self._require_desk()

        def session(emit: Emit) -> Awaitable[Completion]:
            return work(JobSession(desk, emit))

        return Run(session, self._tasks, self._runs)

    def _require_desk(self) -> Desk:
        if self._desk is None:
            raise NovaMeshError(
                Code.BAD_REQUEST, "this client is not open", "async with Client() as client: …"
            )
        return self._desk


class Run:
    """One answer on its way. Iterate over it once, or await `completion()`."""

    def __init__(
        self,
        session: Callable[[Emit], Awaitable[Completion]],
        tasks: asyncio.TaskGroup,
        runs: set[Run],
    ) -> None:
        self._session = session
        self._tasks = tasks
        self._runs = runs
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue(PIECES_WAITING_MAX)
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._error: BaseException | None = None
        self._completion: Completion | None = None

    async def __aiter__(self) -> AsyncGenerator[Piece]:
        if self._task is not None:
            raise NovaMeshError(Code.CONFLICT, "an answer is read once", "call run() again")
        self._runs.add(self)
        self._task = self._tasks.create_task(self._work(), name="job")
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
            if self._error is not None:
                raise self._error
        finally:
            await self.cancel()

    async def completion(self) -> Completion:
        """The whole answer and its receipt; reads what is left of it.

        Raises:
            NovaMeshError: why there is none.
        """
        if self._task is None:
            async with contextlib.aclosing(self.__aiter__()) as pieces:
                async for _ in pieces:
                    pass
        elif not self._task.done():
            await asyncio.wait([self._task])  # whoever reads it is at its end, or has left it
        if self._completion is None:
            raise self._error or NovaMeshError(
                Code.CANCELLED, "this answer was not read to its end"
            )
        return self._completion

    async def cancel(self) -> None:
        """Stop the job if it still runs, and wait until it has stopped. Harmless when repeated."""
        self._runs.discard(self)
        task = self._task
        if task is None or task.done():
            return
        if not self._cancelled:  # a second cancellation would interrupt the first one's order
            self._cancelled = True
            task.cancel()
        await asyncio.wait([task], timeout=2 * STOP_S)

    async def _work(self) -> None:
        try:
            self._completion = await self._session(self._pieces.put)
        except asyncio.CancelledError:
            self._error = NovaMeshError(Code.CANCELLED, "the job was cancelled")
            while not self._pieces.empty():  # nobody waits for them; the end must fit in
                self._pieces.get_nowait()
            self._pieces.put_nowait(None)
            raise
        except Exception as error:
            # The boundary of this task: whoever reads the answer gets the error.
            self._error = error
        await self._pieces.put(None)


def parse_job(job: JobId | str) -> JobId:
    """A job's id, given as its 32 bytes or as 64 hexadecimal digits.

    Raises:
        NovaMeshError: BAD_REQUEST.
    """
    raw: object = job
    with contextlib.suppress(ValueError):
        raw = bytes.fromhex(job) if isinstance(job, str) else job
    if isinstance(raw, bytes) and len(raw) == JOB_ID_BYTES:
        return JobId(raw)
    raise NovaMeshError(
        Code.BAD_REQUEST,
        f"{job!r} is no job id",
        "an id has 64 hexadecimal digits:  novamesh jobs ls --json",
    )
