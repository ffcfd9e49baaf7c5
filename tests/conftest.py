"""Random examples have no deadline: a slow machine is no bug, and pytest has a timeout.

Kernels for GPUs are interpreted, so that all machines test them: Triton asks when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.database_places import DatabasePlace, FilePlace, ServerPlace
from support.postgres_server import PostgresServer

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server a process of the tests; each test asks it for databases of its own."""
    with PostgresServer() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> DatabasePlace:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return FilePlace(tmp_path / "c.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return ServerPlace(server, server.make_database())
