"""Attempt keys: distinct in every part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.attempt import AttemptKey
from novamesh_proto.messages import JobId

KEYS = st.builds(
    AttemptKey,
    st.binary(min_size=32, max_size=32).map(JobId),
    st.integers(1, 1000),
    st.integers(1, 2**63 - 1),
)


@given(KEYS, KEYS)
def test_the_digest_tells_any_two_attempts_apart(one: AttemptKey, other: AttemptKey) -> None:
    assert (one == other) == (one.digest == other.digest)


def test_name_shows_attempt_and_fence() -> None:
    assert AttemptKey(JobId(bytes(32)), 2, 7).name == "000000000000.2.7"
