"""Who is refused and why, what the draw favours, and that nothing but the seed decides it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto.errors import Code
from novamesh_proto.matching import (
    EXPLORATION_SHARE,
    EXPLORED_JOBS,
    Cause,
    NodeState,
    Ranking,
    Request,
    rank,
    unservable,
)
from novamesh_proto.messages import ProfileDigest
from support.parties import OFFER, PROFILE, descriptor, digest, party

REQUEST = Request(PROFILE, prompt_bytes=400, max_tokens=100)
NODES = [party(f"node {number}") for number in range(8)]


def state(number: int = 0, **changes: Any) -> NodeState:
    """A node with a record; descriptor fields among `changes` go to its descriptor."""
    own = {name: changes.pop(name) for name in ("models", "slots") if name in changes}
    key = NODES[number]
    made = NodeState(
        descriptor=descriptor(key, f"node {number}", **own),
        node=key.node_id,
        free_slots=4,
        witnessed_tokens_per_s=50.0,
        jobs_settled=100,
    )
    return replace(made, **changes)


def offering(speed: float) -> dict[str, Any]:
    """A node without a record that claims a speed."""
    offer = replace(OFFER, decode_tokens_per_s=speed)
    return {"models": (offer,), "witnessed_tokens_per_s": 0.0, "jobs_settled": 0}


def draw(*states: NodeState, request: Request = REQUEST, count: int = 1, seed: int = 0) -> Ranking:
    return rank(request, states, random.Random(seed), count)


def shares(*states: NodeState) -> dict[int, float]:
    """How often each node comes first in 2000 draws."""
    rng = random.Random(1)
    first = Counter(rank(REQUEST, states, rng, 1).chosen[0].node for _ in range(2000))
    return {number: first[entry.node] / 2000 for number, entry in enumerate(states)}


def test_one_fitting_node_is_chosen_with_a_reason() -> None:
    (chosen,) = draw(state()).chosen
    assert chosen.node == NODES[0].node_id
    assert chosen.score == 1.0
    assert chosen.reason == (
        "about 2.1 s: 50 tokens/s witnessed, 4 of 4 slots free, finished 99% of its jobs"
    )


@pytest.mark.parametrize(
    ("changes", "cause", "reason"),
    [
        ({"models": ()}, Cause.NO_MODEL, "does not offer the model"),
        (
            {"models": (replace(OFFER, context_max=199),)},
            Cause.CONTEXT,
            "the job needs about 200 tokens of context, it takes 199",
        ),
        ({"free_slots": 0}, Cause.FULL, "all 4 slots are busy"),
        (
            {"free_slots": 2, "reserved": 2},
            Cause.RESERVED,
            "its free slots (2) are reserved for jobs about to be submitted",
        ),
        (
            {"accepting": False, "refusal": "its owner is at the keyboard"},
            Cause.NOT_ACCEPTING,
            "takes no work: its owner is at the keyboard",
        ),
        ({"accepting": False}, Cause.NOT_ACCEPTING, "takes no work: it does not say why"),
    ],
    ids=lambda value: value.value if isinstance(value, Cause) else "",
)
def test_a_node_that_cannot_is_refused(changes: dict[str, Any], cause: Cause, reason: str) -> None:
    ranking = draw(state(**changes))
    assert not ranking.chosen
    assert (ranking.refused[0].cause, ranking.refused[0].reason) == (cause, reason)


def test_context_that_just_fits_is_taken() -> None:
    assert draw(state(models=(replace(OFFER, context_max=200),))).chosen


def test_an_excluded_node_is_refused_whatever_it_offers() -> None:
    request = replace(REQUEST, excluded=(NODES[0].node_id,))
    ranking = draw(state(0, models=()), state(1), request=request)
    assert [entry.node for entry in ranking.chosen] == [NODES[1].node_id]
    assert ranking.refused[0].cause is Cause.EXCLUDED


def test_another_model_of_the_same_name_is_another_model() -> None:
    request = replace(REQUEST, model_profile=ProfileDigest(digest("another")))
    assert draw(state(), request=request).refused[0].cause is Cause.NO_MODEL


def test_a_faster_node_is_drawn_more_often_but_not_always() -> None:
    fast, slow = shares(state(0, witnessed_tokens_per_s=100.0), state(1)).values()
    assert 0.7 < fast < 0.9
    assert slow > 0.1


def test_a_node_that_loses_jobs_is_drawn_less_often() -> None:
    steady, shaky = shares(state(0), state(1, jobs_settled=50, jobs_lost=150)).values()
    assert steady > 3 * shaky > 0


def test_waiting_work_counts() -> None:
    idle, queued = shares(state(0), state(1, queue_ms=4_000)).values()
    assert idle > 3 * queued


def test_a_witnessed_speed_counts_before_a_claimed_one() -> None:
    boaster = state(0, models=(replace(OFFER, decode_tokens_per_s=1e6),))
    assert draw(boaster).chosen[0].reason.startswith("about 2.1 s: 50 tokens/s witnessed")


def test_a_claim_counts_no_more_than_the_best_witnessed_speed() -> None:
    boaster = state(0, **offering(1e6) | {"jobs_settled": EXPLORED_JOBS})
    boast, honest = shares(boaster, state(1)).values()
    assert boast < 0.5 < honest


def test_a_claimed_prefill_counts_no_more_than_the_believed_speed_allows() -> None:
    long = Request(PROFILE, prompt_bytes=4 * 6_400, max_tokens=50)
    offer = replace(OFFER, context_max=8_192, prefill_tokens_per_s=1e9)
    # 6400 tokens at 128 times 50 tokens/s, then 50 tokens at 50 tokens/s.
    (boaster,) = draw(state(models=(offer,)), request=long).chosen
    assert boaster.reason.startswith("about 2 s: 50 tokens/s witnessed")
    slower = replace(offer, prefill_tokens_per_s=3_200.0)
    assert draw(state(models=(slower,)), request=long).chosen[0].reason.startswith("about 3 s")


def test_a_boasted_prefill_does_not_make_a_slow_node_the_first() -> None:
    request = Request(PROFILE, prompt_bytes=4 * 400, max_tokens=1)
    offer = replace(OFFER, context_max=8_192, prefill_tokens_per_s=1e9, decode_tokens_per_s=0.0)
    mute = state(0, models=(offer,), witnessed_tokens_per_s=0.0)
    (chosen,) = draw(mute, request=request).chosen
    assert chosen.reason.startswith("about 4.1 s: speed unknown")


def test_all_new_nodes_together_get_the_exploration_share() -> None:
    wave = [state(number, **offering(1e6)) for number in range(1, 8)]
    old, *new = shares(state(0), *wave).values()
    assert sum(new) == pytest.approx(EXPLORATION_SHARE, abs=0.03)
    assert old == pytest.approx(1 - EXPLORATION_SHARE, abs=0.03)


def test_new_nodes_among_themselves_are_weighed_by_their_claims() -> None:
    fast, slow = shares(state(0, **offering(100.0)), state(1, **offering(50.0))).values()
    assert fast > 2 * slow > 0


def test_a_slow_claim_is_taken_as_it_is() -> None:
    reason = draw(state(0, **offering(0.5))).chosen[0].reason
    assert reason.startswith("about 202 s: 0.5 tokens/s claimed")


def test_a_node_whose_speed_nobody_knows_is_slow() -> None:
    ranking = draw(state(0, **offering(0.0)))
    assert ranking.chosen[0].reason.startswith("about 101 s: speed unknown")
    assert "new here" in ranking.chosen[0].reason


def test_who_was_outdrawn_is_told_both_times() -> None:
    ranking = draw(state(0, witnessed_tokens_per_s=1e5), state(1))
    (refused,) = ranking.refused
    assert refused.cause is Cause.OUTDRAWN
    assert refused.reason.startswith("others were drawn: about ")
    assert refused.reason.endswith("2.1 s here")


def test_nobody_asked_for_is_nobody_chosen() -> None:
    ranking = draw(state(), count=0)
    assert ranking.refused[0].reason == "nobody was asked for"


def test_a_pool_without_the_model_says_model_not_found() -> None:
    error = unservable(draw(state(models=())), "nova-pico")
    assert error is not None
    assert (error.code, error.message) == (
        Code.MODEL_NOT_FOUND,
        "no attached node offers nova-pico",
    )
    assert unservable(draw()) is not None


def test_a_full_pool_says_when_to_come_back() -> None:
    error = unservable(draw(state(0, free_slots=0), state(1, free_slots=0), state(2, models=())))
    assert error is not None
    # A job like this one takes 2.1 s there, and one of four slots will be free before.
    assert (error.code, error.retry_after_ms) == (Code.BUSY, 531)
    assert error.message == "no node is free: all 4 slots are busy (2)"


@pytest.mark.parametrize(("tokens", "retry_ms"), [(1, 500), (300, 1_531), (100_000, 5_000)])
def test_a_slot_is_waited_for_as_long_as_such_a_job_takes(tokens: int, retry_ms: int) -> None:
    request = replace(REQUEST, max_tokens=tokens)
    offer = replace(OFFER, context_max=1_000_000)
    error = unservable(draw(state(free_slots=0, models=(offer,)), request=request))
    assert error is not None
    assert error.retry_after_ms == retry_ms


def test_a_reserved_pool_is_worth_asking_when_the_first_slot_is_let_go() -> None:
    held = {"free_slots": 1, "reserved": 1}
    error = unservable(draw(*(state(n, **held, reserved_ms=ms) for n, ms in ((0, 1700), (1, 300)))))
    assert error is not None
    assert (error.code, error.retry_after_ms, error.hint) == (Code.BUSY, 300, "try again in 0.3 s")
    late = unservable(draw(state(0, **held, reserved_ms=1700)))
    assert late is not None
    assert late.retry_after_ms == 531  # by then the job that it was held for may have ended


def test_paused_nodes_are_not_busy_ones() -> None:
    paused = {"accepting": False, "refusal": "the owner paused this node until 18:00"}
    error = unservable(draw(state(0, **paused)))
    assert error is not None
    assert (error.code, error.retry_after_ms) == (Code.NO_CAPACITY, 0)
    assert "until 18:00" in error.message
    mixed = unservable(draw(state(0, **paused), state(1, free_slots=0)))
    assert mixed is not None
    assert mixed.code is Code.BUSY


def test_a_job_that_fits_nowhere_is_refused_for_good() -> None:
    request = replace(REQUEST, max_tokens=10_000)
    error = unservable(draw(state(), request=request))
    assert error is not None
    assert (error.code, error.retry_after_ms) == (Code.NO_CAPACITY, 0)
    assert "it takes 512" in error.message


def test_a_servable_job_has_no_error() -> None:
    assert unservable(draw(state())) is None


states = st.builds(
    state,
    number=st.integers(0, 7),
    free_slots=st.integers(0, 4),
    reserved=st.integers(0, 4),
    accepting=st.booleans(),
    queue_ms=st.integers(0, 10**9),
    witnessed_tokens_per_s=st.floats(0.0, 1e9),
    jobs_settled=st.integers(0, 10**6),
    jobs_lost=st.integers(0, 10**6),
    models=st.sampled_from(
        [
            (),
            (OFFER,),
            (replace(OFFER, context_max=10),),
            (replace(OFFER, decode_tokens_per_s=0.0),),
        ]
    ),
)
pools = st.lists(states, max_size=8, unique_by=lambda entry: entry.node)
requests = st.builds(
    Request,
    model_profile=st.just(PROFILE),
    prompt_bytes=st.integers(0, 1000),
    max_tokens=st.integers(0, 400),
    excluded=st.lists(st.sampled_from([key.node_id for key in NODES]), max_size=3).map(tuple),
)


@given(requests, pools, st.integers(0, 3), st.integers(), st.randoms(use_true_random=False))
def test_every_node_is_chosen_or_refused_and_no_filter_is_passed_by(
    request: Request, pool: list[NodeState], count: int, seed: int, shuffler: random.Random
) -> None:
    ranking = rank(request, pool, random.Random(seed), count)
    chosen = [entry.node for entry in ranking.chosen]
    refused = [entry.node for entry in ranking.refused]
    assert sorted(chosen + refused) == sorted(entry.node for entry in pool)
    outdrawn = sum(entry.cause is Cause.OUTDRAWN for entry in ranking.refused)
    assert len(chosen) == min(count, len(chosen) + outdrawn)
    by_node = {entry.node: entry for entry in pool}
    for entry in ranking.chosen:
        node = by_node[entry.node]
        offer = node.offer(request.model_profile)
        assert offer is not None
        assert request.max_tokens + request.prompt_bytes / 4 <= offer.context_max
        assert node.accepting
        assert node.free_slots > node.reserved
        assert entry.node not in request.excluded
        assert 0 < entry.score <= 1
    shuffler.shuffle(pool)
    assert rank(request, pool, random.Random(seed), count) == ranking


def refusal(*states: NodeState, request: Request = REQUEST) -> tuple[Code, str, str, int]:
    error = unservable(draw(*states, request=request))
    assert error is not None
    return error.code, error.message, error.hint, error.retry_after_ms


def test_every_refusal_says_what_to_do_next() -> None:
    paused = {"accepting": False, "refusal": "paused"}
    assert refusal(state(models=())) == (
        Code.MODEL_NOT_FOUND,
        "no attached node offers this model",
        "list what the pool serves: novamesh pool models",
        0,
    )
    assert refusal(state(**paused), state(1, models=())) == (
        Code.NO_CAPACITY,
        "no node can take the job: takes no work: paused (1)",
        "try again when one of them takes work again: novamesh pool models",
        0,
    )
    assert refusal(state(), request=replace(REQUEST, excluded=(NODES[0].node_id,))) == (
        Code.NO_CAPACITY,
        "no node can take the job: excluded by the client (1)",
        "shorten the prompt, ask for fewer tokens or exclude fewer nodes",
        0,
    )


def test_the_most_frequent_reasons_come_first_and_at_most_three_of_them() -> None:
    reasons = ("d", "b", "b", "c", "a", "c", "c")
    states = [
        state(number, accepting=False, refusal=reason) for number, reason in enumerate(reasons)
    ]
    _, message, _, _ = refusal(*states)
    assert message == (
        "no node can take the job: takes no work: c (3); takes no work: b (2); takes no work: a (1)"
    )


def test_one_reserved_slot_of_one_is_none_and_one_of_two_is_one() -> None:
    assert draw(state(free_slots=1, reserved=1)).refused[0].cause is Cause.RESERVED
    (chosen,) = draw(state(free_slots=2, reserved=1)).chosen
    assert "1 of 4 slots free" in chosen.reason
    assert draw(state(free_slots=1, reserved=0)).chosen
    assert draw(state(free_slots=1, reserved=-1)).chosen, "a client's own reservation is no bar"


def test_new_nodes_share_their_part_of_the_draw_to_the_digit() -> None:
    wave = [state(number, **offering(80.0)) for number in (1, 2)]
    ranking = draw(state(0), *wave, count=3)
    scores = {entry.node: entry.score for entry in ranking.chosen}
    assert scores[NODES[0].node_id] == pytest.approx(1 - EXPLORATION_SHARE)
    for number in (1, 2):
        assert scores[NODES[number].node_id] == pytest.approx(EXPLORATION_SHARE / 2)
    assert all("new here" in e.reason for e in ranking.chosen if e.node != NODES[0].node_id)


def test_expected_time_is_queue_and_prompt_and_answer() -> None:
    (chosen,) = draw(state(queue_ms=4_000)).chosen
    assert chosen.reason.startswith("about 6.1 s: ")
    (chosen,) = draw(state(witnessed_tokens_per_s=0.5)).chosen
    assert chosen.reason.startswith("about 202 s: 0.5 tokens/s witnessed")
    (chosen,) = draw(state(witnessed_tokens_per_s=10.0)).chosen
    assert chosen.reason.startswith("about 10 s: 10 tokens/s witnessed")


def test_a_claim_is_believed_up_to_a_witnessed_speed_below_one() -> None:
    boaster = state(0, **offering(100.0) | {"jobs_settled": EXPLORED_JOBS})
    slow = state(1, witnessed_tokens_per_s=0.5, jobs_settled=EXPLORED_JOBS)
    scores = [entry.score for entry in draw(boaster, slow, count=2).chosen]
    assert scores == pytest.approx([0.5, 0.5], abs=0.01)


def test_whoever_was_outdrawn_is_named() -> None:
    ranking = draw(state(0), state(1))
    assert {ranking.chosen[0].node, ranking.refused[0].node} == {n.node_id for n in NODES[:2]}


@pytest.mark.parametrize(("slots", "retry_ms"), [(1, 2_125), (2, 1_062)])
def test_the_wait_for_a_slot_is_shared_by_its_slots(slots: int, retry_ms: int) -> None:
    code, _, hint, wait_ms = refusal(state(free_slots=0, slots=slots))
    assert (code, hint) == (Code.BUSY, f"try again in {retry_ms / 1000:.2g} s")
    assert wait_ms == pytest.approx(retry_ms, abs=1)
