"""One error out of a group of errors, unless one of them is a bug."""

from __future__ import annotations

from novamesh_node.failures import first_error
from novamesh_proto.errors import Code, NovaMeshError

EXPECTED, OTHER = NovaMeshError(Code.BUSY, "a"), NovaMeshError(Code.BANNED, "b")


def test_an_expected_error_is_shown_as_itself() -> None:
    group = BaseExceptionGroup("", [ExceptionGroup("", [EXPECTED]), OTHER])
    assert first_error(group) is EXPECTED


def test_a_bug_is_never_hidden() -> None:
    group = BaseExceptionGroup("", [EXPECTED, ValueError()])
    assert first_error(group) is group
