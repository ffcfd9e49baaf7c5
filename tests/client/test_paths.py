"""A way is taken where it leads there, and is no detour."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh.paths import FAR_S, SLACK_S, direct_endpoints, is_better, is_far, tunnel_addresses
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
        (JobPath.TUNNEL, 50, 50, False),
        (JobPath.TUNNEL, 5, 20, False),  # near enough: nobody would notice
        (JobPath.TUNNEL, 50, 100, True),
        (JobPath.TUNNEL, 900, None, True),
    ],
)
def test_a_detour_is_not_taken(
    path: JobPath, rtt_ms: int, relay_ms: int | None, better: bool
) -> None:
    relay_s = None if relay_ms is None else relay_ms / 1000
    assert is_better(path, rtt_ms / 1000, relay_s) is better


@pytest.mark.parametrize(
    ("relay_ms", "far"),
    [(None, False), (1, False), (40, False), (FAR_S * 1000, True), (300, True)],
)
def test_a_tunnel_is_worth_opening_where_the_coordinator_is_far(
    relay_ms: float | None, far: bool
) -> None:
    relay_s = None if relay_ms is None else relay_ms / 1000
    assert is_far(relay_s) is far


def test_to_a_coordinator_that_is_just_far_a_tunnel_can_still_be_better() -> None:
    assert is_better(JobPath.TUNNEL, FAR_S - 2 * SLACK_S, FAR_S)
