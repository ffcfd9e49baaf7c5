"""Which queries were seen: one replay window for each member that asks.

Rules: whoever is no member was refused before it gets here, so strangers take no room; a member
fills its own window and nobody else's, and when all windows together are full, members that hold
less than an even share are still let in, so that all may come to twice as many; windows whose ids
have all expired go, and how far they had forgotten is remembered as one time for all. Kept in
memory: a query that is repeated after a restart is answered again, and changes nothing.
"""

from __future__ import annotations

from typing import Final, TypeVar

from novamesh_proto.envelope import ReplayWindow, Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import NodeId

T = TypeVar("T", bound=Signable)
EACH_MAX: Final = 16_384  # ids of one member, about 130 queries a second for as long as they count
ALL_MAX: Final = 524_288  # ids of all, about 80 MB
FEW: Final = 8  # ids that a member may hold whatever others do
SWEEP_MS: Final = 10_000


class SeenQueries:
    """The ids of queries, by whoever signed them."""

    def __init__(self, each_max: int = EACH_MAX, all_max: int = ALL_MAX) -> None:
        self._each_max = each_max
        self._all_max = all_max
        self._windows: dict[NodeId, ReplayWindow] = {}
        self._horizon_ms = -1
        self._sweep_at_ms = 0
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def admit(self, query: Verified[T], now_ms: int) -> None:
        """Remember a member's query, or refuse it.

        Raises:
            NovaMeshError: as `ReplayWindow.admit`.
        """
        self._sweep(now_ms)
        window = self._windows.get(query.issuer)
        if window is None:
            window = ReplayWindow(self._each_max, self._horizon_ms)
        before = len(window)
        share = self._all_max // (len(self._windows) + 1)
        if self._held >= self._all_max and before >= max(FEW, share):
            raise NovaMeshError(
                Code.BUSY, "the pool is asked too often", "try again", retry_after_ms=1_000
            )
        window.admit(query.id, query.message.header.expires_at_ms, now_ms)
        self._windows[query.issuer] = window
        self._held += len(window) - before

    def _sweep(self, now_ms: int) -> None:
        """Forget what nobody would take any more."""
        if now_ms < self._sweep_at_ms:
            return
        self._sweep_at_ms = now_ms + SWEEP_MS
        for window in self._windows.values():
            window.forget(now_ms)
            self._horizon_ms = max(self._horizon_ms, window.forgotten_ms)
        self._windows = {who: window for who, window in self._windows.items() if len(window)}
        self._held = sum(map(len, self._windows.values()))
