"""A database as the store sees it: written by one thread, read by any, whatever keeps it.

Rules: what `write` returned from is durable; writes run one after the other in the order they were
asked for, each a transaction; `close` waits for what was begun. A plain driver in a thread of its
own costs a fraction of an async one, which changes threads for every statement
(docs/adr/0006-one-writer-thread.md).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import sqlalchemy as sa

from novamesh_coordinator.database_errors import storage
from novamesh_proto.errors import NovaMeshError

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class OutcomeUnknown(NovaMeshError):  # noqa: N818  whether it is an error is what is unknown
    """The connection was lost during COMMIT: all of it was written, or nothing.

    The next `write` that succeeds comes after that was decided, so it can see which.
    """


class Database(ABC):
    """One open database."""

    on_server = False  # whether a server of its own keeps it

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self.lost: NovaMeshError | None = None  # why this process may never write again
        self.on_return: Work[None] = lambda writer: None
        """What must hold before writing goes on after a connection was lost."""

    async def write(self, doing: str, work: Work[T]) -> T:
        """Run `work` in the writer's thread, as one transaction.

        Raises:
            OutcomeUnknown: it may have been written.
            NovaMeshError: STORAGE or CORRUPT, or CONFLICT once another process is the one that
                writes; then nothing of it was written.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._transact, doing, work)

    @abstractmethod
    def _transact(self, doing: str, work: Work[T]) -> T:
        """One transaction, in the writer's thread."""

    async def read(self, doing: str, work: Work[T]) -> T:
        """Run `work` in some thread, on a connection of its own, on one state of the database.

        Raises:
            NovaMeshError: STORAGE or CORRUPT.
        """
        return await asyncio.to_thread(self._look, doing, work)

    def _look(self, doing: str, work: Work[T]) -> T:
        with storage(doing, server=self.on_server), self._engine.connect() as reader:
            return work(reader)

    async def take_turn(self) -> bool:
        """Become the one that writes; whether it is so."""
        return True

    def keep_evidence(self) -> None:  # noqa: B027  most databases have none
        """Keep what a damaged database would drop when it is closed."""

    async def close(self) -> None:
        """Let another process have it."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
