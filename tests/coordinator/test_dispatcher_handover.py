"""Attempts across a handover: what a dispatcher recovers from records and from an older one."""

from __future__ import annotations

import pytest

from novamesh_coordinator.core import Core
from novamesh_coordinator.effects import Assign, Publish, StopAttempt
from novamesh_coordinator.events import AttemptEnded, JobAdmitted, JobEnded
from novamesh_proto.errors import Code
from novamesh_proto.limits import TAIL_KEPT_MS
from novamesh_proto.messages import JobState
from support.scene import Scene
from support.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


def hand_over(table: Table, durable: int) -> None:
    """The last records were lost: a new core goes on from the log and beside the older one."""
    older = table.core
    table.core = Core(table.identity, relay=older.relay)
    table.log = table.log[:durable]
    table.core.replay(table.log)
    table.core.adopt(older, table.now)


def test_a_handover_drops_what_was_never_admitted(table: Table) -> None:
    client, node = table.client(), table.node(slots=4)
    kept = table.order(client, node, key="kept")
    durable = len(table.log)
    lost = table.order(client, node, key="lost")
    hand_over(table, durable)
    assert table.core.relay.get(lost.id) is None
    assert table.core.dispatcher.terms_of(lost.id) is None
    assert table.core.dispatcher.terms_of(kept.id) == kept.terms
    assert table.core.next_ms() == table.now.ticks_ms + 30_000


