"""The pool's connection carries a job, and whatever else can do the same does too."""

from __future__ import annotations

import inspect

import pytest

from novamesh.job_transport import JobTransport
from novamesh.pool import PoolConnection

CALLS = [
    name
    for name, one in vars(JobTransport).items()
    if inspect.isfunction(one) and not name.startswith("_")
]


def test_it_is_what_a_session_needs_and_nothing_more() -> None:
    assert set(CALLS) == {
        "submit", "watch", "acknowledge", "submit_receipt", "cancel", "get_job",
    }  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_connection_to_a_pool_is_one(name: str) -> None:
    asked, given = (inspect.signature(getattr(one, name)) for one in (JobTransport, PoolConnection))
    assert given == asked
