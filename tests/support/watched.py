"""Every engine and scheduler that a test makes: its books are checked when the test ends."""

from __future__ import annotations

from typing import Protocol, TypeVar
from weakref import WeakSet


class Checked(Protocol):
    """What keeps books."""

    def check_integrity(self) -> None: ...


Subject = TypeVar("Subject", bound=Checked)
_MADE: list[Checked] = []  # by the test at work; held, so that none is gone before it is checked
_OLDER: WeakSet[Checked] = WeakSet()  # what fixtures of a wider scope made, as long as they live


def watched(subject: Subject) -> Subject:
    """The subject, whose books are checked at the end of this test and of those that follow."""
    _MADE.append(subject)
    return subject


def check_all() -> None:
    """Check the books of everything that is watched."""
    made = [*_MADE]
    _MADE.clear()
    for subject in (*made, *_OLDER):
        subject.check_integrity()
    _OLDER.update(made)
