"""Counts and marks of one sequence."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.request import Request, SamplingParams, Timing
from novamesh_engine.sequence import Sequence


def make(prefix: tuple[int, ...] = ()) -> Sequence:
    return Sequence(Request("a", (5, 6, 7), SamplingParams(), prefix), 0, 1_000_000)


def test_a_prefix_is_already_completion() -> None:
    sequence = make((8, 9))
    assert sequence.tokens == [5, 6, 7, 8, 9]
    assert (sequence.position, sequence.pending) == (2, 5)
    sequence.computed = 5
    sequence.append(3, 2_000_000)
    assert (sequence.position, sequence.pending) == (3, 1)


def test_marks_become_a_timing() -> None:
    sequence = make()
    sequence.admit(3_000_000)
    sequence.admit(9_000_000)  # admitted again after a preemption: still the same queueing
    sequence.append(1, 10_000_000)
    sequence.append(1, 12_000_000)
    assert sequence.timing(12_500_000) == Timing(2000, 7000, 2500, 9000, 11500)


def test_what_never_ran_only_queued() -> None:
    assert make().timing(4_000_000) == Timing(3000, 0, 0, 0, 3000)


def test_what_never_spoke_only_prefilled() -> None:
    sequence = make()
    sequence.admit(2_000_000)
    assert sequence.timing(4_000_000) == Timing(1000, 2000, 0, 0, 3000)


@given(st.lists(st.integers(0, 10**12), min_size=3, max_size=3))
@settings(deadline=None)
def test_the_parts_add_up_to_the_whole(steps: list[int]) -> None:
    sequence, now = make(), 1_000_000
    sequence.admit(now := now + steps[0])
    sequence.append(1, now := now + steps[1])
    timing = sequence.timing(now + steps[2])
    assert timing.queue_us + timing.prefill_us + timing.decode_us == timing.total_us
    assert timing.ttft_us == timing.queue_us + timing.prefill_us
