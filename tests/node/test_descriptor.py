"""Descriptors: renewed in time, sequences that only grow, keys that overlap."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.descriptor import (
    FULL_RENEW_MS,
    KEY_LIFE_MS,
    KEYS_MAX,
    RENEW_MS,
    Advertiser,
)
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS, CONTROL_LIFE_MS, DESCRIPTOR_LIFE_MS
from novamesh_proto.messages import JobId, NodeDescriptor, SealedJob
from novamesh_proto.sealing import wrap_key
from support.clock import START_MS
from support.offers import FACTS, Offers, advertiser, descriptor_of
from support.parties import NETWORK, NODE, digest

JOB = JobId(digest("job"))


def sealed_for(descriptor: Verified[NodeDescriptor]) -> SealedJob:
    job = Offers().make().message.job
    return replace(job, wraps=(wrap_key(bytes(32), JOB, descriptor),))


def test_a_descriptor_says_what_the_node_is_and_verifies() -> None:
    source = advertiser()
    said = envelope.open(
        source.current(START_MS), NodeDescriptor, network=NETWORK, now_ms=START_MS
    ).message
    assert said.header.issuer == NODE.node_id
    assert said.header.expires_at_ms - START_MS == DESCRIPTOR_LIFE_MS
    assert (said.models, said.hardware, said.slots) == (FACTS.models, FACTS.hardware, 4)


def test_it_is_renewed_before_it_expires_and_when_the_clock_was_set_back() -> None:
    source = advertiser()
    first = source.current(START_MS)
    assert source.current(START_MS + RENEW_MS - 1) == first
    assert source.current(START_MS + RENEW_MS) != first
    back = advertiser()
    assert not back.due(START_MS - CLOCK_SKEW_MS)
    assert back.due(START_MS - CLOCK_SKEW_MS - 1)


def test_a_node_that_changed_says_so_once() -> None:
    source = advertiser()
    source.change(replace(FACTS, slots=2))
    assert source.due(START_MS)
    assert descriptor_of(source).message.slots == 2
    assert not source.due(START_MS)


def test_what_changes_all_the_time_leaves_every_key_that_a_job_may_name() -> None:
    """Addresses come and go each second, and so does the last free slot."""
    free = [1]
    source = Advertiser(NODE, NETWORK, FACTS, lambda least: least, lambda: free[0])
    first = descriptor_of(source)
    issued = {first.id}
    for second in range(KEY_LIFE_MS // 1000):
        free[0] = second % 2
        source.listen_at("mesh", (f"/ip4/192.0.2.1/tcp/{second + 1}",))
        issued.add(descriptor_of(source, START_MS + second * 1000).id)
    assert len(issued) > KEY_LIFE_MS // FULL_RENEW_MS - 10, "it is told"
    assert source.key_for(sealed_for(first))


def test_a_change_that_could_not_be_stored_stays_due() -> None:
    full = [False]

    def next_sequence(least: int) -> int:
        if full[0]:
            raise NovaMeshError(Code.STORAGE, "the disk is full")
        return least

    source = Advertiser(NODE, NETWORK, FACTS, next_sequence, lambda: 1)
    source.renew(START_MS)
    source.change(replace(FACTS, slots=2))
    full[0] = True
    with pytest.raises(NovaMeshError):
        source.current(START_MS)
    assert source.due(START_MS)


def test_a_new_key_does_not_end_the_old_one_at_once() -> None:
    source = advertiser()
    old = descriptor_of(source)
    new = descriptor_of(source, START_MS + RENEW_MS)
    assert old.message.hpke_key != new.message.hpke_key
    for descriptor in (old, new):
        assert source.key_for(sealed_for(descriptor)).public == descriptor.message.hpke_key
    grace_ms = DESCRIPTOR_LIFE_MS + CONTROL_LIFE_MS + CLOCK_SKEW_MS
    source.renew(START_MS + grace_ms + 1)
    with pytest.raises(NovaMeshError) as caught:
        source.key_for(sealed_for(old))
    assert caught.value.code is Code.CANNOT_OPEN


def test_a_wrap_for_somebody_else_or_for_nothing_of_ours_is_refused() -> None:
    job = sealed_for(descriptor_of(advertiser()))
    for wraps in ((), job.wraps):
        with pytest.raises(NovaMeshError) as caught:
            advertiser().key_for(replace(job, wraps=wraps))
        assert caught.value.code is Code.CANNOT_OPEN


def test_keys_are_bounded() -> None:
    source = advertiser()
    first = descriptor_of(source)
    for number in range(KEYS_MAX):
        source.renew(START_MS + number)
    with pytest.raises(NovaMeshError):
        source.key_for(sealed_for(first))


@given(st.lists(st.integers(0, 10**12), min_size=2, max_size=10))
def test_sequences_only_grow_whatever_the_clock_does(times: list[int]) -> None:
    given_out = [0]

    def next_sequence(least: int) -> int:
        given_out.append(max(least, given_out[-1] + 1))
        return given_out[-1]

    source = Advertiser(NODE, NETWORK, FACTS, next_sequence, lambda: 1)
    seen = [
        envelope.open(source.renew(now_ms), NodeDescriptor, network=NETWORK).message.sequence
        for now_ms in times
    ]
    assert seen == sorted(set(seen))
