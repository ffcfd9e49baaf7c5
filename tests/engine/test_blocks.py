"""The pool's books: nothing lost, nothing written while shared, nothing taken from a stranger."""

from __future__ import annotations

import pytest
from hypothesis import given
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


def test_a_shared_block_is_free_when_its_last_holder_goes() -> None:
    pool = BlockPool(3, 8)
    held = pool.allocate(2)
    pool.share(held[:1])
    pool.check_integrity([held, held[:1]])
    pool.release(held)
    assert (pool.free, pool.unheld(held)) == (2, 1)
    pool.release(held[:1])
    assert (pool.free, pool.unheld(held)) == (3, 2)


def test_a_free_block_can_be_held_again_for_what_it_contains() -> None:
    pool = BlockPool(3, 8)
    held = pool.allocate(2)
    pool.release(held, keep=held)
    pool.share(held[1:])
    assert pool.free == 2
    assert held[1] not in pool.allocate(2)


def test_what_is_worth_keeping_is_given_out_last_and_its_end_first() -> None:
    pool = BlockPool(5, 8)
    kept, empty = pool.allocate(3), pool.allocate(1)
    pool.release(kept, keep=kept)
    pool.release(empty, keep=kept)
    assert pool.allocate(5) == [*empty, 4, *reversed(kept)]


def test_integrity_sees_a_stranger_a_double_and_a_forgotten_block() -> None:
    pool = BlockPool(3, 8)
    held = pool.allocate(2)
    with pytest.raises(IntegrityError, match="given out"):
        pool.check_integrity([held, held[:1]])
    with pytest.raises(IntegrityError, match="twice"):
        pool.check_integrity([held + held])
    with pytest.raises(IntegrityError, match="given out"):
        pool.check_integrity([held[:1]])
    pool._free[held[0]] = None
    with pytest.raises(IntegrityError, match="lost or counted twice"):
        pool.check_integrity([held])


@given(st.lists(st.tuples(st.sampled_from(["take", "give", "share"]), st.integers(0, 6))))
def test_any_order_of_taking_sharing_and_giving_back_keeps_the_books(
    steps: list[tuple[str, int]],
) -> None:
    pool = BlockPool(10, 4)
    owned: list[list[int]] = []
    for what, size in steps:
        if what == "take" and size <= pool.free:
            owned.append(pool.allocate(size))
        elif what == "share" and owned:
            owned.append([*owned[size % len(owned)]])
            pool.share(owned[-1])
        elif what == "give" and owned:
            given_back = owned.pop(size % len(owned))
            pool.release(given_back, keep=given_back[:1])
        pool.check_integrity(owned)
        assert pool.free == 10 - len({block for held in owned for block in held})
