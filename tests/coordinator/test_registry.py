"""Nodes: adverts, presence, slots, matches with reservations, and why a node got no work."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator import registry
from novamesh_coordinator.events import DescriptorTaken
from novamesh_coordinator.inputs import DescriptorRenewed, IdleAsked, LoadChanged, ModelsAsked
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ModelsQuery, NodeDescriptor, NodeLoad, ProfileDigest
from support.actors import NodeActor
from support.parties import OFFER
from support.table import Table

SMALL = replace(OFFER, model_profile=ProfileDigest(bytes(32)), name="another", context_max=64)


@pytest.fixture
def table() -> Table:
    return Table()


def idle(table: Table, node: NodeActor) -> Any:
    return table.do(IdleAsked(node.id, table.sessions[node.id]))


def models(table: Table, client: Any) -> Any:
    sealed = client.ask_models(table.now_ms)
    return table.do(ModelsAsked(table.verifier.open_query(sealed, ModelsQuery, table.now_ms)))


def renew(table: Table, node: NodeActor, **changes: Any) -> None:
    sealed = node.descriptor(table.now_ms, **changes)
    opened = table.verifier.open_descriptor(sealed, node.id, table.now_ms)
    table.do(DescriptorRenewed(node.id, table.sessions[node.id], opened))


def refused_match(table: Table, client: Any, **changes: Any) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as refused:
        table.match(client, **changes)
    return refused.value


def test_a_match_gives_descriptors_reasons_and_reservations(table: Table) -> None:
    client = table.client()
    nodes = [table.node(name) for name in ("a", "b", "c", "d")]
    candidates = table.match(client)
    assert len(candidates) == 3
    assert len({candidate.reservation for candidate in candidates}) == 3
    assert all("slots free" in candidate.reason for candidate in candidates)
    assert {candidate.descriptor.signatures[0].keyid for candidate in candidates} <= {
        node.id for node in nodes
    }


def test_a_reservation_holds_a_slot_for_two_seconds(table: Table) -> None:
    alice, bob = table.client("alice"), table.client("bob")
    node = table.node(slots=1)
    (candidate,) = table.match(alice)
    error = refused_match(table, bob)
    assert (error.code, error.retry_after_ms > 0) == (Code.BUSY, True)
    order = bob.seal([candidate.descriptor], table.now_ms)
    with pytest.raises(NovaMeshError) as refused:
        table.submit(order, (candidate.reservation,))  # not bob's
    assert refused.value.code is Code.BUSY
    table.clock.advance(2.1)
    assert table.submit(order).attempt == 1
    assert refused_match(table, alice).code is Code.BUSY
    assert idle(table, node).considered == 3


def test_a_reservation_is_used_up_by_its_submission(table: Table) -> None:
    client, node = table.client(), table.node(slots=2)
    (candidate,) = table.match(client)
    order = client.seal([candidate.descriptor], table.now_ms)
    table.submit(order, (candidate.reservation,))
    assert len(table.core.registry.reservations) == 0
    assert len(table.match(client)) == 1
    assert idle(table, node).chosen == 2


def test_a_pool_without_the_model_says_so(table: Table) -> None:
    client = table.client()
    table.node()
    error = refused_match(table, client, model_profile=ProfileDigest(b"\1" * 32))
    assert error.code is Code.MODEL_NOT_FOUND
    assert error.hint == "list what the pool serves: novamesh pool models"


def test_a_job_too_long_for_everybody_is_refused_for_good(table: Table) -> None:
    client = table.client()
    table.node()
    error = refused_match(table, client, max_tokens=5_000)
    assert error.code is Code.NO_CAPACITY
    assert "5010 tokens of context" in error.message


def test_load_and_attempts_bound_the_free_slots(table: Table) -> None:
    client, node = table.client(), table.node(slots=4)
    table.load(node, free=1)
    table.order(client, node)
    assert refused_match(table, client).code is Code.BUSY
    table.load(node, free=4)
    assert models(table, client)[0].free_slots == 3
    table.load(node, free=4, accepting=False, reason="paused by its owner")
    assert models(table, client)[0].free_slots == 0
    assert "paused by its owner" in refused_match(table, client).message


def test_a_node_can_ask_why_it_gets_no_work(table: Table) -> None:
    client = table.client()
    busy = table.node("busy")
    assert idle(table, busy).considered == 0
    table.load(busy, free=0)
    refused_match(table, client)
    refused_match(table, client, max_tokens=5_000)
    refused_match(table, client)
    report = idle(table, busy)
    assert (report.considered, report.chosen) == (3, 0)
    assert [(r.reason[:22], r.count) for r in report.reasons] == [
        ("all 2 slots are busy", 2),
        ("the job needs about 50", 1),
    ]


def test_models_are_counted_over_attached_nodes(table: Table) -> None:
    client, one = table.client(), table.node("one")
    two = table.node("two", slots=3)
    renew(table, two, sequence=2, models=(OFFER, SMALL))
    assert [(m.name, m.nodes, m.free_slots, m.context_max) for m in models(table, client)] == [
        ("another", 1, 2 + 1, 64),
        ("nova-pico", 2, 5, 512),
    ]
    table.detach(one)
    table.detach(two)
    assert models(table, client) == ()


def test_the_newest_descriptor_wins(table: Table) -> None:
    node = table.node()
    renew(table, node, sequence=5, slots=7)
    described = table.core.registry.descriptor(node.id)
    assert isinstance(described, NodeDescriptor)
    assert described.slots == 7
    for sequence in (4, 5):
        table.clock.advance(1)
        with pytest.raises(NovaMeshError) as refused:
            renew(table, node, sequence=sequence, slots=9)
        assert refused.value.code is Code.STALE
    table.restart()
    with pytest.raises(NovaMeshError) as refused:
        table.attach(node, descriptor=node.descriptor(table.now_ms, sequence=4))
    assert refused.value.code is Code.STALE


def test_a_node_with_an_expired_descriptor_gets_no_work(table: Table) -> None:
    client = table.client()
    table.node()
    table.clock.advance(3_600 + 121)
    assert "its descriptor has expired" in refused_match(table, client).message


def test_what_an_old_session_says_counts_no_more(table: Table) -> None:
    node = table.node()
    old = table.sessions[node.id]
    table.attach(node)
    with pytest.raises(NovaMeshError) as refused:
        table.do(LoadChanged(node.id, old, NodeLoad(1, True)))
    assert refused.value.code is Code.STALE
    table.sessions[node.id], new = old, table.sessions[node.id]
    table.detach(node)
    assert table.core.registry.sessions.get(node.id) is not None
    table.sessions[node.id] = new
    table.detach(node)
    assert table.core.registry.sessions.get(node.id) is None


def test_the_owner_sees_every_node(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    three = table.node("three")
    table.order(client, one)
    table.answer(table.assigned(one), chunks=5)
    table.detach(two)
    table.load(three, 0, accepting=False, reason="on battery")
    table.ban(two.id, "wrong answers")
    views = {view.node: view for view in table.nodes()}
    assert views[one.id].jobs_settled == 1
    assert views[one.id].tokens_settled == 5
    assert views[one.id].witnessed_tokens_per_s == pytest.approx(100.0)
    assert (views[two.id].attached, views[two.id].note) == (False, "banned: wrong answers")
    assert (views[three.id].free_slots, views[three.id].note) == (0, "on battery")
    assert [view.attached for view in table.nodes()] == [True, True, False]


def test_the_advert_not_renewed_for_longest_makes_room(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "POOL_NODES_MAX", 2)
    client, one = table.client(), table.node("one")
    table.clock.advance(1)
    two, three = table.node("two"), table.node("three")
    known = {view.node for view in table.nodes()}
    assert known == {two.id, three.id}
    assert table.core.registry.descriptor(one.id) is not None, "it is attached"
    assert len(table.match(client)) == 3
    assert table.core.registry.counts() == (6, 6)
    assert table.replayed().state() == table.core.state()


def test_whoever_never_submits_starves_nobody(table: Table) -> None:
    spammer, client = table.client("spammer"), table.client("client")
    nodes = [table.node("a", slots=2), table.node("b", slots=2)]
    served = 0
    for step in range(300):
        with contextlib.suppress(NovaMeshError):
            table.match(spammer)
        if step % 50 == 25:
            candidates = table.match(client)
            descriptors = [one.descriptor for one in candidates]
            order = client.seal(descriptors, table.now_ms, key=f"k{step}")
            view = table.submit(order, tuple(one.reservation for one in candidates))
            table.answer(table.assigned(next(node for node in nodes if node.id == view.node)))
            served += 1
        table.clock.advance(0.1)
    assert served == 6


def test_one_slot_is_shared_with_whoever_never_submits(table: Table) -> None:
    spammer, client, node = table.client("spammer"), table.client("client"), table.node(slots=1)
    held = table.match(spammer)
    assert len(held) == 1
    table.clock.advance(1.0)
    error = refused_match(table, client)
    assert (error.code, error.retry_after_ms) == (Code.BUSY, 1_000)
    assert "reserved for jobs about to be submitted" in error.message
    table.clock.advance(1.0)
    (unheld,) = table.match(spammer)  # a candidate, but no slot with it
    (candidate,) = table.match(client)
    with pytest.raises(NovaMeshError) as refused:
        table.submit(spammer.seal([unheld.descriptor], table.now_ms), (unheld.reservation,))
    assert refused.value.code is Code.BUSY
    table.submit(client.seal([candidate.descriptor], table.now_ms), (candidate.reservation,))
    table.answer(table.assigned(node))


def test_a_full_table_of_reservations_holds_no_more(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_coordinator.reservations.RESERVATIONS_MAX", 1)
    one, two = table.client("one"), table.client("two")
    table.node(slots=4)
    assert [len(table.match(client)) for client in (one, two)] == [1, 1]
    assert len(table.core.registry.reservations) == 1


def test_a_paused_pool_is_not_a_busy_one(table: Table) -> None:
    client, node = table.client(), table.node()
    (candidate,) = table.match(client)
    table.load(node, 0, accepting=False, reason="the owner paused this node until 18:00")
    error = refused_match(table, client)
    assert (error.code, error.retry_after_ms) == (Code.NO_CAPACITY, 0)
    assert "until 18:00" in error.message
    with pytest.raises(NovaMeshError, match="takes work any more") as refused:
        table.submit(client.seal([candidate.descriptor], table.now_ms), (candidate.reservation,))
    assert refused.value.code is Code.BUSY  # others may take it: the client asks again


def test_a_node_that_declines_as_busy_is_full_until_it_says_otherwise(table: Table) -> None:
    client, node, other = table.client(), table.node("a", slots=4), table.node("b")
    table.order(client, node, other)
    table.decide(table.assigned(node), accepted=False, code="busy")
    table.load(other, 0)
    assert refused_match(table, client).code is Code.BUSY
    table.load(node, 2)
    assert len(table.match(client)) == 1


@pytest.mark.parametrize("end", ["settle", "cancel", "expire", "fail"])
def test_a_slot_is_free_again_when_its_attempt_ends(table: Table, end: str) -> None:
    client, node = table.client(), table.node(slots=1)
    for number in range(3):
        order = table.order(client, node, key=f"k{number}")
        attempt = table.assigned(node)
        assert refused_match(table, client).code is Code.BUSY
        if end == "settle":
            table.answer(attempt)
        elif end == "cancel":
            table.cancel(client, order.id)
        elif end == "fail":
            table.fail(attempt)
        else:
            table.pass_time(61)
    session = table.core.registry.sessions.get(node.id)
    assert session is not None
    assert session.free == 1


def test_a_registry_goes_on_from_what_it_dumped(table: Table) -> None:
    nodes = [table.node(name) for name in ("a", "b")]
    state = table.core.registry.dump()
    assert [advert.node for advert in state.adverts] == sorted(node.id for node in nodes)
    again = registry.Registry(table.core.ledger, lambda node: 0, state)
    assert again.dump() == state
    for node in nodes:
        assert again.descriptor(node.id) == table.core.registry.descriptor(node.id)


def test_a_full_registry_forgets_whom_it_heard_of_longest_ago(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "POOL_NODES_MAX", 2)
    client, first = table.client(), table.node("a")
    table.clock.advance(1)
    others = [table.node("b")]
    table.clock.advance(1)
    others.append(table.node("c"))
    known = table.core.registry
    assert {view.node for view in table.nodes()} == {node.id for node in others}
    assert known.sessions.get(first.id) is not None
    (model,) = models(table, client)
    assert (model.nodes, model.free_slots) == (3, 6), "who is attached says itself what it is"
    assert known.counts() == (6, 6)
    assert len(table.match(client)) == 3


def test_a_renewal_that_says_nothing_new_is_presence_and_not_logged(table: Table) -> None:
    client, node = table.client(), table.node("a")
    logged = len(table.log)
    node.sequence += 1
    table.clock.advance(40)
    renew(table, node, free_slots=1)
    assert len(table.log) == logged
    (candidate,) = table.match(client)
    assert wire.decode(NodeDescriptor, candidate.descriptor.payload).free_slots == 1
    node.sequence += 1
    renew(table, node, slots=5)
    assert [type(record) for record in table.log[logged:]] == [DescriptorTaken]
