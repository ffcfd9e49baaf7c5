"""Run something that may be refused, but for no other reason than the ones named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")


def unless_refused(call: Callable[[], T], *codes: Code) -> T | None:
    """The call's result, or None if it was refused with one of the codes. Anything else escapes."""
    try:
        return call()
    except NovaMeshError as error:
        if error.code not in codes:
            raise
        return None


@contextmanager
def refused(code: Code, message: str, hint: str = "") -> Iterator[None]:
    """What runs inside must be refused, and in exactly these words: people act on them."""
    with pytest.raises(NovaMeshError) as caught:
        yield
    error = caught.value
    assert (error.code, error.message, error.hint) == (code, message, hint)
