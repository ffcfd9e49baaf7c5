"""After every test of the engine, the books of all engines and schedulers it made must agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from novamesh_engine.engine import Engine
from support.watched import check_all, watched


@pytest.fixture(autouse=True)
def books_agree(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    usual = Engine.__init__

    def begin(self: Engine, *args: Any, **kwargs: Any) -> None:
        usual(self, *args, **kwargs)
        watched(self)  # whoever made it: production code loads engines, too

    monkeypatch.setattr(Engine, "__init__", begin)
    yield
    check_all()
