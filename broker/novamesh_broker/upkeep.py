"""A connection to a broker that is made again whenever it breaks.

Rules: the broker is a convenience: nothing here raises into its owner, and a bug in what is done
there is one more broken connection. Being away is told of once, and being back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from novamesh_broker.connection import Connection, Visitor, connected
from novamesh_broker.entrance import Entrance
from novamesh_proto.broker import Contact
from novamesh_proto.errors import NovaMeshError

Stay = Callable[[Connection], Awaitable[None]]

_log = structlog.get_logger()


class Upkeep:
    """One connection after the other; `contact` says whether there is one now."""

    def __init__(
        self, entrance: Entrance, monotonic_s: Callable[[], float], rng: random.Random
    ) -> None:
        self._entrance = entrance
        self._monotonic_s = monotonic_s
        self._rng = rng
        self.contact = Contact()

    def describe(self) -> str:
        """For a status line."""
        return f"{self._entrance.broker}, {self.contact.describe()}"

    async def run(self, visitor: Visitor, stay: Stay) -> None:
        """Do there what `stay` does, from the beginning on each connection, until it returns."""
        while True:
            stayed = False
            try:
                async with connected(self._entrance, visitor) as connection:
                    self.contact.found(connection.version, self._monotonic_s())
                    broker = str(self._entrance.broker)
                    _log.info("broker reached", broker=broker, mqtt=connection.version)
                    await stay(connection)
                    stayed = True
            except NovaMeshError as error:
                trouble = error.message
            except Exception as bug:  # boundary of the broker: it must never end its owner
                _log.error("presence failed", kind=type(bug).__name__)
                trouble = type(bug).__name__
            task = asyncio.current_task()
            if task and task.cancelling():  # what went wrong on the way out took its place
                raise asyncio.CancelledError
            if stayed:
                return
            self._lost(trouble)
            await asyncio.sleep(self.contact.pause_s(self._rng))

    def _lost(self, trouble: str) -> None:
        if self.contact.lost(trouble, self._monotonic_s()):
            broker = str(self._entrance.broker)
            _log.warning("broker not reached, trying again", broker=broker, error=trouble)
