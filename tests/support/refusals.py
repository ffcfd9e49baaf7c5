"""Run something that may be refused, but for no other reason than the ones named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

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
