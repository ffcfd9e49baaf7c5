"""The databases that a coordinator's log can be in: a file, or a PostgreSQL that a test started."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.store import Store, open_store
from novamesh_proto.errors import Code, NovaMeshError
from support.postgres_server import PostgresServer, name_of

AWAY_S = 30.0


class DatabasePlace(Protocol):
    """One of them, with nothing in it at first."""

    @property
    def where(self) -> Path | PostgresUrl:
        """For `open_store`."""
        ...

    def run(self, statement: str) -> list[Any]:
        """Run SQL past the store; what it gives. x'00' is a literal of bytes."""
        ...


@dataclass(frozen=True)
class FilePlace:
    """A file of SQLite."""

    where: Path

    def run(self, statement: str) -> list[Any]:
        """SQLite's own."""
        with sqlite3.connect(self.where) as database:
            found = database.execute(statement).fetchall()
        database.close()
        return found


@dataclass(frozen=True)
class ServerPlace:
    """A database of a server."""

    server: PostgresServer
    where: PostgresUrl

    def run(self, statement: str) -> list[Any]:
        """The same in PostgreSQL's words."""
        statement = statement.replace("x'", "'\\x") if "x'" in statement else statement
        with self.server.connect(name_of(self.where)) as database:
            done = database.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []


async def open_again(where: Path | PostgresUrl) -> Store:
    """Open what a process that was just killed had; its server may need a moment to notice."""
    until_s = time.monotonic() + AWAY_S
    while True:
        try:
            return await open_store(where)
        except NovaMeshError as error:
            if error.code is not Code.CONFLICT or time.monotonic() > until_s:
                raise
        await asyncio.sleep(0.05)
