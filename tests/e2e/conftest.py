"""One real pool for all end-to-end tests: a coordinator, two CPU nodes, a client that has joined.

Tests kill what they like: whatever is missing is started again for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.processes import RealPool


@pytest.fixture(scope="session")
def running_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    with RealPool(tmp_path_factory.mktemp("pool")) as running:
        running.join()
        yield running


@pytest.fixture
def pool(running_pool: RealPool) -> RealPool:
    """The pool with its coordinator up and both of its nodes attached."""
    running_pool.revive("ada", "bob")
    return running_pool
