"""A campaign silences the log of its process; the next test hears it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def heard_again() -> Iterator[None]:
    """Whatever a campaign set is as it was."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
