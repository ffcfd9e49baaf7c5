"""The keeper: events in, effects carried out, the pool told what it may send."""

from __future__ import annotations

from novamesh_node import lifecycle
from novamesh_node.clock import Clock
from novamesh_node.keeper import Hands, Keeper
from novamesh_proto.messages import NodeLoad
from support.clock import START_MS


def keeper(slots: int = 2) -> tuple[Keeper, list[str]]:
    done: list[str] = []
    made = Keeper(slots, Clock(lambda: START_MS), lifecycle.State())
    made.hands = Hands(lambda: done.append("announce"), lambda: done.append("abandon"))
    return made, done


async def test_work_changes_the_load_and_is_announced() -> None:
    made, done = keeper()
    assert not made.load().accepting
    made.apply(lifecycle.Loaded())
    assert made.load() == NodeLoad(2, True)
    made.took()
    assert made.load() == NodeLoad(1, True)
    made.ended()
    assert done == ["announce"] * 3
    assert made.taken == 1


async def test_slots_that_go_are_announced_and_work_goes_on() -> None:
    made, done = keeper(slots=4)
    made.apply(lifecycle.Loaded())
    for _ in range(3):
        made.took()
    done.clear()
    made.lend(2)
    assert made.load() == NodeLoad(0, True)
    made.ended()
    made.ended()
    assert made.load() == NodeLoad(1, True)
    made.lend(2)
    assert done == ["announce"] * 3


async def test_a_second_stop_abandons_and_halts() -> None:
    made, done = keeper()
    made.apply(lifecycle.Loaded())
    made.took()
    made.apply(lifecycle.Stop())
    assert not made.halted.is_set()
    made.apply(lifecycle.Stop())
    assert made.halted.is_set()
    assert done[-1] == "abandon"
    made.ended()
    assert done[-1] == "abandon"


async def test_whoever_watches_hears_of_changes_alone_and_after_them() -> None:
    heard: list[tuple[lifecycle.Phase, lifecycle.Phase]] = []
    made = Keeper(
        1,
        Clock(lambda: START_MS),
        lifecycle.State(ready=True),
        watch=lambda before, after: heard.append((before.phase, made.state.phase)),
    )
    made.apply(lifecycle.Resume())
    made.apply(lifecycle.Pause())
    made.apply(lifecycle.Stop())
    assert heard == [
        (lifecycle.Phase.IDLE, lifecycle.Phase.PAUSED),
        (lifecycle.Phase.PAUSED, lifecycle.Phase.STOPPED),
    ]
