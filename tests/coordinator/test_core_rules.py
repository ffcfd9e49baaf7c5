"""The core's own rules: bans, what is forgotten when, what one core takes over from another."""

from __future__ import annotations

import pytest

from novamesh_coordinator.core import FORGET_EVERY_MS, JOBS_KEPT_MS, Core, PoolIdentity
from novamesh_coordinator.effects import EndSession, StopAttempt
from novamesh_coordinator.events import AttemptEnded, JobsForgotten
from novamesh_coordinator.inputs import ModelsAsked
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobState, ModelsQuery
from support.actors import ClientActor
from support.parties import COORDINATOR
from support.refusals import refused
from support.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


def ended(table: Table) -> list[AttemptEnded]:
    return [record for record in table.log if isinstance(record, AttemptEnded)]


def test_the_owner_cannot_lock_itself_out(table: Table) -> None:
    with refused(
        Code.BAD_REQUEST,
        "this is the coordinator's own PeerId; a pool without it is none",
        "list the nodes with: novamesh coordinator nodes",
    ):
        table.ban(COORDINATOR.node_id)


def test_a_banned_node_is_told_why_and_its_work_counts_as_lost(table: Table) -> None:
    client, node, other = table.client(), table.node(), table.node("other")
    order = table.order(client, node)
    elsewhere = table.order(client, other, key="elsewhere")
    session = table.sessions[node.id]
    table.effects.clear()
    table.ban(node.id, "wrong answers")
    assert table.taken(EndSession) == [EndSession(node.id, session, Code.BANNED, "wrong answers")]
    (end,) = ended(table)
    assert (end.job, end.code, end.message, end.lost) == (
        order.id,
        Code.NODE_LOST,
        "the node was banned",
        True,
    )
    assert not table.taken(StopAttempt)
    assert table.view(client, elsewhere.id).state is JobState.ASSIGNED
    assert table.core.ledger.standing(node.id).jobs_lost == 1


def test_a_lifted_ban_ends_nothing(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.ban(node.id, "", lift=True)
    assert table.view(client, order.id).state is JobState.ASSIGNED
    assert table.core.registry.sessions.get(node.id) is not None


def test_only_a_lost_attempt_counts_against_its_node(table: Table) -> None:
    client, node = table.client(), table.node()
    table.order(client, node)
    table.decide(table.assigned(node), accepted=False, code="policy")
    assert table.core.ledger.standing(node.id).jobs_lost == 0
    assert table.replayed().state() == table.core.state()
    table.order(client, node, key="job-2")
    table.fail(table.assigned(node))
    assert table.core.ledger.standing(node.id).jobs_lost == 1
    assert table.replayed().state() == table.core.state()


def test_an_open_pool_takes_whoever_comes_and_a_closed_one_does_not() -> None:
    for pool, code in ((Table(open_pool=True), None), (Table(), Code.FORBIDDEN)):
        client = ClientActor("client", COORDINATOR.node_id)
        if code is None:
            pool.join(client, b"")
            pool.core.membership.require(client.id)
            continue
        with pytest.raises(NovaMeshError) as caught:
            pool.join(client, b"")
        assert caught.value.code is code


def test_a_pool_is_closed_unless_it_is_said(table: Table) -> None:
    assert not PoolIdentity(COORDINATOR, "testnet").open


def test_strangers_are_shown_no_models(table: Table) -> None:
    table.node()
    member, stranger = table.client(), ClientActor("stranger", COORDINATOR.node_id)
    for actor, said in ((member, None), (stranger, Code.NOT_A_MEMBER)):
        sealed = actor.ask_models(table.now_ms)
        query = table.verifier.open(sealed, ModelsQuery, table.now_ms)
        if said is None:
            (model,) = table.do(ModelsAsked(query))
            assert (model.nodes, model.free_slots) == (1, 2)
            continue
        with pytest.raises(NovaMeshError) as caught:
            table.do(ModelsAsked(query))
        assert caught.value.code is said


def test_ended_jobs_are_forgotten_half_an_hour_later_and_a_minutes_worth_at_once(
    table: Table,
) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.cancel(client, order.id)
    for wait_ms, forgotten in ((JOBS_KEPT_MS + FORGET_EVERY_MS, False), (1, True)):
        table.pass_time(wait_ms / 1000)
        last = table.log[-1]
        assert isinstance(last, JobsForgotten) is forgotten
    assert last == JobsForgotten(table.now_ms, table.now_ms - JOBS_KEPT_MS)


def test_a_core_says_when_to_wake_it(table: Table) -> None:
    assert table.core.next_ms() is None
    client, node = table.client(), table.node()
    table.order(client, node)
    assert table.core.next_ms() == table.now.ticks_ms + 15_000


def test_a_core_takes_over_presence_and_reservations_but_not_the_state(table: Table) -> None:
    client, node = table.client(), table.node()
    table.match(client)
    older, durable = table.core, len(table.log)
    table.core = Core(table.identity, relay=older.relay)
    table.core.replay(table.log[:durable])
    table.core.adopt(older, table.now)
    assert table.core.registry.sessions is older.registry.sessions
    assert table.core.registry.reservations is older.registry.reservations
    assert table.core.relay is older.relay
    assert table.core.registry.reservations.at(node.id, table.now)[0] == 1


def test_a_restart_takes_every_live_job_up_again(table: Table) -> None:
    client, node = table.client(), table.node(slots=4)
    orders = [table.order(client, node, key=key) for key in ("one", "two")]
    table.restart()
    assert table.core.next_ms() == table.now.ticks_ms + 30_000
    for order in orders:
        assert table.core.dispatcher.terms_of(order.id) == order.terms
        assert table.core.relay.get(order.id) is not None
