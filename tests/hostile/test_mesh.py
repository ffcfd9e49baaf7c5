"""A slice of the campaign against a mesh peer; `python -m support.hostile.mesh` is the whole.

The whole takes half a minute of a processor: 600 frames on each of ten protocols, most of them on
a stream of their own, from hundreds of attackers.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
import trio
from google.protobuf.message import DecodeError

from novamesh.mesh.hardening import SafePubsub
from support.hostile.mesh import BARE, PROTOCOLS, Campaign, bent, honest_frame

FRAMES = 100


def _play(campaign: Campaign, frames: int) -> None:
    with tempfile.TemporaryDirectory(prefix="nm") as folder:
        trio.run(campaign.run, Path(folder), frames)


def test_peer_goes_on_under_hostile_frames() -> None:
    campaign = Campaign(seed=1)
    _play(campaign, FRAMES)
    assert campaign.heard_after
    for protocol in (*PROTOCOLS, BARE):
        assert campaign.sent[protocol] >= FRAMES
    for protocol in PROTOCOLS:
        assert campaign.taken[protocol], protocol


def test_same_frames_stop_a_peer_without_our_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SafePubsub, "continuously_read_stream")
    campaign = Campaign(seed=1)
    with pytest.raises(BaseExceptionGroup) as raised:
        _play(campaign, FRAMES)
    assert raised.group_contains(DecodeError)
    assert not campaign.heard_after


def test_frames_are_the_same_for_the_same_seed() -> None:
    for protocol in PROTOCOLS:
        one, other = random.Random(protocol), random.Random(protocol)
        frames = [bent(honest_frame(protocol, one), one) for _ in range(20)]
        again = [bent(honest_frame(protocol, other), other) for _ in range(20)]

        assert frames == again
