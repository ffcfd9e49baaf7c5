"""Slots held between a match and its submission, shared out so that no client starves another.

Rules: a slot is held for RESERVATION_MS, or until the job it is held for is admitted. A client
holds at most half of the free slots that others leave, rounded up. After a match that came to
nothing it holds none for NO_SHOW_MS, so that not even a pool of one slot is kept by somebody who
never submits. Whoever holds nothing gets candidates all the same: first come, first served.

Nothing here is logged: these are promises of two seconds and die with the process.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from novamesh_coordinator.events import Moment
from novamesh_proto.limits import RESERVATION_MS
from novamesh_proto.messages import NodeId

RESERVATIONS_MAX: Final = 16_384
NO_SHOW_MS: Final = 30_000

Slot = tuple[bytes, NodeId]  # name of the reservation, node


@dataclass(frozen=True, slots=True)
class Hold:
    """The slots of one match."""

    client: NodeId
    slots: tuple[Slot, ...]
    until_ms: int


class Reservations:
    """Who holds slots where."""

    def __init__(self) -> None:
        self._queue: deque[Hold] = deque()  # the one that runs out first comes first
        self._by_name: dict[bytes, Hold] = {}
        self._by_node: dict[NodeId, dict[bytes, Hold]] = {}  # in the order they run out
        self._own: Counter[tuple[NodeId, NodeId]] = Counter()  # by client and node
        self._no_shows: dict[NodeId, int] = {}  # until when; the first to be forgiven comes first

    def __len__(self) -> int:
        return len(self._by_name)

    def room(self, client: NodeId, free: Mapping[NodeId, int], now: Moment) -> int:
        """How many more slots a client may hold, given what is free at the nodes it could use."""
        self._expire(now)
        if client in self._no_shows:
            return 0
        own = left = 0
        for node, slots in free.items():
            mine = self._own[client, node]
            own += mine
            left += max(0, slots - self._count(node) + mine)
        share = max(1, (left + 1) // 2)
        return max(0, min(share - own, RESERVATIONS_MAX - len(self)))

    def hold(self, client: NodeId, slots: Sequence[Slot], now: Moment) -> None:
        """Hold the slots of one match; `room` says how many."""
        if not slots:
            return
        held = Hold(client, tuple(slots), now.ticks_ms + RESERVATION_MS)
        self._queue.append(held)
        for name, node in held.slots:
            self._by_name[name] = held
            self._by_node.setdefault(node, {})[name] = held
            self._own[client, node] += 1

    def release(self, names: Iterable[bytes], client: NodeId) -> None:
        """A job came of the matches that these belong to; what is not this client's stays."""
        for name in names:
            held = self._by_name.get(name)
            if held is not None and held.client == client:
                self._drop(held)

    def at(self, node: NodeId, now: Moment) -> tuple[int, int]:
        """How many slots of a node are held, and after how many ms the first of them is free."""
        self._expire(now)
        first = next(iter(self._by_node.get(node, {}).values()), None)
        return self._count(node), first.until_ms - now.ticks_ms if first is not None else 0

    def own(self, names: Iterable[bytes], client: NodeId, now: Moment) -> Counter[NodeId]:
        """How many slots these names hold for this client, by node."""
        self._expire(now)
        held = {name: self._by_name.get(name) for name in names}
        return Counter(
            node
            for name, one in held.items()
            if one is not None and one.client == client
            for slot, node in one.slots
            if slot == name
        )

    def _count(self, node: NodeId) -> int:
        return len(self._by_node.get(node, ()))

    def _expire(self, now: Moment) -> None:
        """Let go what ran out, and note whose it was."""
        while self._queue and self._queue[0].until_ms <= now.ticks_ms:
            held = self._queue.popleft()
            if self._by_name.get(held.slots[0][0]) is not held:
                continue
            self._drop(held)
            self._no_shows.pop(held.client, None)
            self._no_shows[held.client] = held.until_ms + NO_SHOW_MS
        while self._no_shows:
            client, until_ms = next(iter(self._no_shows.items()))
            if until_ms > now.ticks_ms:
                return
            del self._no_shows[client]

    def _drop(self, held: Hold) -> None:
        for name, node in held.slots:
            del self._by_name[name]
            del self._by_node[node][name]
            if not self._by_node[node]:
                del self._by_node[node]
            self._own[held.client, node] -= 1
            if not self._own[held.client, node]:
                del self._own[held.client, node]
