"""A way is taken where it leads there, and is no detour."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh.paths import direct_endpoints, is_better, tunnel_addresses
from novamesh_proto.messages import JobPath
from support.parties import descriptor


def test_endpoints_are_told_apart_by_their_form() -> None:
    said = replace(
        descriptor(), endpoints=("203.0.113.7:7702", "/ip4/10.0.0.2/tcp/4001", "[::1]:1")
    )
    assert direct_endpoints(said) == ("203.0.113.7:7702", "[::1]:1")
    assert tunnel_addresses(said) == ("/ip4/10.0.0.2/tcp/4001",)


@pytest.mark.parametrize(
    ("path", "rtt_ms", "relay_ms", "better"),
    [
        (JobPath.DIRECT, 5, 5, True),
        (JobPath.DIRECT, 25, 5, True),  # noise
        (JobPath.DIRECT, 200, 50, False),  # the other side of the world
        (JobPath.DIRECT, 200, None, True),  # nobody else is there
        (JobPath.TUNNEL, 50, 60, False),
        (JobPath.TUNNEL, 50, 100, True),
        (JobPath.TUNNEL, 900, None, True),
    ],
)
def test_a_detour_is_not_taken(
    path: JobPath, rtt_ms: int, relay_ms: int | None, better: bool
) -> None:
    relay_s = None if relay_ms is None else relay_ms / 1000
    assert is_better(path, rtt_ms / 1000, relay_s) is better
