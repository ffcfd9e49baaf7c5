"""Admission: the checks in their order, each refusal with its own code, nothing admitted twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_node.admission import Admission, Admitted, House, Policy
from novamesh_node.governor import Ruling
from novamesh_proto import wire
from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import BODY_BYTES_MAX, CLOCK_SKEW_MS
from novamesh_proto.messages import AttachAssignment, JobId, ProfileDigest
from support.clock import START_MS
from support.offers import Offer, Offers
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, PROFILE, party

OPEN = Ruling(4, accepting=True)


def admission(policy: Policy | None = None, replays: ReplayWindow | None = None) -> Admission:
    house = House(NODE.node_id, COORDINATOR.node_id, NETWORK, {PROFILE: 512}, policy or Policy())
    return Admission(house, ReplayWindow() if replays is None else replays)


def admit(
    offer: Offer, gate: Admission | None = None, ruling: Ruling = OPEN, now_ms: int = START_MS
) -> Admitted:
    gate = gate or admission()
    return gate.admit(offer.message, gate.verify(offer.message), ruling, now_ms)


def refused(offer: Offer, **how: object) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        admit(offer, **how)  # type: ignore[arg-type]
    assert caught.value.message
    return caught.value.code


def test_a_good_offer_is_admitted() -> None:
    offer = Offers().make()
    admitted = admit(offer)
    assert admitted.key.job == offer.job
    assert admitted.terms.issuer == CLIENT.node_id
    assert admitted.remembered_until_ms == START_MS + 60_000 + CLOCK_SKEW_MS + 60_000


def test_size() -> None:
    offer = Offers().make()
    job = replace(offer.message.job, body=bytes(BODY_BYTES_MAX + 1))
    assert refused(replace(offer, message=replace(offer.message, job=job))) is Code.TOO_LARGE


def test_signature_of_the_assignment() -> None:
    offer = Offers().make()
    signature = replace(offer.message.assignment.signatures[0], sig=bytes(64))
    forged = replace(offer.message.assignment, signatures=(signature,))
    changed = replace(offer, message=replace(offer.message, assignment=forged))
    assert refused(changed) is Code.BAD_SIGNATURE


def test_signature_of_the_terms() -> None:
    offer = Offers().make()
    envelope = offer.message.job.terms
    forged = replace(envelope, signatures=(replace(envelope.signatures[0], sig=bytes(64)),))
    job = replace(offer.message.job, terms=forged)
    assert refused(replace(offer, message=replace(offer.message, job=job))) is Code.BAD_SIGNATURE


def test_only_the_coordinator_assigns() -> None:
    assert refused(Offers(coordinator=party("stranger")).make()) is Code.FORBIDDEN


def test_audience() -> None:
    other = party("other node").node_id
    assert refused(Offers().make(given={"node": other})) is Code.WRONG_AUDIENCE
    offers = Offers()
    offer = offers.make()
    header = replace(offer.assignment.message.header, audience=(other,))
    assert refused(offers.make(given={"header": header})) is Code.WRONG_AUDIENCE


def test_network() -> None:
    assert refused(Offers().make(head_changes={"network": "other"})) is Code.WRONG_NETWORK


def test_freshness_of_the_assignment() -> None:
    offer = Offers().make()
    late = START_MS + 60_000 + CLOCK_SKEW_MS + 1
    assert refused(offer, now_ms=late) is Code.NOT_FRESH
    assert refused(offer, now_ms=START_MS - CLOCK_SKEW_MS - 1) is Code.NOT_FRESH


def test_terms_whose_time_is_over() -> None:
    offers = Offers()
    old = offers.make().assignment.message.header
    offers.now_ms = START_MS + 10_000_000
    fresh = offers.make()
    stale_terms = Offers(source=offers.source).make().message.job.terms
    job = replace(fresh.message.job, terms=stale_terms)
    late = replace(fresh, message=replace(fresh.message, job=job))
    assert refused(late, now_ms=offers.now_ms) is Code.EXPIRED
    assert old.expires_at_ms < offers.now_ms


def test_terms_from_the_future() -> None:
    offers = Offers()
    now = offers.make()
    offers.now_ms = START_MS + CLOCK_SKEW_MS + 1000
    job = replace(now.message.job, terms=offers.make().message.job.terms)
    assert refused(replace(now, message=replace(now.message, job=job))) is Code.NOT_FRESH


def test_replay_in_the_same_life_and_in_the_next() -> None:
    replays = ReplayWindow()
    offer, gate = Offers().make(), admission(replays=replays)
    admit(offer, gate)
    assert refused(offer, gate=gate) is Code.REPLAYED
    restarted = admission(replays=ReplayWindow.restore(replays.snapshot()))
    assert refused(offer, gate=restarted) is Code.REPLAYED


def test_an_attempt_assigned_again_under_another_signature_is_a_replay_too() -> None:
    offers, gate = Offers(), admission()
    offer = offers.make()
    admit(offer, gate)
    again = offers.make(given={"job": offer.job, "attempt": offer.attempt, "fence": offer.fence})
    job = offer.message.job
    assert refused(replace(again, message=replace(again.message, job=job)), gate=gate) is (
        Code.REPLAYED
    )


def test_terms() -> None:
    other = ProfileDigest(bytes(32))
    assert refused(Offers().make(wanted={"model_profile": other})) is Code.MODEL_NOT_FOUND
    assert refused(Offers().make(given={"job": JobId(bytes(32))})) is Code.BAD_REQUEST
    assert refused(Offers().make(wanted={"body_bytes": 17})) is Code.BAD_REQUEST
    assert refused(Offers().make(wanted={"start_position": 9})) is Code.TOO_LARGE
    assert refused(Offers().make(wanted={"start_position": 600})) is Code.TOO_LARGE


def test_governor_before_policy_before_capacity() -> None:
    strict = Policy(tokens_max=4)
    shut, full = Ruling(0, False, "the owner paused this node"), Ruling(0, True)
    assert refused(Offers().make(), gate=admission(strict), ruling=shut) is Code.UNAVAILABLE
    assert refused(Offers().make(), gate=admission(strict), ruling=full) is Code.POLICY
    assert refused(Offers().make(), ruling=full) is Code.BUSY


def test_policy_refuses_clients_and_long_answers() -> None:
    blocked = Policy(refused_clients=frozenset({CLIENT.node_id}))
    assert refused(Offers().make(), gate=admission(blocked)) is Code.POLICY
    short = admission(Policy(tokens_max=8))
    assert admit(Offers().make(), short)
    assert refused(Offers().make(sampling={"max_tokens": 9}), gate=short) is Code.POLICY


WHOLE = wire.encode(Offers().make().message)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4),
       st.integers(0, 40))  # fmt: skip
def test_damaged_offers_are_refused_and_never_raise_anything_else(
    changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    gate = admission()
    try:
        offer = wire.decode(AttachAssignment, bytes(data[: len(data) - cut]))
        admitted = gate.admit(offer, gate.verify(offer), OPEN, START_MS)
    except NovaMeshError as error:
        assert error.message  # noqa: PT017  one of many codes
        return
    # What is admitted was signed by coordinator and client; the unsigned rest opens or does not.
    assert admitted.assignment.issuer == COORDINATOR.node_id
    assert admitted.terms.issuer == CLIENT.node_id
