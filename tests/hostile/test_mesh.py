"""A slice of the campaign against a mesh peer; `python -m support.hostile.mesh` is the whole."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import trio

from support.hostile.mesh import BARE, PROTOCOLS, Campaign, bent, honest_frame

FRAMES = 12


def test_peer_goes_on_under_hostile_frames() -> None:
    campaign = Campaign(seed=1)
    with tempfile.TemporaryDirectory(prefix="nm") as folder:
        trio.run(campaign.run, Path(folder), FRAMES)
    assert campaign.heard_after
    assert all(campaign.sent[protocol] >= FRAMES for protocol in (*PROTOCOLS, BARE))


def test_frames_are_the_same_for_the_same_seed() -> None:
    for protocol in PROTOCOLS:
        one, other = random.Random(protocol), random.Random(protocol)
        frames = [bent(honest_frame(protocol, one), one) for _ in range(20)]
        again = [bent(honest_frame(protocol, other), other) for _ in range(20)]

        assert frames == again
