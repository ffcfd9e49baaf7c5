"""The division by example, and what it promises for any wants and any budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.fair_share import divide


@pytest.mark.parametrize(
    ("wants", "budget", "parts"),
    [
        ([], 8, []),
        ([5], 8, [5]),
        ([100], 8, [8]),
        ([32768, 40], 512, [472, 40]),  # a short prompt is read at once beside a long one
        ([32768, 400], 512, [128, 384]),
        ([1000, 1000], 512, [384, 128]),  # equals end one after the other
        ([900, 30, 900], 512, [369, 30, 113]),
        ([50, 50, 50], 3, [1, 1, 1]),
    ],
)
def test_by_example(wants: list[int], budget: int, parts: list[int]) -> None:
    assert divide(wants, budget) == parts


@given(st.lists(st.integers(1, 5000), max_size=12), st.integers(0, 600))
def test_nothing_is_wasted_and_nobody_starves(wants: list[int], budget: int) -> None:
    parts = divide(wants, budget)
    assert sum(parts) == min(budget, sum(wants))
    assert all(0 <= part <= want for part, want in zip(parts, wants, strict=True))
    if budget >= len(wants):
        for part, want in zip(parts, wants, strict=True):
            assert part >= min(want, max(1, budget // 2 // len(wants)))


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=12), st.integers(24, 600))
def test_who_needs_the_fewest_is_served_best(wants: list[int], budget: int) -> None:
    parts = divide(wants, budget)
    fewest = wants.index(min(wants))
    others = [part for index, part in enumerate(parts) if index != fewest]
    assert parts[fewest] == wants[fewest] or parts[fewest] >= max(others)
