"""One real coordinator for the tests here; whatever is said to it, its log tells of no bug."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.hostile.coordinator import Victim, serve


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with serve(tmp_path_factory.mktemp("victim")) as serving:
        yield serving
        assert not serving.traces()
