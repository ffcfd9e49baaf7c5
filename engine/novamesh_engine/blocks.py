"""Who may use which page of the KV cache: numbers only, no tensors.

Rules: a block is free or held, by one sequence or by several that share its contents; `allocate`
gives all blocks asked for or raises. A block whose contents are worth nothing is given out before
one that is worth keeping, and of these the longest-free first. The pool does not know sequences,
does not know contents, and does not decide who gets what.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Sequence

from novamesh_engine.errors import IntegrityError


class BlockPool:
    """`total` blocks of `block_size` slots each."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._holders: dict[int, int] = {}  # of the blocks that are held

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

    def unheld(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds."""
        return sum(block in self._free for block in blocks)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises: IntegrityError if fewer are free; ask `free` first."""
        if count > len(self._free):
            raise IntegrityError(f"{count} blocks asked for, {len(self._free)} free")
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks for what they contain, whether somebody holds them already or nobody."""
        for block in blocks:
            self._free.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def release(self, blocks: Sequence[int], keep: Container[int] = ()) -> None:
        """Give a sequence's blocks back, its last one first; those in `keep` are worth keeping.

        Raises: IntegrityError, and takes none, if one is not held.
        """
        if len(set(blocks)) != len(blocks) or not self._holders.keys() >= set(blocks):
            raise IntegrityError("a block was released that nobody holds")
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._free[block] = None
                self._free.move_to_end(block, last=block in keep)

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Compare the books with what the sequences hold. Raises: IntegrityError."""
        holders: Counter[int] = Counter()
        for held in owned:
            if len(held) != len(set(held)):
                raise IntegrityError("a sequence holds a block twice")
            holders.update(held)
        if holders != self._holders:
            raise IntegrityError("the blocks held are not the blocks given out")
        if sorted([*self._free, *self._holders]) != list(range(self.total)):
            raise IntegrityError("blocks are lost or counted twice")
