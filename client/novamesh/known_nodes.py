"""Nodes that were met, with the addresses at which they said they listen, kept across restarts.

An address is where to ask first when nobody else tells who is there; what answers must prove itself
again. Rules: KNOWN_MAX nodes, the one seen longest ago goes; one file, written whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from novamesh.private_file import read_private, write_private
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id, parse_node_id
from novamesh_proto.limits import ENDPOINT_BYTES_MAX, ENDPOINTS_MAX
from novamesh_proto.messages import NodeId

KNOWN_MAX: Final = 256
_FILE_BYTES_MAX: Final = 1 << 20


class KnownNodes:
    """Owns the file; a damaged one is as good as none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: dict[NodeId, tuple[str, ...]] = {}  # seen longest ago first
        self._changed = False
        try:
            listed: Any = json.loads(read_private(path, _FILE_BYTES_MAX))
            for entry in listed[-KNOWN_MAX:]:
                self._nodes[parse_node_id(entry["node"])] = _addresses(entry["endpoints"])
        except (NovaMeshError, ValueError, TypeError, KeyError):
            self._nodes = {}

    def learn(self, node: NodeId, endpoints: tuple[str, ...]) -> None:
        """A node said, signed, where it listens; one that listens nowhere is not kept."""
        before = self._nodes.pop(node, None)
        if endpoints:
            self._nodes[node] = endpoints
        while len(self._nodes) > KNOWN_MAX:
            del self._nodes[next(iter(self._nodes))]
        self._changed = self._changed or before != self._nodes.get(node)

    def addresses(self) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Who was met and where, seen last first."""
        return tuple(reversed(self._nodes.items()))

    def save(self) -> None:
        """Write what changed. Raises STORAGE."""
        if not self._changed:
            return
        listed = [
            {"node": format_node_id(node), "endpoints": list(endpoints)}
            for node, endpoints in self._nodes.items()
        ]
        write_private(self._path, json.dumps(listed, indent=1).encode())
        self._changed = False


def _addresses(texts: list[str]) -> tuple[str, ...]:
    kept = [text for text in texts if 0 < len(text.encode()) <= ENDPOINT_BYTES_MAX]
    return tuple(kept[:ENDPOINTS_MAX])
