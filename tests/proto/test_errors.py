"""One table says what a code means everywhere."""

from __future__ import annotations

import grpc
import pytest

from novamesh_proto.errors import MEANINGS, Code, NovaMeshError, PeerError, parse_code

EVERY_CODE = pytest.mark.parametrize("code", list(Code))


@EVERY_CODE
def test_every_code_has_a_meaning_on_every_transport(code: Code) -> None:
    meaning = MEANINGS[code]
    assert meaning.grpc in grpc.StatusCode.__members__
    assert meaning.grpc not in {"OK", "UNKNOWN"}
    assert 400 <= meaning.http <= 599
    assert 1 <= meaning.exit <= 255


@EVERY_CODE
def test_a_code_travels_as_text(code: Code) -> None:
    assert parse_code(code.value) is code
    assert len(code.value) <= 32


def test_an_unknown_code_is_never_a_success() -> None:
    assert parse_code("from_the_future") is Code.INTERNAL
    assert parse_code("") is Code.INTERNAL


def test_an_error_carries_what_happened_and_what_to_do() -> None:
    error = NovaMeshError(Code.BUSY, "no free slot", "try again", retry_after_ms=500)
    assert str(error) == "no free slot"
    assert (error.hint, error.retry_after_ms) == ("try again", 500)
    assert error.meaning.retryable


def test_a_peers_error_carries_who() -> None:
    error = PeerError(Code.CORRUPT, "chain is broken", "12D3KooWExample")
    assert isinstance(error, NovaMeshError)
    assert error.peer == "12D3KooWExample"
    assert not error.meaning.retryable
