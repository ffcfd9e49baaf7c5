"""Bodies at hand: within their bytes, the oldest go first."""

from __future__ import annotations

from novamesh_coordinator.body_cache import BodyCache
from novamesh_proto.messages import JobId

ONE, TWO, THREE = (JobId(bytes([number]) * 32) for number in (1, 2, 3))


def test_the_oldest_bodies_make_room() -> None:
    cache = BodyCache(bytes_max=10)
    cache.keep(ONE, b"12345")
    cache.keep(TWO, b"12345")
    assert (cache.get(ONE), cache.get(TWO)) == (b"12345", b"12345")
    cache.keep(THREE, b"1")
    assert (cache.get(ONE), cache.get(THREE)) == (None, b"1")


def test_what_is_dropped_makes_room_and_may_be_dropped_again() -> None:
    cache = BodyCache(bytes_max=10)
    cache.keep(ONE, b"1234567890")
    cache.drop(ONE)
    cache.drop(ONE)
    assert cache.get(ONE) is None
    cache.keep(TWO, b"1234567890")
    assert cache.get(TWO) is not None


def test_a_body_larger_than_all_is_not_kept() -> None:
    cache = BodyCache(bytes_max=10)
    cache.keep(ONE, bytes(11))
    assert cache.get(ONE) is None
