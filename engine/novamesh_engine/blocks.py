"""Who may use which page of the KV cache: numbers only, no tensors.

Rules: a block is either free or held by exactly one sequence; `allocate` gives all blocks asked for
or raises. The pool does not know sequences and does not decide who gets what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from novamesh_engine.errors import IntegrityError


class BlockPool:
    """`total` blocks of `block_size` slots each; the longest-free block is given out first."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = deque(range(total))
        self._held: set[int] = set()

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def slots(self) -> int:
        """Tokens that fit into the whole pool."""
        return self.total * self.block_size

    def needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens take."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises: IntegrityError if fewer are free; ask `free` first."""
        if count > len(self._free):
            raise IntegrityError(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.popleft() for _ in range(count)]
        self._held.update(taken)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back. Raises: IntegrityError, and takes none, if one is not held."""
        if len(set(blocks)) != len(blocks) or not self._held.issuperset(blocks):
            raise IntegrityError("a block was released that nobody holds")
        self._held.difference_update(blocks)
        self._free.extend(blocks)

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Compare the books with what the sequences hold. Raises: IntegrityError."""
        blocks = [block for held in owned for block in held]
        if len(blocks) != len(set(blocks)):
            raise IntegrityError("two sequences hold the same block")
        if set(blocks) != self._held:
            raise IntegrityError("the blocks held are not the blocks given out")
        if sorted([*self._free, *self._held]) != list(range(self.total)):
            raise IntegrityError("blocks are lost or counted twice")
