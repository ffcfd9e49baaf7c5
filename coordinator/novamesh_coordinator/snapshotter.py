"""Snapshots beside the work: a state cut at one moment, written down a little at a time.

Rules: a state is cut when the core is exactly what is on disk, which takes a moment, since all of
it is immutable values; its parts are encoded one by one with a pause after each, so that no answer
waits long for the interpreter, and written in small transactions, so that no event waits long for
the disk; parts that did not change are not touched, and parts that no snapshot names go, before
and after. One snapshot at a time; the next is not begun for a while after one failed.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from novamesh_coordinator.core import Core, CoreState
from novamesh_coordinator.log_chain import Mark
from novamesh_coordinator.snapshot_parts import Encoder, Written, cut
from novamesh_coordinator.store import Store
from novamesh_proto.errors import NovaMeshError

SNAPSHOT_EVERY: Final = 10_000  # records
SNAPSHOT_S: Final = 1_800.0  # a quiet pool lets go of what its last one held
PAUSE_S: Final = 0.004  # after a part: encoding takes a fifth of the time
KNOWN_AT_ONCE: Final = 32  # parts that are compared and not encoded, between two pauses
WRITE_BYTES: Final = 1 << 18  # in one transaction, and one part more
DROPPED_AT_ONCE: Final = 64  # parts
RETRY_S: Final = 5.0

_log = structlog.get_logger()


class Snapshotter:
    """The one writer of snapshots."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: Written = {}  # of the newest snapshot of this process
        self._cut: tuple[Mark, CoreState] | None = None  # to be written, or being written
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._pause_s = PAUSE_S
        self._last_s: float | None = None  # when one was cut; of the first, when it was offered

    def offer(self, core: Core, now_s: float) -> None:
        """The core is what the log says up to its mark; whoever calls has made sure of that."""
        if self._last_s is None:
            self._last_s = now_s
        mark = self._store.mark
        records = mark.seq - self._store.snapshot_seq
        due = records >= SNAPSHOT_EVERY or (records > 0 and now_s - self._last_s >= SNAPSHOT_S)
        if due and self._cut is None:
            self._cut, self._last_s = (mark, core.state()), now_s
            self._wanted.set()

    async def run(self) -> None:
        """Write what was cut, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            assert self._cut is not None
            try:
                await self._write(*self._cut)
            except NovaMeshError as error:
                _log.warning("snapshots are behind", error=error.message)
                await asyncio.sleep(RETRY_S)
            finally:
                self._cut = None

    async def save(self, core: Core) -> None:
        """Write a snapshot at the end, without a pause; the core is what the log says.

        Raises:
            NovaMeshError: STORAGE.
        """
        self._pause_s = 0.0
        await self._write(self._store.mark, core.state())

    async def _write(self, mark: Mark, state: CoreState) -> None:
        async with self._writing:
            if mark.seq <= self._store.snapshot_seq:
                return
            await self._drop_unnamed()  # what a kill or a full disk has left
            encoder = Encoder(self._written)
            names = await self._write_parts(encoder, state)
            await self._store.save_snapshot(mark, names)
            self._written = encoder.written
            await self._drop_unnamed()

    async def _drop_unnamed(self) -> None:
        unnamed = await self._store.unnamed_parts()
        for first in range(0, len(unnamed), DROPPED_AT_ONCE):
            await self._store.drop_parts(unnamed[first : first + DROPPED_AT_ONCE])
            await asyncio.sleep(self._pause_s)

    async def _write_parts(self, encoder: Encoder, state: CoreState) -> list[bytes]:
        names: list[bytes] = []
        fresh: dict[bytes, bytes] = {}
        for number, run in enumerate(cut(state)):
            name = encoder.keep(run)
            if name is None or not self._store.has_part(name):
                name, body = encoder.encode(run)
                if not self._store.has_part(name):
                    fresh[name] = body
                await asyncio.sleep(self._pause_s)
            elif number % KNOWN_AT_ONCE == 0:
                await asyncio.sleep(0)
            names.append(name)
            if sum(map(len, fresh.values())) >= WRITE_BYTES:
                await self._store.save_parts(fresh)
                fresh = {}
        await self._store.save_parts(fresh)
        return names
