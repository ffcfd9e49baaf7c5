"""Each kind carries the code that its callers act on."""

from __future__ import annotations

from novamesh_engine.errors import IntegrityError, QueueFullError, RequestError
from novamesh_proto.errors import Code


def test_kinds_and_codes() -> None:
    assert RequestError("a", "b").code is Code.BAD_REQUEST
    assert RequestError("a", "b", Code.TOO_LARGE).code is Code.TOO_LARGE
    assert QueueFullError(3).meaning.retryable
    assert IntegrityError("a").code is Code.INTERNAL
    assert QueueFullError(3).message == "the engine's queue is full: 3 requests wait"
