"""The peers we know, kept in a file, and enough of them connected.

Rules: at most 256 peers; who was connected stays longest, who was only named goes first; the file
is written whole and durable and never more often than every few seconds; a file that cannot be
read costs what was in it, not the start. Addresses come from verified descriptors, from our own
configuration: who calls `learn` has verified them. Any thread may call.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from novamesh.private_file import read_private, write_private
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id, parse_node_id
from novamesh_proto.messages import NodeId

PEERS_MAX: Final = 256
ADDRESSES_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 256
FILE_BYTES_MAX: Final = 1024 * 1024
RETRY_MIN_S: Final = 2.0
RETRY_MAX_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """One peer: where it may be, when it was last connected or named, and when to try again."""

    addresses: tuple[str, ...]
    seen_s: float = 0.0  # wall clock; 0 if it was never connected
    failures: int = 0
    retry_s: float = 0.0  # monotonic clock


class PeerList:
    """The known peers of one machine."""

    def __init__(
        self,
        file: Path,
        own: NodeId,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._own = own
        self._wall_s = wall_s
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._known: dict[NodeId, Known] = {}  # the latest named last
        self._changed = False
        self._load()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, node: NodeId, addresses: Sequence[str]) -> None:
        """A peer is at these addresses now; they replace those we knew."""
        fit = tuple(dict.fromkeys(a for a in addresses if len(a) <= ADDRESS_CHARS_MAX))
        fit = fit[:ADDRESSES_MAX]
        if node == self._own or not fit:
            return
        with self._lock:
            before = self._known.pop(node, None)
            if before is None:
                self._make_room()
                self._known[node] = Known(fit)
            elif before.addresses == fit:
                self._known[node] = before
                return
            else:
                self._known[node] = replace(before, addresses=fit, failures=0, retry_s=0.0)
            self._changed = True

    def hint(self, node: NodeId, addresses: Sequence[str]) -> None:
        """Somebody unproven says that a peer is there: taken only where we know nothing better."""
        if not self.addresses(node):
            self.learn(node, addresses)

    def connected(self, node: NodeId) -> None:
        """A peer is connected at this moment."""
        with self._lock:
            known = self._known.get(node)
            if known is not None:
                self._known[node] = replace(known, seen_s=self._wall_s(), failures=0, retry_s=0.0)
                self._changed = True

    def failed(self, node: NodeId) -> None:
        """A peer answered at none of its addresses: it is left alone for a while."""
        with self._lock:
            known = self._known.get(node)
            if known is not None:
                pause_s = min(RETRY_MIN_S * 2**known.failures, RETRY_MAX_S)
                self._known[node] = replace(
                    known,
                    failures=min(known.failures + 1, 16),
                    retry_s=self._monotonic_s() + pause_s,
                )

    def addresses(self, node: NodeId) -> tuple[str, ...]:
        """Where a peer may be; empty if we do not know it."""
        known = self._known.get(node)
        return () if known is None else known.addresses

    def choose(self, number: int, but: set[NodeId], rng: random.Random) -> list[NodeId]:
        """At most `number` peers to dial now, those of `but` left out, any with equal chance."""
        now_s = self._monotonic_s()
        with self._lock:
            ready = [
                n for n, known in self._known.items() if n not in but and known.retry_s <= now_s
            ]
        return rng.sample(ready, min(number, len(ready)))

    def save(self) -> None:
        """Write the file if anything changed; a full disk costs a log line."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            peers = {
                format_node_id(node): {
                    "addresses": list(known.addresses),
                    "seen": round(known.seen_s),
                }
                for node, known in self._known.items()
            }
        try:
            write_private(self._file, json.dumps({"peers": peers}, indent=1).encode())
        except NovaMeshError as error:
            _log.warning("peers are not kept: %s", error.message)

    def _make_room(self) -> None:
        """Forget one peer if there are too many: the one that was connected least lately."""
        if len(self._known) >= PEERS_MAX:
            # dict order breaks ties: of those never connected, the one named first.
            del self._known[min(self._known, key=lambda node: self._known[node].seen_s)]

    def _load(self) -> None:
        try:
            for node, known in _parse(read_private(self._file, FILE_BYTES_MAX)):
                if node != self._own:
                    self._known[node] = known
        except FileNotFoundError:
            return
        except NovaMeshError as error:
            if self._file.exists():
                _log.warning("known peers are lost: %s", error.message)
        except (ValueError, TypeError, AttributeError, KeyError):
            _log.warning("known peers are lost: %s is not a list of peers", self._file)


def _parse(data: bytes) -> list[tuple[NodeId, Known]]:
    """What `save` wrote; entries that are no peer are left out."""
    found: list[tuple[NodeId, Known]] = []
    entries: dict[str, Any] = json.loads(data)["peers"]
    for text, entry in list(entries.items())[:PEERS_MAX]:
        addresses = tuple(
            str(address) for address in entry["addresses"][:ADDRESSES_MAX]
            if len(str(address)) <= ADDRESS_CHARS_MAX
        )  # fmt: skip
        try:
            node = parse_node_id(text)
        except NovaMeshError:
            continue
        if addresses:
            found.append((node, Known(addresses, float(entry["seen"]))))
    return found