def test_a_handover_keeps_the_tail_of_what_ended(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.answer(table.assigned(node))
    table.pass_time(1)
    hand_over(table, len(table.log))
    assert table.core.dispatcher.terms_of(order.id) == order.terms
    assert table.core.next_ms() == table.now.ticks_ms + TAIL_KEPT_MS
    stream = table.core.relay.get(order.id)
    assert stream is not None
    assert len(stream.tail) == 3
    table.pass_time(TAIL_KEPT_MS / 1000)
    assert table.core.relay.get(order.id) is None
    assert table.core.dispatcher.terms_of(order.id) is None
    assert table.core.next_ms() is None


def test_after_a_restart_a_deadline_is_what_is_left_of_it(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.clock.advance(45)
    table.restart()
    assert table.core.next_ms() == table.now.ticks_ms + 15_000
    table.pass_time(14.9)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    table.pass_time(0.2)
    assert table.view(client, order.id).state is JobState.EXPIRED


def test_a_clock_that_was_set_back_makes_no_deadline_longer(table: Table) -> None:
    client, node = table.client(), table.node()
    table.order(client, node)
    table.clock.set_wall(table.now_ms - 100_000)
    table.restart()
    due = []
    while (at_ms := table.core.next_ms()) is not None and len(due) < 2:
        due.append(at_ms - table.now.ticks_ms)
        list(table.core.dispatcher._timers.take_due(at_ms))
    assert due == [30_000, 60_000]


@pytest.mark.parametrize("taken", [False, True])
def test_a_restart_remembers_when_the_attempt_was_sent(table: Table, taken: bool) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    sent_us = table.now.ticks_us
    if taken:
        table.clock.advance(0.5)
        table.decide(table.assigned(node))
    table.clock.advance(2)
    table.restart()
    stream = table.core.relay.get(order.id)
    assert stream is not None
    assert (stream.sent_us, stream.rtt_us, stream.resumed) == (sent_us, 0, taken)


def test_a_lease_ends_with_a_sentence_and_a_stop() -> None:
    scene = Scene()
    table = scene.table
    table.pass_time(15.1)
    (end,) = scene.records(AttemptEnded)
    assert isinstance(end, AttemptEnded)
    assert (end.message, end.lost, end.evidence) == (
        "the node gave no sign of work for 15 s",
        True,
        None,
    )
    (job,) = scene.records(JobEnded)
    assert isinstance(job, JobEnded)
    assert (job.state, job.code, job.message, job.tokens) == (
        JobState.FAILED,
        Code.NODE_LOST,
        end.message,
        0,
    )
    (stop,) = table.taken(StopAttempt)
    assert (stop.node, stop.fence, stop.code) == (scene.node.id, end.fence, Code.STALE)


def test_a_deadline_and_a_cancel_are_told_in_words() -> None:
    scene = Scene()
    table = scene.table
    for _ in range(5):
        table.pass_time(11)
        table.send(scene.attempt, scene.attempt.chunk())
    table.pass_time(6)
    order = table.order(scene.client, scene.node, key="job-2", timeout_ms=1_500)
    table.pass_time(1.6)
    last = table.order(scene.client, scene.node, key="job-3")
    cancel = scene.client.cancel(last.id, table.now_ms)
    table.cancel(scene.client, last.id)
    told = [r for r in table.log if isinstance(r, JobEnded)]
    assert [(r.job, r.code, r.message, r.tokens) for r in told] == [
        (scene.order.id, Code.EXPIRED, "it was not done within 60 s", 5),
        (order.id, Code.EXPIRED, "it was not done within 1.5 s", 0),
        (last.id, Code.CANCELLED, "cancelled by its client", 0),
    ]
    assert [bool(r.order) for r in told] == [False, False, True]
    assert told[2].order_expires_ms == table.now_ms + 60_000
    assert cancel.payload


def test_a_node_with_room_is_no_successor_after_the_last_attempt(table: Table) -> None:
    client = table.client()
    nodes = [table.node(name) for name in ("one", "two", "three")]
    order = table.order(client, *nodes)
    for node in nodes[:2]:
        table.fail(table.assigned(node))
    assert table.view(client, order.id).state is JobState.FAILED
    assert not [e for e in table.taken(Assign) if e.node == nodes[2].id]


def test_successors_are_asked_in_the_clients_order_and_must_be_free(table: Table) -> None:
    client = table.client()
    one, two, three = (table.node(name, slots=1) for name in ("one", "two", "three"))
    table.order(client, one, two, three)
    table.load(two, 0)
    table.fail(table.assigned(one))
    assert table.assigned(three).ids["attempt"] == 2


def test_watchers_see_every_turn_of_a_job() -> None:
    scene = Scene()
    table = scene.table
    states = [(p.view.state, p.view.tokens) for p in table.taken(Publish)]
    assert states == [(JobState.ASSIGNED, 0), (JobState.RUNNING, 0)]
    table.send(scene.attempt, scene.attempt.chunk(2, final=True))
    table.decide(scene.attempt)
    assert not table.taken(Publish), "taken once is taken"
    table.attest(scene.attempt)
    last = table.taken(Publish)[-1]
    assert (last.view.state, last.view.tokens, len(last.tail)) == (JobState.SETTLED, 2, 3)


def test_the_timers_of_a_job_at_work_outlast_a_job_that_is_gone(table: Table) -> None:
    """A timer of a job that nobody keeps any more releases what is left of it."""
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.core.jobs._jobs.pop(order.id)
    table.core.jobs._live.clear()
    table.pass_time(15.1)
    assert table.core.dispatcher.terms_of(order.id) is None
    assert table.core.next_ms() is None


def test_a_job_whose_lease_and_deadline_run_out_together_ends_once() -> None:
    scene = Scene()
    table = scene.table
    for seconds in (14, 14, 14, 3):
        table.pass_time(seconds)
        table.progress(scene.attempt, round(table.clock.monotonic()))
    table.pass_time(15)
    assert len(scene.records(JobEnded)) == 1
    assert scene.state.terminal
    assert table.core.next_ms() == table.now.ticks_ms + TAIL_KEPT_MS


def test_a_job_that_was_admitted_and_never_assigned_waits_for_its_deadline(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    while not isinstance(table.log[-1], JobAdmitted):
        table.log.pop()
    table.restart()
    table.pass_time(30.1)
    assert table.view(client, order.id).state is JobState.ADMITTED
    table.pass_time(30)
    assert table.view(client, order.id).state is JobState.EXPIRED
