"""Which page of the KV cache holds which tokens, so that nobody computes them twice: no tensors.

A full block has a name: a keyed hash over its tokens and the name of the block before it, so that
a name stands for everything up to the block's end. The chain begins at a root made of the
sequence's scope and of the regime its rotary angles are in. A freed block keeps its name until the
pool gives it out again (after vLLM's automatic prefix caching).

Rules: only blocks whose every token is computed have names, and such a block is never written
again; a name stands for one block. Scopes never meet: a request sees what requests of its own scope
computed, and without a scope only itself, because the time that a prefix saves tells that somebody
sent it. Names are 128 bits under a key drawn for each cache, so that no stranger can make two
prefixes share one. Who holds a block is the pool's to know.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from novamesh_engine.errors import IntegrityError
from novamesh_engine.sequence import Sequence

NAME_BYTES: Final = 16
KEY_BYTES: Final = 32
_ROOT: Final = b"novamesh root"
_BLOCK: Final = b"novamesh block"


class PrefixCache:
    """The names of full blocks; one that is not `enabled` never names any."""

    def __init__(self, block_size: int, enabled: bool = True) -> None:
        self._block_size = block_size
        self._enabled = enabled
        self._key = secrets.token_bytes(KEY_BYTES)
        self._blocks: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Blocks that have a name."""
        return len(self._names)

    def __contains__(self, block: object) -> bool:
        """Whether a block's contents may be asked for again."""
        return block in self._names

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the beginning of its tokens, in order.

        At least one token is left to compute, since only computing gives logits.
        """
        found: list[int] = []
        if not self._enabled:
            return found
        for index in range((len(sequence.tokens) - 1) // self._block_size):
            block = self._blocks.get(self._name(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def record(self, sequence: Sequence, since: int) -> None:
        """Name the blocks that its tokens from position `since` on have filled by now."""
        if not self._enabled:
            return
        for index in range(since // self._block_size, sequence.computed // self._block_size):
            name = self._name(sequence, index)
            if name not in self._blocks:  # else another sequence computed the same meanwhile
                self._blocks[name] = sequence.blocks[index]
                self._names[sequence.blocks[index]] = name

    def forget(self, blocks: Iterable[int]) -> None:
        """Take the names from blocks that will be overwritten, or whose contents are bad."""
        for block in blocks:
            name = self._names.pop(block, None)
            if name is not None:
                del self._blocks[name]

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Compare the names with the sequences' tokens. Raises: IntegrityError."""
        if {block: name for name, block in self._blocks.items()} != self._names:
            raise IntegrityError("a name and a block do not mean each other")
        for sequence in sequences:
            full, name = sequence.computed // self._block_size, self._root(sequence)
            for index, block in enumerate(sequence.blocks):
                if index >= full and block in self._names:
                    raise IntegrityError("a block has a name before it is full")
                if index < full:
                    name = self._follow(name, sequence, index)
                    if self._names.get(block, name) != name:
                        raise IntegrityError("a sequence holds a block of other tokens")

    def _name(self, sequence: Sequence, index: int) -> bytes:
        """The name of its full block `index`; the names before it are known or made now."""
        names = sequence.names
        while len(names) <= index:
            parent = names[-1] if names else self._root(sequence)
            names.append(self._follow(parent, sequence, len(names)))
        return names[index]

    def _root(self, sequence: Sequence) -> bytes:
        # A number of its own for a sequence without a scope, which no scope can imitate.
        own = b"" if sequence.scope else sequence.arrival.to_bytes(8)
        said = len(own).to_bytes(1) + own + sequence.regime.to_bytes(8) + sequence.scope
        return self._hash(_ROOT, said)

    def _follow(self, parent: bytes, sequence: Sequence, index: int) -> bytes:
        start = index * self._block_size
        tokens = array("q", sequence.tokens[start : start + self._block_size])
        return self._hash(_BLOCK, parent + tokens.tobytes())

    def _hash(self, person: bytes, said: bytes) -> bytes:
        return blake2b(said, digest_size=NAME_BYTES, key=self._key, person=person).digest()
