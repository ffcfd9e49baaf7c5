"""The crew: the least at work takes the next, nobody takes too much, and who is out stays out."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.crew import Crew, Opening, choose
from novamesh_node.desk import SLOTS_MAX
from novamesh_node.devices import DeviceLostError
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware, ProfileDigest
from support.fake_crew import station
from support.parties import HARDWARE, OFFER, PROFILE, digest

OTHER = ProfileDigest(digest("other model"))
FAST = replace(OFFER, decode_tokens_per_s=200.0, prefill_tokens_per_s=900.0, context_max=400)
SLOW = replace(OFFER, decode_tokens_per_s=50.0, prefill_tokens_per_s=950.0)
EXTRA = replace(OFFER, model_profile=OTHER, name="other")
ONE, TWO = "GPU-1a2b3c4d-0000", "GPU-9f8e7d6c-0000"
LOST = DeviceLostError("AcceleratorError")


def pair(slots: int = 2) -> Crew:
    """A slow card that has two models, and a fast one that has one of them."""
    slow = station(ONE, offers=(SLOW, EXTRA), slots=slots)
    fast = station(TWO, offers=(FAST,), slots=slots, hardware=replace(HARDWARE, memory_bytes=5))
    return Crew((slow, fast), SLOTS_MAX)


def ids(crew: Crew, profile: ProfileDigest, count: int) -> list[str]:
    return [crew.assign(profile).device.id for _ in range(count)]


def refused(crew: Crew, profile: ProfileDigest) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        crew.assign(profile)
    return caught.value.code


openings = st.builds(
    Opening, st.integers(0, 4), st.integers(1, 4), st.booleans(), st.floats(0, 1e4),
    st.integers(0, 2),
)  # fmt: skip


@given(st.lists(openings, max_size=6), st.booleans())
def test_the_choice_has_room_and_nobody_with_room_has_less_to_do(
    all_: list[Opening], donated: bool
) -> None:
    number = choose(all_, donated=donated)
    free = [
        each
        for each in all_
        if each.running < each.slots and (not donated or each.donated < each.slots // 2)
    ]
    if number is None:
        assert not free
        return
    chosen = all_[number]
    assert chosen in free
    rivals = [each for each in free if each.alive] or free
    assert chosen in rivals
    assert all(chosen.running / chosen.slots <= each.running / each.slots for each in rivals)


def test_attempts_are_spread_and_of_equals_the_fastest_begins() -> None:
    crew = pair()
    assert crew.slots == 4
    assert ids(crew, PROFILE, 4) == [TWO, ONE, TWO, ONE]
    assert refused(crew, PROFILE) is Code.BUSY
    crew.release(crew.stations[0])
    assert ids(crew, PROFILE, 1) == [ONE]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from("dpr"), st.integers(0, 20)), max_size=60),
)
def test_of_each_device_half_is_the_pools(slots: list[int], events: list[tuple[str, int]]) -> None:
    """Whatever comes and goes in whatever order: donated, of the pool, released."""
    lent = [station(f"GPU-{number:08x}", slots=each) for number, each in enumerate(slots)]
    crew, at_work = Crew(lent, SLOTS_MAX), []
    for kind, number in events:
        if kind == "r" and at_work:
            one, given_away = at_work.pop(number % len(at_work))
            crew.release(one, donated=given_away)
        elif kind != "r":
            with contextlib.suppress(NovaMeshError):
                at_work.append((crew.assign(PROFILE, donated=kind == "d"), kind == "d"))
        for each in lent:
            here = [given_away for one, given_away in at_work if one is each]
            assert len(here) <= each.slots
            assert sum(here) <= each.slots // 2


def test_a_device_of_one_slot_donates_nothing() -> None:
    crew = pair(slots=1)
    with pytest.raises(NovaMeshError) as caught:
        crew.assign(PROFILE, donated=True)
    assert caught.value.code is Code.POLICY
    assert ids(crew, PROFILE, 2) == [TWO, ONE]


def test_the_pools_slot_is_free_on_each_device_however_much_is_donated() -> None:
    crew = pair()
    given_away = [crew.assign(PROFILE, donated=True) for _ in range(2)]
    assert [each.device.id for each in given_away] == [TWO, ONE]
    with pytest.raises(NovaMeshError) as caught:
        crew.assign(OTHER, donated=True)
    assert caught.value.code is Code.BUSY
    assert ids(crew, OTHER, 1) == [ONE]
    assert ids(crew, PROFILE, 1) == [TWO]
    crew.release(given_away[0], donated=True)
    assert crew.assign(PROFILE, donated=True).device.id == TWO


def test_a_model_goes_to_a_device_that_has_it() -> None:
    crew = pair()
    assert ids(crew, OTHER, 2) == [ONE, ONE]
    assert refused(crew, OTHER) is Code.BUSY
    assert ids(crew, PROFILE, 2) == [TWO, TWO]


def test_slots_are_the_sum_and_never_more_than_a_node_may_have() -> None:
    assert Crew([station("cpu", slots=3)], SLOTS_MAX).slots == 3
    many = Crew([station(f"GPU-{number}", slots=SLOTS_MAX) for number in range(3)], SLOTS_MAX)
    assert many.slots == many.facts().slots == SLOTS_MAX


async def test_a_station_that_fails_is_out_with_its_slots_its_speed_and_its_model() -> None:
    crew = pair()
    slow, fast = crew.stations
    for worker in (*slow.workers, *fast.workers):
        worker.start()
    before = crew.facts()
    assert crew.fail(slow, LOST)
    assert not crew.fail(slow, LOST)
    after = crew.facts()
    assert (before.slots, after.slots, crew.slots) == (4, 2, 2)
    assert [offer.name for offer in before.models] == ["nova-pico", "other"]
    assert after.models == (FAST,)
    assert after.hardware == fast.hardware
    assert ids(crew, PROFILE, 2) == [TWO, TWO]
    assert refused(crew, OTHER) is Code.UNAVAILABLE
    for worker in slow.workers:
        assert worker.fault is not None
        assert worker.fault.result() is LOST
        await worker.stop()
    crew.fail(fast, LOST)
    assert crew.slots == 0
    assert crew.inventory()["models"] == []
    for worker in fast.workers:
        await worker.stop()


def test_what_is_offered_is_what_an_answer_meets_at_worst() -> None:
    offer, other = pair().facts().models
    assert (offer.decode_tokens_per_s, offer.prefill_tokens_per_s) == (50.0, 900.0)
    assert offer.context_max == 400
    assert other == EXTRA
    assert Crew([station("cpu", offers=(FAST,))], SLOTS_MAX).facts().models == (FAST,)


def test_the_descriptor_names_all_devices_as_one_machine() -> None:
    facts = pair().facts()
    assert facts.hardware.name == "2x NVIDIA GeForce RTX 3060"
    assert facts.hardware.memory_bytes == HARDWARE.memory_bytes + 5
    assert wire.decode(Hardware, wire.encode(facts.hardware)) == facts.hardware
    assert facts.engine_build == "0.1.0 fake"
    assert Crew([station("cpu")], SLOTS_MAX).facts().hardware == HARDWARE


def test_attestations_tell_the_devices_of_a_node_apart() -> None:
    names = [each.machine.hardware.name for each in pair().stations]
    assert names == [
        "NVIDIA GeForce RTX 3060 GPU-1a2b3c4d", "NVIDIA GeForce RTX 3060 GPU-9f8e7d6c",
    ]  # fmt: skip


async def test_a_status_tells_every_device_and_who_is_out() -> None:
    crew = pair()
    crew.assign(OTHER)
    for each in crew.stations:
        for worker in each.workers:
            worker.start()
    crew.fail(crew.stations[1], LOST)
    told = crew.inventory()
    assert told["hardware"] == "NVIDIA GeForce RTX 3060, 12.0 GiB, 340 GB/s"
    assert told["devices"] == [
        {
            "id": ONE, "hardware": told["hardware"], "slots": 2, "running": 1,
            "models": ["nova-pico", "other"], "fault": "",
        },
        {
            "id": TWO, "hardware": "NVIDIA GeForce RTX 3060, 0.0 GiB, 340 GB/s", "slots": 0,
            "running": 0, "models": ["nova-pico"],
            "fault": "a device of this node failed: AcceleratorError",
        },
    ]  # fmt: skip
    assert [model["decode_tokens_per_s"] for model in told["models"]] == [50.0, 80.0]
    for each in crew.stations:
        for worker in each.workers:
            await worker.stop()
