"""Hostile bytes at every door: refused with an error of ours, or taken; never anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novamesh_proto.errors import NovaMeshError
from support.fuzz.services import METHODS, Services
from support.fuzz.targets import Target, service_targets, targets

EXAMPLES = 2_000
PARSERS = targets()


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, Target]]:
    """The methods of one coordinator."""
    services = Services()
    yield {target.name: target for target in service_targets(services)}
    services.close()


@st.composite
def damaged(draw: st.DrawFn, samples: tuple[bytes, ...]) -> bytes:
    """A sample with some edits: bytes flipped, cut, repeated, put in."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "cut", "repeat", "insert", "shorten"))):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "repeat":
                data[at:at] = data[max(0, at - 40) : at]
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "shorten":
                del data[at:]
    return bytes(data)


def feed_many(target: Target) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(data=damaged(target.samples) | st.binary(max_size=300))
    def feed(data: bytes) -> None:
        with contextlib.suppress(NovaMeshError):
            target.feed(data)

    feed()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", PARSERS, ids=lambda target: target.name)
def test_any_bytes_are_parsed_or_refused(target: Target) -> None:
    for sample in target.samples:
        target.feed(sample)
    feed_many(target)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", METHODS)
def test_any_bytes_are_answered_or_refused(name: str, calls: dict[str, Target]) -> None:
    feed_many(calls[name])


def test_no_method_is_left_out(calls: dict[str, Target]) -> None:
    assert set(calls) == set(METHODS)
