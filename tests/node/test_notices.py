"""One line for each turn of a node's life, and none for a job that comes or goes."""

from __future__ import annotations

from datetime import datetime

import pytest

from novamesh_node.lifecycle import (
    DRAIN_MS,
    Ended,
    Event,
    Finish,
    Pause,
    Resume,
    State,
    Stop,
    Tick,
    Took,
    step,
)
from novamesh_node.notices import Notice, farewell, lost, notice

NOW = 1_800_000_000_000
IDLE = State(ready=True)
BUSY = State(ready=True, running=2)


def said(state: State, *events: Event, now_ms: int = NOW) -> list[Notice | None]:
    lines = []
    for event in events:
        after, _ = step(state, event, now_ms)
        lines.append(notice(state, after, now_ms))
        state = after
    return lines


def test_a_stop_says_what_is_left_and_how_to_end_it_at_once() -> None:
    first, second = said(BUSY, Stop(), Stop())
    assert first == ("stop", "2 jobs left, 60 s at most; again to stop at once")
    assert second == ("stop", "gives up 2 jobs")


def test_a_stop_with_nothing_at_work_leaves_the_word_to_the_farewell() -> None:
    assert said(IDLE, Stop(), Stop()) == [None, None]
    assert farewell(1) == ("end", "the node has stopped; it took 1 job")


def test_a_drain_that_takes_too_long_says_what_it_gives_up() -> None:
    draining, _ = step(BUSY, Stop(), NOW)
    assert said(draining, Tick(), now_ms=NOW + DRAIN_MS) == [("stop", "gives up 2 jobs")]


def test_finish_then_stop_are_two_turns_and_resume_calls_both_off() -> None:
    finish, stop, resume = said(State(ready=True, running=1), Finish(), Stop(), Resume())
    assert finish == ("finish", "1 job left, then the node stops; Ctrl-C to stop sooner")
    assert stop is not None
    assert stop[1].startswith("1 job left, 60 s")
    assert resume == ("resume", "takes work again")


def test_a_pause_ends_at_this_machines_time() -> None:
    until = datetime.fromtimestamp((NOW + 60_000) / 1000).strftime("%H:%M")
    pause, again, over = said(IDLE, Pause(NOW + 60_000), Pause(), Resume())
    assert pause is not None
    assert f" {until};" in pause[1]
    assert again == ("pause", "no new work until resumed; go on:  novamesh node resume")
    assert over == ("resume", "takes work again")


def test_a_pause_that_runs_out_is_told() -> None:
    paused, _ = step(IDLE, Pause(NOW + 1), NOW)
    assert said(paused, Tick(), now_ms=NOW + 1) == [("resume", "takes work again")]


@pytest.mark.parametrize("event", [Took(), Ended(), Tick(), Resume()])
def test_the_rest_is_no_turn(event: Event) -> None:
    assert said(BUSY, event) == [None]


def test_a_lost_device_is_told_with_what_is_left() -> None:
    assert lost("GPU-1", "it failed", 4) == ("lost", "GPU-1 is out: it failed; 4 slots are left")
    assert lost("GPU-1", "it failed", 1) == ("lost", "GPU-1 is out: it failed; 1 slot is left")
