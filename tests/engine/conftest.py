"""After every test of the engine, the books of all engines and schedulers it made must agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.watched import check_all


@pytest.fixture(autouse=True)
def books_agree() -> Iterator[None]:
    yield
    check_all()
