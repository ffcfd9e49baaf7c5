"""A client's word fits the chain that was sent, or nothing."""

from __future__ import annotations

import pytest

from novamesh_node import chain_points
from novamesh_node.chain_points import ChainPoints
from support.parties import digest


def test_a_point_is_all_of_what_is_said_of_it() -> None:
    points, head = ChainPoints(), digest("head")
    points.add(3, 40, head)
    assert points.holds(3, 40, head)
    assert not points.holds(3, 41, head)
    assert not points.holds(2, 40, head)
    assert not points.holds(3, 40, digest("another"))


def test_points_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_points, "POINTS_MAX", 2)
    points, head = ChainPoints(), digest("head")
    for chunks in range(3):
        points.add(chunks, chunks, head)
    assert len(points) == 2
    assert [points.holds(chunks, chunks, head) for chunks in range(3)] == [False, True, True]
