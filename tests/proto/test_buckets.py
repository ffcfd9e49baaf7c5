"""Token buckets: so many at once, so many a second, by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto import buckets
from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.errors import Code, NovaMeshError


def test_a_burst_then_the_rate() -> None:
    made = Buckets(Rate(10, 3))
    for _ in range(3):
        made.take("a", 100.0)
    with pytest.raises(NovaMeshError) as refused:
        made.take("a", 100.0)
    assert (refused.value.code, refused.value.retry_after_ms) == (Code.BUSY, 100)
    made.take("b", 100.0)
    made.take("a", 100.11)
    with pytest.raises(NovaMeshError):
        made.take("a", 100.12)
    with pytest.raises(NovaMeshError):
        made.take("a", 0.0)  # a clock that was set back gives nothing


@given(st.lists(st.floats(0, 0.2), max_size=80))
def test_never_more_than_burst_and_rate_allow(gaps: list[float]) -> None:
    made, now_s, taken = Buckets(Rate(20, 5)), 0.0, 0
    for gap in gaps:
        now_s += gap
        try:
            made.take("a", now_s)
            taken += 1
        except NovaMeshError as error:
            wait_s = error.retry_after_ms / 1000
            now_s += wait_s + 1e-6
            made.take("a", now_s)
            taken += 1
    assert taken <= 5 + 20 * now_s + 1e-6


def test_the_name_not_heard_of_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "NAMES_MAX", 2)
    made = Buckets(Rate(0.001, 1))
    for name in ("a", "b", "c"):
        made.take(name, 0.0)
    made.take("a", 0.0)
    with pytest.raises(NovaMeshError):
        made.take("c", 0.0)
