"""One trio run in a thread of its own, behind calls that asyncio can await.

Rules: trio objects are touched in their own thread only, so everything goes through `call` and
`send`; a call that asyncio gives up is cancelled in trio too; when the trio side ends, for whatever
reason, every call still under way and every later one raises UNAVAILABLE, and whoever waits in
`ended` learns why. A blocked asyncio loop never stops the trio side, nor the other way round. What
runs there is the business of `main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Generic, Protocol, TypeVar

import outcome
import trio

from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

STOP_S: Final = 15.0  # what an orderly stop may take before the thread is left to itself


class Main(Protocol[T_co]):
    """The trio side: calls `task_status.started(value)` once, runs until it is cancelled."""

    def __call__(self, *, task_status: trio.TaskStatus[T_co]) -> Awaitable[object]: ...


class Bridge(Generic[T]):
    """`async with Bridge(main) as bridge`: the trio side runs, `bridge.value` is what it gave."""

    value: T

    def __init__(self, main: Main[T], name: str = "mesh") -> None:
        self._main = main
        self._name = name
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = False
        self._pending: set[asyncio.Future[object]] = set()

    async def __aenter__(self) -> Bridge[T]:
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[T] = self._loop.create_future()
        self._done: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        try:
            self.value = await self._started
        except BaseException:
            # Cancelled, or the trio side failed to start: nothing is left running.
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def call(self, function: Callable[..., Awaitable[object]], *arguments: object) -> object:
        """Await `function(*arguments)` on the trio side and give back what it returns.

        Raises:
            NovaMeshError: UNAVAILABLE if the trio side has ended, or ends before the answer.
        """
        nursery, token = self._running()
        answer: asyncio.Future[object] = self._loop.create_future()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    result = await outcome.acapture(function, *arguments)
                    self._to_loop(_settle, answer, result)
            finally:
                self._to_loop(_settle, answer, outcome.Error(_closed()))

        self._pending.add(answer)
        try:
            self._to_trio(token, nursery.start_soon, run)
            return await answer
        except asyncio.CancelledError:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)
            raise
        finally:
            self._pending.discard(answer)

    def send(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a short `function` in the trio thread soon; nothing comes back.

        Raises:
            NovaMeshError: UNAVAILABLE if the trio side has ended.
        """
        _, token = self._running()
        self._to_trio(token, function, *arguments)

    async def ended(self) -> BaseException | None:
        """Wait until the trio side has ended; the error that ended it, None for an orderly end."""
        return await asyncio.shield(self._done)

    def _run(self) -> None:
        result = outcome.capture(trio.run, self._root)
        error = result.error if isinstance(result, outcome.Error) else None
        self._to_loop(self._finish, error)

    async def _root(self) -> None:
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._nursery = nursery
            if self._stopping:  # given up before the first step
                nursery.cancel_scope.cancel()
            value = await nursery.start(self._main)
            self._to_loop(_settle, self._started, outcome.Value(value))

    def _finish(self, error: BaseException | None) -> None:
        self._nursery = None
        if not self._started.done():
            self._started.set_exception(_flat(error) if error else _closed())
        for answer in self._pending:
            _settle(answer, outcome.Error(_closed()))
        if not self._done.done():
            self._done.set_result(_flat(error) if error else None)

    async def _stop(self) -> None:
        self._stopping = True
        if self._nursery is not None and self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.shield(self._done)
                await asyncio.to_thread(self._thread.join, 1.0)

    def _running(self) -> tuple[trio.Nursery, trio.lowlevel.TrioToken]:
        nursery, token = self._nursery, self._token
        if nursery is None or token is None:
            raise _closed()
        return nursery, token

    def _to_trio(
        self,
        token: trio.lowlevel.TrioToken,
        function: Callable[..., object],
        *arguments: object,
    ) -> None:
        try:
            token.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            raise _closed() from None

    def _to_loop(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(answer: asyncio.Future[T], result: outcome.Outcome[T]) -> None:
    if answer.done():
        return
    if isinstance(result, outcome.Error):
        error = result.error
        answer.set_exception(error if isinstance(error, Exception) else _closed())
    else:
        answer.set_result(result.unwrap())


def _flat(error: BaseException) -> BaseException:
    """The first error inside nested groups: nurseries wrap what one task raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _closed() -> NovaMeshError:
    return NovaMeshError(
        Code.UNAVAILABLE, "the mesh is not running", "it comes back by itself; try again soon"
    )
