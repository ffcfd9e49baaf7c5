"""The core as a state machine: whatever happens in whatever order, the promises hold.

Checked after every step: replaying the log gives the same bytes; a job that ended stays as it
ended; no position of an answer is paid twice; what is paid was relayed. Checked at the end: every
job ends once time has passed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from novamesh_coordinator import canonical, inputs
from novamesh_coordinator.core import JOBS_KEPT_MS, Core, CoreState, PoolIdentity
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, JobsForgotten
from novamesh_coordinator.relay import _MARK_BYTES
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import FinishReason, JobId, JobState
from support.actors import Attempt, ClientActor, NodeActor
from support.parties import COORDINATOR, NETWORK
from support.table import Table

NODES = ("one", "two", "three")
Ended = tuple[JobState, int]


class PoolMachine(RuleBasedStateMachine):
    """One pool, two clients, three nodes, any order of events."""

    attempts: Bundle[Attempt] = Bundle("attempts")
    orders: Bundle[Any] = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.ended: dict[JobId, Ended] = {}
        self.keys = 0

    @initialize()
    def begin(self) -> None:
        self.clients = [self.table.client(name) for name in ("alice", "bob")]
        self.nodes = [self.table.node(name, slots=2) for name in NODES]

    @rule(target=orders, who=st.integers(0, 1), first=st.integers(0, 2), count=st.integers(1, 3))
    def submit(self, who: int, first: int, count: int) -> Any:
        nodes = [self.nodes[(first + step) % 3] for step in range(count)]
        self.keys += 1
        return self._order(self.clients[who], *nodes)

    @rule(order=orders)
    def submit_again(self, order: tuple[ClientActor, Any]) -> None:
        before = len(self.table.log)
        assert self.table.submit(order[1]).job == order[1].id
        assert len(self.table.log) == before

    @rule(target=orders, order=orders, held=st.integers(1, 5))
    def carry_on(self, order: tuple[ClientActor, Any], held: int) -> Any:
        client, parent = order
        self.keys += 1
        return self._order(client, *self.nodes, parent=parent.id, held=held)

    @rule(order=orders)
    def cancel(self, order: tuple[ClientActor, Any]) -> None:
        assert self.table.cancel(order[0], order[1].id).state.terminal

    @rule(target=attempts, index=st.integers(0, 2))
    def take(self, index: int) -> Any:
        node = self.nodes[index]
        try:
            return self.table.assigned(node)
        except AssertionError:
            return multiple()

    @rule(attempt=attempts, accepted=st.booleans())
    def decide(self, attempt: Attempt, accepted: bool) -> None:
        if self.attached(attempt.node):
            self.table.decide(attempt, accepted)

    @rule(attempt=attempts, tokens=st.integers(0, 3), final=st.booleans())
    def send(self, attempt: Attempt, tokens: int, final: bool) -> None:
        if attempt.sent and attempt.sent[-1].chunk.final:
            return
        chunk = attempt.chunk(tokens, final)
        if self.attached(attempt.node):
            self.table.send(attempt, chunk)

    @rule(attempt=attempts)
    def send_all_again(self, attempt: Attempt) -> None:
        if self.attached(attempt.node):
            for chunk in attempt.sent:
                self.table.send(attempt, chunk)

    @rule(attempt=attempts)
    def checkpoint(self, attempt: Attempt) -> None:
        if self.attached(attempt.node):
            self.table.checkpoint(attempt)

    @rule(attempt=attempts, finish=st.sampled_from([FinishReason.STOP, FinishReason.CANCELLED]))
    def attest(self, attempt: Attempt, finish: FinishReason) -> None:
        if self.attached(attempt.node):
            self.table.attest(attempt, attempt.attest(self.table.now_ms, finish))

    @rule(attempt=attempts, lie=st.sampled_from(["fence", "completion_tokens", "chunks"]))
    def lie(self, attempt: Attempt, lie: str) -> None:
        if self.attached(attempt.node):
            self.table.attest(attempt, attempt.attest(self.table.now_ms, **{lie: 99}))

    @rule(attempt=attempts, done=st.integers(0, 9))
    def prefill(self, attempt: Attempt, done: int) -> None:
        if self.attached(attempt.node):
            self.table.progress(attempt, done)

    @rule(attempt=attempts)
    def acknowledge_and_countersign(self, attempt: Attempt) -> None:
        client = next(c for c in self.clients if c.id == attempt.terms.issuer)
        for hand_in in (
            lambda: self.table.acknowledge(client.acknowledge(attempt, self.table.now_ms)),
            lambda: self.table.countersign(client.countersign(attempt, self.table.now_ms)),
        ):
            try:
                hand_in()
            except NovaMeshError as error:
                if error.code not in (Code.STALE, Code.BAD_REQUEST):
                    raise

    @rule(index=st.integers(0, 2), free=st.integers(0, 2), accepting=st.booleans())
    def say_load(self, index: int, free: int, accepting: bool) -> None:
        if self.attached(self.nodes[index]):
            self.table.load(self.nodes[index], free, accepting)

    @rule(who=st.integers(0, 1))
    def match(self, who: int) -> None:
        try:
            candidates = self.table.match(self.clients[who])
        except NovaMeshError as error:
            if error.code not in (Code.BUSY, Code.MODEL_NOT_FOUND, Code.NO_CAPACITY):
                raise
        else:
            assert 1 <= len(candidates) <= 3

    @rule(index=st.integers(0, 2))
    def ban_for_a_while(self, index: int) -> None:
        node = self.nodes[index]
        self.table.ban(node.id, "spam")
        assert not self.attached(node)
        self.table.ban(node.id, lift=True)

    @rule(attempt=consumes(attempts))
    def fail(self, attempt: Attempt) -> None:
        if self.attached(attempt.node):
            self.table.fail(attempt)

    @rule(index=st.integers(0, 2))
    def vanish(self, index: int) -> None:
        if self.attached(self.nodes[index]):
            self.table.detach(self.nodes[index])

    @rule(index=st.integers(0, 2))
    def come_back_empty(self, index: int) -> None:
        self.table.attach(self.nodes[index])

    @rule(attempt=attempts)
    def come_back(self, attempt: Attempt) -> None:
        self.table.attach(attempt.node, (attempt.running,))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 16.0]))
    def wait(self, seconds: float) -> None:
        self.table.pass_time(seconds)

    @rule()
    def restart(self) -> None:
        self.table.restart()

    @invariant()
    def the_log_gives_the_same_bytes(self) -> None:
        assert self.table.replayed().state() == self.table.core.state()

    @invariant()
    def what_ended_stays_ended(self) -> None:
        for job in self.table.core.jobs.dump().jobs:
            if job.state.terminal:
                now = (job.state, job.ended_ms)
                assert self.ended.setdefault(job.job, now) == now

    @invariant()
    def every_position_is_paid_once(self) -> None:
        roots = {r.job: r.root for r in self.table.log if isinstance(r, JobAdmitted)}
        paid: dict[JobId, set[int]] = defaultdict(set)
        settled: set[JobId] = set()
        for record in self.table.log:
            if isinstance(record, AttemptSettled):
                assert record.job not in settled
                settled.add(record.job)
                end = record.start_position + record.completion_tokens
                span = set(range(record.start_position, end))
                assert not span & paid[roots[record.job]]
                paid[roots[record.job]] |= span

    @invariant()
    def slots_are_not_given_twice(self) -> None:
        for node in getattr(self, "nodes", ()):
            active = self.table.core.jobs.active(node.id)
            assert active <= node.slots + 1  # a node that came back empty gets its work again

    def _order(self, client: ClientActor, *nodes: NodeActor, **parts: Any) -> Any:
        expected = {Code.BUSY, Code.NO_CAPACITY, Code.CONFLICT}
        try:
            order = self.table.order(client, *nodes, key=f"k{self.keys}", **parts)
        except NovaMeshError as error:
            if error.code not in expected:
                raise
            return multiple()
        return (client, order)

    def attached(self, node: NodeActor) -> bool:
        return self.table.core.registry.sessions.get(node.id) is not None

    @invariant()
    def relayed_bytes_are_counted(self) -> None:
        relay = self.table.core.relay
        streams = relay._streams.values()
        assert relay.bytes == sum(s.bytes + _MARK_BYTES * s.chain.chunks for s in streams)

    def teardown(self) -> None:
        self.table.pass_time(61)
        assert not self.table.core.jobs.live()
        self.the_log_gives_the_same_bytes()
        self.every_position_is_paid_once()


PoolMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPool = PoolMachine.TestCase


@pytest.fixture
def table() -> Table:
    return Table()


def test_a_snapshot_and_the_records_after_it_give_the_same_bytes(table: Table) -> None:
    client, node = table.client(), table.node()
    table.order(client, node)
    table.answer(table.assigned(node))
    state, seen = table.core.state(), len(table.log)
    again = canonical.decode(CoreState, canonical.encode(state))
    assert again == state
    table.order(client, node, key="job-2")
    table.ban(client.id)
    core = Core(table.identity, again)
    core.replay(table.log[seen:])
    assert core.state() == table.core.state()


def test_the_same_inputs_moments_and_rng_give_the_same_outcomes() -> None:
    outcomes = []
    for _ in range(2):
        table = Table(seed=7)
        client = table.client()
        for name in NODES:
            table.node(name)
        outcomes.append((table.match(client, count=2), table.core.state(), table.log))
    assert outcomes[0] == outcomes[1]


def test_a_refused_input_leaves_no_trace(table: Table) -> None:
    client, node = table.client(), table.node()
    before = table.core.state()
    with pytest.raises(NovaMeshError):
        table.order(client, node, parent=JobId(bytes(32)), held=3)
    assert table.core.state() == before


def test_ended_jobs_are_forgotten_after_half_an_hour(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.answer(table.assigned(node))
    assert table.core.ledger.paid_until(order.id) == 3
    table.pass_time(JOBS_KEPT_MS / 1000 + 61)
    assert isinstance(table.log[-1], JobsForgotten)
    assert table.views(client) == ()
    assert table.core.ledger.paid_until(order.id) == 0
    assert table.replayed().state() == table.core.state()
    with pytest.raises(NovaMeshError) as refused:
        table.submit(order)
    assert refused.value.code is Code.NOT_FRESH


def test_a_core_can_go_on_from_one_whose_last_records_were_lost(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one)
    attempt = table.assigned(one)
    table.decide(attempt)
    table.send(attempt, attempt.chunk(final=True))
    durable = len(table.log)
    table.attest(attempt)
    lost = table.order(client, two, key="lost")
    older = table.core
    table.core = Core(table.identity, relay=older.relay)
    table.core.replay(table.log[:durable])
    table.core.adopt(older, table.now)
    table.log = table.log[:durable]
    assert table.view(client, order.id).state is JobState.RUNNING
    assert table.core.relay.get(lost.id) is None
    table.attest(attempt)
    view = table.view(client, order.id)
    assert (view.state, view.tokens) == (JobState.SETTLED, 1)
    assert len(table.core.registry.sessions) == 2
    table.pass_time(601)
    assert len(table.core.relay) == 0


def test_steps_are_quick_without_signatures(table: Table) -> None:
    """Only that nothing is wildly slow; the figure is measured by the benchmark."""
    client, node = table.client(), table.node()
    table.order(client, node)
    attempt = table.assigned(node)
    chunk = attempt.chunk(0)
    session = table.sessions[node.id]
    core, now, rng = table.core, table.now, random.Random(0)
    event = inputs.ChunkArrived(node.id, session, chunk)
    for _ in range(1000):
        core.step(event, now, rng)
    assert table.view(client, attempt.ids["job"]).state is JobState.ASSIGNED


def test_an_unknown_input_is_a_bug() -> None:
    core = Core(PoolIdentity(COORDINATOR, NETWORK))
    table = Table()
    with pytest.raises(KeyError):
        core.step(object(), table.now, table.rng)  # type: ignore[arg-type]


def test_what_ended_durably_keeps_its_tail_in_a_core_that_goes_on(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(2))
    table.cancel(client, order.id)
    durable = len(table.log)
    table.order(client, node, key="lost")
    older = table.core
    table.core = Core(table.identity, relay=older.relay)
    table.core.replay(table.log[:durable])
    table.core.adopt(older, table.now)
    table.log = table.log[:durable]
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    assert [r.completion_tokens for r in table.log if isinstance(r, AttemptSettled)] == [2]
