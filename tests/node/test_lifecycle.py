"""The life of a node: every path an owner can take, and what never happens on any of them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.lifecycle import (
    DRAIN_MS,
    Abandon,
    Announce,
    Effect,
    Ended,
    Event,
    Finish,
    Halt,
    Loaded,
    Pause,
    Phase,
    Resume,
    State,
    Stop,
    Tick,
    Took,
    step,
)

NOW = 1_000_000


def live(*events: Event | int, state: State | None = None) -> tuple[State, list[Effect]]:
    """Feed events; a number moves the clock by that many milliseconds."""
    state, now_ms, effects = state or State(), NOW, []
    for event in events:
        if isinstance(event, int):
            now_ms += event
            continue
        state, made = step(state, event, now_ms)
        effects += made
    return state, effects


def test_starts_then_works_then_idles() -> None:
    assert live()[0].phase is Phase.STARTING
    assert live(Loaded())[0].phase is Phase.IDLE
    assert live(Loaded(), Took())[0].phase is Phase.WORKING
    assert live(Loaded(), Took(), Took(), Ended(), Ended())[0].phase is Phase.IDLE


def test_each_change_is_announced_and_nothing_else() -> None:
    _, effects = live(Loaded(), Took(), Ended(), Tick())
    assert effects == [Announce(), Announce(), Announce()]


def test_pause_lets_work_end_and_ends_by_itself() -> None:
    state, effects = live(Loaded(), Took(), Pause(NOW + 5000))
    assert state.phase is Phase.PAUSED
    assert Abandon() not in effects
    assert live(Loaded(), Pause(NOW + 5000), 4999, Tick())[0].phase is Phase.PAUSED
    assert live(Loaded(), Pause(NOW + 5000), 5000, Tick())[0].phase is Phase.IDLE
    assert live(Loaded(), Pause(), 10**9, Tick())[0].phase is Phase.PAUSED
    assert live(Loaded(), Pause(), Resume())[0].phase is Phase.IDLE


def test_pause_now_gives_up_what_is_at_work() -> None:
    assert live(Loaded(), Took(), Pause(now=True))[1][-1] == Abandon()
    assert Abandon() not in live(Loaded(), Pause(now=True))[1]


def test_finish_waits_as_long_as_it_takes() -> None:
    state, effects = live(Loaded(), Took(), Finish(), 10**9, Tick())
    assert state.phase is Phase.DRAINING
    assert Halt() not in effects
    state, effects = live(Loaded(), Took(), Finish(), Finish(), Ended())
    assert state.phase is Phase.STOPPED
    assert effects[-1] == Halt()


def test_finish_without_work_stops_at_once() -> None:
    assert live(Loaded(), Finish())[1][-1] == Halt()


def test_resume_calls_a_finish_off() -> None:
    state, effects = live(Loaded(), Took(), Finish(), Resume(), Ended())
    assert state.phase is Phase.IDLE
    assert Halt() not in effects


def test_stop_drains_for_a_minute() -> None:
    state, effects = live(Loaded(), Took(), Stop(), DRAIN_MS - 1, Tick())
    assert state.phase is Phase.DRAINING
    assert Halt() not in effects
    state, effects = live(Loaded(), Took(), Stop(), DRAIN_MS, Tick())
    assert state.phase is Phase.STOPPED
    assert effects[-2:] == [Abandon(), Halt()]


def test_a_second_stop_ends_it_at_once() -> None:
    state, effects = live(Loaded(), Took(), Stop(), Stop())
    assert state.phase is Phase.STOPPED
    assert effects[-2:] == [Abandon(), Halt()]


def test_a_stop_after_a_finish_is_the_first_stop() -> None:
    state, _ = live(Loaded(), Took(), Finish(), Stop())
    assert state.phase is Phase.DRAINING
    assert state.deadline_ms == NOW + DRAIN_MS


def test_a_stop_while_starting_stops() -> None:
    assert live(Stop())[0].phase is Phase.STOPPED


def test_a_second_stop_ends_without_an_announcement() -> None:
    state, _ = live(Loaded(), Took(), Stop())
    assert step(state, Stop(), NOW)[1] == (Abandon(), Halt())


def test_next_ms_says_when_time_matters() -> None:
    assert live(Loaded())[0].next_ms == 0
    assert live(Loaded(), Pause(NOW + 7))[0].next_ms == NOW + 7
    assert live(Loaded(), Took(), Stop())[0].next_ms == NOW + DRAIN_MS


EVENTS = st.one_of(
    st.sampled_from([Loaded(), Took(), Ended(), Resume(), Finish(), Stop(), Tick()]),
    st.builds(Pause, st.sampled_from([0, NOW, NOW + 5000]), st.booleans()),
    st.integers(0, 2 * DRAIN_MS),
)


@given(st.lists(EVENTS, max_size=30))
def test_invariants(events: list[Event | int]) -> None:
    state, now_ms, halts = State(), NOW, 0
    for event in events:
        if isinstance(event, int):
            now_ms += event
            continue
        before = state
        state, effects = step(state, event, now_ms)
        halts += effects.count(Halt())
        assert state.running >= 0
        changed = replace(state, stopped=before.stopped) != before  # an end needs no announcement
        assert changed == (Announce() in effects)
        if before.stopped:
            assert state == before
            assert not effects
        if Halt() in effects and state.running:
            assert Abandon() in effects
        if state.draining and not state.stopped:
            assert state.running
    assert halts == state.stopped
