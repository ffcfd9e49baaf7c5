"""The pool's books: nothing lost, nothing held twice, nothing taken back from a stranger."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.blocks import BlockPool
from novamesh_engine.errors import IntegrityError


def test_blocks_are_given_once_and_come_back() -> None:
    pool = BlockPool(4, 8)
    first, second = pool.allocate(3), pool.allocate(1)
    assert sorted(first + second) == [0, 1, 2, 3]
    assert pool.free == 0
    pool.release(first)
    assert pool.free == 3
    pool.check_integrity([second])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2)])
def test_needed_rounds_up(tokens: int, blocks: int) -> None:
    assert BlockPool(4, 8).needed(tokens) == blocks
    assert BlockPool(4, 8).slots == 32


def test_too_many_are_refused_and_none_is_taken() -> None:
    pool = BlockPool(2, 8)
    with pytest.raises(IntegrityError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)
    assert pool.free == 2


@pytest.mark.parametrize("blocks", [[1], [0, 0], [7]])
def test_only_held_blocks_come_back(blocks: list[int]) -> None:
    pool = BlockPool(2, 8)
    held = pool.allocate(1)
    with pytest.raises(IntegrityError, match="nobody holds"):
        pool.release(blocks)
    pool.check_integrity([held])


def test_integrity_sees_a_shared_and_a_forgotten_block() -> None:
    pool = BlockPool(3, 8)
    held = pool.allocate(2)
    with pytest.raises(IntegrityError, match="two sequences"):
        pool.check_integrity([held, held[:1]])
    with pytest.raises(IntegrityError, match="given out"):
        pool.check_integrity([held[:1]])
    pool._free.append(held[0])
    with pytest.raises(IntegrityError, match="lost or counted twice"):
        pool.check_integrity([held])


@given(st.lists(st.integers(0, 6), max_size=30))
@settings(deadline=None)
def test_any_order_of_taking_and_giving_back_keeps_the_books(sizes: list[int]) -> None:
    pool = BlockPool(10, 4)
    owned: list[list[int]] = []
    for size in sizes:
        if size <= pool.free:
            owned.append(pool.allocate(size))
        elif owned:
            pool.release(owned.pop(size % len(owned)))
        pool.check_integrity(owned)
        assert pool.free == 10 - sum(map(len, owned))
