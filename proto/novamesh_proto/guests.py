"""Calls of people who have not said yet who they are: how many there are, and from where.

Pure. Without a bound, a few megabytes of begun calls would take every slot of a server, and members
would find none. Rules: a place has at most its share; when all slots are taken, a place that holds
fewer than FEW still gets one, so that many slow callers in one place shut out nobody elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

FEW: Final = 4
RETRY_MS: Final = 1_000


class Guests:
    """Slots for calls that nobody has vouched for yet; `refused` is told where from, each time."""

    def __init__(
        self, each_max: int, all_max: int, refused: Callable[[str], object] = lambda _: None
    ) -> None:
        self._each_max = each_max
        self._all_max = all_max
        self._refused = refused
        self._held: dict[str, int] = {}
        self._all = 0

    def __len__(self) -> int:
        return self._all

    @contextlib.contextmanager
    def hold(self, place: str) -> Iterator[None]:
        """Keep a slot while inside.

        Raises:
            NovaMeshError: BUSY if the place has its share, or all slots are taken.
        """
        held = self._held.get(place, 0)
        if held >= self._each_max or (self._all >= self._all_max and held >= FEW):
            self._refused(place)
            raise NovaMeshError(
                Code.BUSY,
                "too many calls at the same time",
                "finish or end those under way",
                RETRY_MS,
            )
        self._held[place] = held + 1
        self._all += 1
        try:
            yield
        finally:
            self._all -= 1
            left = self._held[place] - 1
            if left:
                self._held[place] = left
            else:
                del self._held[place]
