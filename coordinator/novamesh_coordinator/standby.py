"""A coordinator that stands by: it follows the log until it is its turn to write.

Rules: nothing is written before; whatever may heal, a database that is away or has no tables yet,
is waited for; with the turn comes the rest of the log, so that the state is complete and only the
last moment of it is new.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from novamesh_coordinator.core import Core, PoolIdentity
from novamesh_coordinator.store import Store
from novamesh_proto.errors import Code, NovaMeshError

POLL_S: Final = 0.25
# Tables of an older version, or none yet: they are brought up to date by whoever writes next.
_WAITED_FOR: Final = frozenset({Code.STORAGE, Code.CONFLICT})

_log = structlog.get_logger()


class Standby:
    """One that waits."""

    def __init__(self, identity: PoolIdentity, store: Store) -> None:
        self._identity = identity
        self._store = store
        self._core: Core | None = None  # as far as the log was followed
        self._trouble = ""  # the last that was told

    async def wait(self) -> Core | None:
        """Return when it is our turn: with the state, or None where it must be read at first.

        Raises:
            NovaMeshError: CORRUPT, UNSUPPORTED.
        """
        while not await self._is_our_turn():
            if not await self._has_followed():
                await asyncio.sleep(POLL_S)
        while self._core is not None:
            try:
                if not await self._advance(self._core):
                    break
            except NovaMeshError as error:
                self._tell(error)
                await asyncio.sleep(POLL_S)
        return self._core

    async def _is_our_turn(self) -> bool:
        try:
            return await self._store.take_turn()
        except NovaMeshError as error:
            self._tell(error)
            return False

    async def _has_followed(self) -> bool:
        """Whether there may be more to read at once."""
        try:
            if self._core is not None:
                return await self._advance(self._core)
            await self._store.require_schema()
            loaded = await self._store.load()
        except NovaMeshError as error:
            self._tell(error)
            return False
        self._core = Core(self._identity, loaded.state)
        self._core.replay(loaded.records)
        _log.info("standing by", events=self._store.mark.seq)
        return True

    async def _advance(self, core: Core) -> bool:
        records = await self._store.follow()
        core.replay(records)
        self._trouble = ""
        return bool(records)

    def _tell(self, error: NovaMeshError) -> None:
        """Raise what does not heal; say the rest once."""
        if error.code not in _WAITED_FOR:
            raise error
        if error.message != self._trouble:
            self._trouble = error.message
            _log.warning("cannot follow the log yet", error=error.message)
