"""Wilson's interval against published and computed vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.recipe.interval import wilson


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (500, 500, 0.9924, 1.0000),
        (485, 500, 0.9511, 0.9817),
        (0, 0, 0.0, 1.0),
    ],
)
def test_vectors(right: int, asked: int, low: float, high: float) -> None:
    assert wilson(right, asked) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_share_lies_inside(counts: tuple[int, int]) -> None:
    right, asked = counts
    low, high = wilson(right, asked)
    assert 0 <= low <= right / asked + 1e-12
    assert right / asked - 1e-12 <= high <= 1


@pytest.mark.parametrize(("right", "asked"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(right: int, asked: int) -> None:
    with pytest.raises(ValueError, match="not possible"):
        wilson(right, asked)
