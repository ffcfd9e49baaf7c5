"""Nothing is sealed to a candidate that is not who it should be, or does not offer the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh.candidates import verify_candidates
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Candidate, Envelope, PoolModel, ProfileDigest
from support.clock import START_MS
from support.parties import DAY_MS, NETWORK, NODE, PROFILE, descriptor, digest, head

MODEL = PoolModel(PROFILE, "nova-pico", 1, 1, 512)
OTHER = PoolModel(ProfileDigest(digest("other")), "nova-other", 1, 1, 512)
RESERVATION = bytes(16)


def candidate(sealed: Envelope) -> Candidate:
    return Candidate(sealed, "quick", RESERVATION)


GOOD = envelope.seal(descriptor(), NODE)
FORGED = replace(GOOD, payload=GOOD.payload + b"\x00")
FOREIGN = envelope.seal(replace(descriptor(), header=head(NODE, network="elsewhere")), NODE)


def test_who_is_verified_comes_with_its_reservation() -> None:
    found = verify_candidates([candidate(FORGED), candidate(GOOD)], MODEL, NETWORK, START_MS)
    assert [(one.issuer, held) for one, held in found] == [(NODE.node_id, RESERVATION)]


@pytest.mark.parametrize(
    ("sealed", "model", "now_ms", "code"),
    [
        (FORGED, MODEL, START_MS, Code.BAD_SIGNATURE),
        (FOREIGN, MODEL, START_MS, Code.WRONG_NETWORK),
        (GOOD, OTHER, START_MS, Code.CORRUPT),
        (GOOD, MODEL, START_MS + 2 * DAY_MS, Code.NOT_FRESH),
    ],
)
def test_whoever_is_not_is_left_out_and_said(
    sealed: Envelope, model: PoolModel, now_ms: int, code: Code
) -> None:
    with pytest.raises(NovaMeshError) as caught:
        verify_candidates([candidate(sealed)], model, NETWORK, now_ms)
    assert caught.value.code is code


def test_nobody_is_a_full_pool() -> None:
    with pytest.raises(NovaMeshError) as caught:
        verify_candidates([], MODEL, NETWORK, START_MS)
    assert caught.value.code is Code.BUSY
