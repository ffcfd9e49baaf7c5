"""Random examples have no deadline: a slow machine is no bug, and pytest has a timeout.

Kernels for GPUs are interpreted, so that all machines test them: Triton asks when it is imported.

Files that mostly wait (for processes that are killed, frozen, cut off) come first: run beside each
other they share the machine, and none of them is left over when all else has ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.database_places import DatabasePlace, FilePlace, ServerPlace
from support.postgres_server import PostgresServer

WAITING = ("crash", "e2e", "sim")

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Folders of WAITING first, in that order; all else as it was."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return WAITING.index(folder) if folder in WAITING else len(WAITING)

    items.sort(key=rank)


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
