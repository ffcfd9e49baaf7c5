"""Who is here: the newest descriptor of every node, whatever way it came, until it expires.

Rules: a descriptor is verified on receipt and believed for nothing but what its node signed; the
newest sequence wins; expired means absent, by the descriptor's own word and by the time since it
came, so that no clock but ours keeps a silent node here. Where the table is full, what strangers
pass on makes room for what came by other ways, and gets none itself. Ranking is `matching`'s
business. No clock and no files: `now_ms` is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from novamesh_proto import envelope, wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import (
    CLOCK_SKEW_MS,
    DESCRIPTOR_BYTES_MAX,
    DESCRIPTOR_LIFE_MS,
    POOL_NODES_MAX,
)
from novamesh_proto.matching import NodeState
from novamesh_proto.messages import Envelope, NodeDescriptor, NodeId

TABLE_NODES_MAX: Final = 4 * POOL_NODES_MAX  # nodes of one table: about 100 MB


class Source(StrEnum):
    """By which way a descriptor came."""

    COORDINATOR = "coordinator"
    MQTT = "mqtt"
    LIBP2P = "libp2p"
    STATIC = "static"


@dataclass(frozen=True, slots=True)
class Entry:
    """A node that is here until `until_ms`, and by which ways it was told of."""

    descriptor: Verified[NodeDescriptor]
    sources: frozenset[Source]
    until_ms: int

    @property
    def node(self) -> NodeId:
        """Who it is."""
        return self.descriptor.issuer

    @property
    def state(self) -> NodeState:
        """The node as `matching.rank` wants it: nothing but what it says itself."""
        said = self.descriptor.message
        return NodeState(said, self.node, free_slots=min(said.free_slots, said.slots))


def open_descriptor(sealed: Envelope, network: str, now_ms: int) -> Verified[NodeDescriptor]:
    """A descriptor as it is taken from anybody.

    Raises:
        NovaMeshError: TOO_LARGE above DESCRIPTOR_BYTES_MAX, NOT_FRESH if it lives longer than
            DESCRIPTOR_LIFE_MS or has expired, and as `envelope.open`.
    """
    size = len(wire.encode(sealed))
    if size > DESCRIPTOR_BYTES_MAX:
        raise NovaMeshError(
            Code.TOO_LARGE,
            f"a descriptor has at most {DESCRIPTOR_BYTES_MAX} bytes, this one has {size}",
            "serve fewer models on this node",
        )
    opened = envelope.open(sealed, NodeDescriptor, network=network, now_ms=now_ms)
    head = opened.message.header
    life_ms = head.expires_at_ms - head.issued_at_ms
    if life_ms > DESCRIPTOR_LIFE_MS:
        raise NovaMeshError(
            Code.NOT_FRESH,
            f"a descriptor lives {DESCRIPTOR_LIFE_MS // 1000} s at most, "
            f"this one {life_ms / 1000:.0f} s",
        )
    return opened


class NodeTable:
    """Owns the entries; `refused` counts, by code, what was not taken."""

    def __init__(
        self,
        network: str,
        capacity: int = TABLE_NODES_MAX,
        strangers: frozenset[Source] = frozenset({Source.LIBP2P}),
    ) -> None:
        """`strangers`: the ways by which anybody can tell of any number of nodes."""
        self._network = network
        self._capacity = capacity
        self._strangers = strangers
        self._entries: dict[NodeId, Entry] = {}
        self.refused: Counter[Code] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, sealed: Envelope, source: Source, now_ms: int) -> bool:
        """Take a descriptor; True if it says something newer than what was here.

        Raises:
            NovaMeshError: STALE for an older sequence, or another descriptor with the same; BUSY if
                the table is full; and as `open_descriptor`.
        """
        try:
            return self.put(open_descriptor(sealed, self._network, now_ms), source, now_ms)
        except NovaMeshError as error:
            self.refused[error.code] += 1
            raise

    def put(self, opened: Verified[NodeDescriptor], source: Source, now_ms: int) -> bool:
        """The same for one that `open_descriptor` has opened; a refusal is not counted."""
        known = self._entries.get(opened.issuer)
        if known is not None and known.descriptor.id == opened.id:
            self._entries[known.node] = replace(known, sources=known.sources | {source})
            return False
        sequence = opened.message.sequence
        if known is not None and sequence <= known.descriptor.message.sequence:
            newest = known.descriptor.message.sequence
            raise NovaMeshError(
                Code.STALE, f"descriptor {sequence} of this node is not newer than {newest}"
            )
        if known is None and len(self._entries) >= self._capacity:
            self._make_room(source, now_ms)
        sources = frozenset({source}) if known is None else known.sources | {source}
        self._entries[opened.issuer] = Entry(opened, sources, _until(opened, now_ms))
        return True

    def get(self, node: NodeId, now_ms: int) -> Verified[NodeDescriptor] | None:
        """The newest descriptor of a node that is here."""
        entry = self._entries.get(node)
        return entry.descriptor if entry is not None and entry.until_ms > now_ms else None

    def fresh(self, now_ms: int) -> Iterator[Entry]:
        """Every node that is here."""
        return (entry for entry in self._entries.values() if entry.until_ms > now_ms)

    def forget(self, now_ms: int) -> None:
        """Drop whose descriptor nobody would take any more: until then it keeps replays out."""
        for entry in list(self._entries.values()):
            if entry.descriptor.message.header.expires_at_ms + CLOCK_SKEW_MS < now_ms:
                del self._entries[entry.node]

    def _make_room(self, source: Source, now_ms: int) -> None:
        self._entries = {entry.node: entry for entry in self.fresh(now_ms)}
        if len(self._entries) < self._capacity:
            return
        if source in self._strangers:
            raise NovaMeshError(Code.BUSY, f"{self._capacity} nodes are known already")
        passed_on = [e for e in self._entries.values() if e.sources <= self._strangers]
        candidates = passed_on or self._entries.values()
        first = min(candidates, key=lambda entry: (entry.until_ms, entry.node))
        del self._entries[first.node]


def _until(opened: Verified[NodeDescriptor], now_ms: int) -> int:
    """When it is absent: its clock may be wrong by CLOCK_SKEW_MS, ours tells how long it is old."""
    head = opened.message.header
    return min(head.expires_at_ms + CLOCK_SKEW_MS, now_ms + head.expires_at_ms - head.issued_at_ms)
