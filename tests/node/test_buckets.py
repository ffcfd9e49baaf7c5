"""How often strangers may ask: a burst, a rate, a time to wait, and no more names than fit."""

from __future__ import annotations

import pytest

from novamesh_node import buckets
from novamesh_node.buckets import Buckets, Rate
from novamesh_proto.errors import Code, NovaMeshError


def refused(made: Buckets, name: str, now_s: float) -> int:
    with pytest.raises(NovaMeshError) as caught:
        made.take(name, now_s)
    assert caught.value.code is Code.BUSY
    return caught.value.retry_after_ms


def test_a_burst_and_then_a_rate() -> None:
    made = Buckets(Rate(2, 3))
    for _ in range(3):
        made.take("a", 10)
    assert refused(made, "a", 10) == 500
    made.take("b", 10)
    made.take("a", 10.5)
    assert refused(made, "a", 10.5) == 500
    assert refused(made, "a", 0) == 500, "a clock that was set back gives nothing"


def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "NAMES_MAX", 2)
    made = Buckets(Rate(1, 1))
    for name in "abc":
        made.take(name, 0)
    assert len(made) == 2
    made.take("a", 0)  # forgotten
    assert refused(made, "c", 0)
