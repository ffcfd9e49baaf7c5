"""Clients' side: the same terms are the same job, a key names one job, refusals come at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator import desk
from novamesh_coordinator.effects import PassAck, Publish
from novamesh_coordinator.events import AttemptSettled, EvidenceKept
from novamesh_coordinator.inputs import WatchAsked
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState, ProfileDigest, SealedJob, WatchQuery
from support.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


def code_of(refused: pytest.ExceptionInfo[NovaMeshError]) -> Code:
    return refused.value.code


def test_the_same_terms_are_the_same_job(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    before = len(table.log)
    assert table.submit(order).state is JobState.ASSIGNED
    table.answer(table.assigned(node))
    assert table.submit(order).state is JobState.SETTLED
    assert len([r for r in table.log[:before] if type(r).__name__ == "JobAdmitted"]) == 1


def test_a_key_names_one_job_of_one_client(table: Table) -> None:
    client, other, node = table.client(), table.client("other"), table.node()
    table.order(client, node, key="k")
    with pytest.raises(NovaMeshError) as refused:
        table.order(client, node, key="k")
    assert code_of(refused) is Code.CONFLICT
    table.order(other, node, key="k")


def test_a_job_is_told_to_its_own_client_only(table: Table) -> None:
    client, other, node = table.client(), table.client("other"), table.node()
    order = table.order(client, node)
    for ask in (table.view, table.cancel):
        with pytest.raises(NovaMeshError) as refused:
            ask(other, order.id)
        assert code_of(refused) is Code.NOT_FOUND
    query = table.verifier.open_query(other.watch(order.id, table.now_ms), WatchQuery, table.now_ms)
    with pytest.raises(NovaMeshError) as refused:
        table.do(WatchAsked(query))
    assert code_of(refused) is Code.NOT_FOUND


def test_a_watch_shows_where_the_job_is(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.taken(Publish)
    query = table.verifier.open_query(
        client.watch(order.id, table.now_ms), WatchQuery, table.now_ms
    )
    table.do(WatchAsked(query))
    assert table.taken(Publish)[0].view.state is JobState.ASSIGNED


def test_candidates_that_are_gone_are_refused_at_once(table: Table) -> None:
    client, node = table.client(), table.node()
    descriptor = node.advert
    assert descriptor is not None
    table.detach(node)
    with pytest.raises(NovaMeshError) as refused:
        table.submit(client.seal([descriptor], table.now_ms))
    assert code_of(refused) is Code.BUSY
    assert "new candidates" in refused.value.hint
    assert table.views(client) == ()


def test_candidates_that_are_full_are_worth_waiting_for(table: Table) -> None:
    client, node = table.client(), table.node(slots=1)
    table.order(client, node)
    with pytest.raises(NovaMeshError) as refused:
        table.order(client, node, key="job-2")
    assert (code_of(refused), refused.value.retry_after_ms > 0) == (Code.BUSY, True)


def test_the_clients_first_choice_is_taken_if_it_can(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    assert table.view(client, table.order(client, two, one).id).node == two.id
    table.load(one, 0)
    assert table.view(client, table.order(client, one, two, key="b").id).node == two.id


def test_the_body_must_be_the_one_of_the_terms(table: Table) -> None:
    client, node = table.client(), table.node()
    assert node.advert is not None
    job = client.seal([node.advert], table.now_ms).job
    other = bytes([job.body[0] ^ 1]) + job.body[1:]
    for forged in (
        SealedJob(job.terms, other, job.wraps),
        SealedJob(job.terms, job.body + b"x", job.wraps),
        SealedJob(job.terms, job.body, job.wraps * 2),
    ):
        with pytest.raises(NovaMeshError) as refused:
            table.verifier.open_job(forged, (), table.now_ms)
        assert code_of(refused) is Code.BAD_REQUEST


def test_expired_terms_are_not_admitted(table: Table) -> None:
    client, node = table.client(), table.node()
    assert node.advert is not None
    order = client.seal([node.advert], table.now_ms)
    table.clock.advance(600)
    with pytest.raises(NovaMeshError) as refused:
        table.submit(order)
    assert code_of(refused) is Code.NOT_FRESH


def test_a_client_has_so_many_jobs_at_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "CLIENT_JOBS_MAX", 1)
    client, node = table.client(), table.node()
    table.order(client, node)
    with pytest.raises(NovaMeshError, match="1 jobs at work") as refused:
        table.order(client, node, key="job-2")
    assert code_of(refused) is Code.BUSY
    monkeypatch.setattr(desk, "CLIENT_JOBS_MAX", 9)
    monkeypatch.setattr(desk, "LIVE_JOBS_MAX", 1)
    with pytest.raises(NovaMeshError, match="the pool is full"):
        table.order(client, node, key="job-3")


def failed_half_way(table: Table) -> tuple[object, object, JobId]:
    client, one = table.client(), table.node("one", slots=4)
    order = table.order(client, one)
    attempt = table.assigned(one)
    table.decide(attempt)
    table.send(attempt, attempt.chunk(6))
    table.checkpoint(attempt)
    table.send(attempt, attempt.chunk(2))
    table.detach(one)
    table.pass_time(16)
    table.attach(one)
    return client, one, order.id


def test_a_continued_answer_pays_each_position_once(table: Table) -> None:
    client, node, parent = failed_half_way(table)
    child = table.order(client, node, key="job-2", parent=parent, held=4)  # type: ignore[arg-type]
    table.answer(table.assigned(node), chunks=5)  # type: ignore[arg-type]
    paid = [r for r in table.log if isinstance(r, AttemptSettled)]
    assert [(p.start_position, p.completion_tokens) for p in paid] == [(0, 6), (6, 3)]
    job = table.core.jobs.get(child.id)
    assert job is not None
    assert job.root == parent


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parent_job": bytes(32), "prefix_digest": bytes(32)}, Code.BAD_REQUEST),
        ({"start_position": 3}, Code.BAD_REQUEST),
        ({"prefix_digest": bytes(32)}, Code.BAD_REQUEST),
        (
            {"parent_job": bytes(32), "prefix_digest": bytes(32), "start_position": 201},
            Code.BAD_REQUEST,
        ),
        (
            {"parent_job": bytes(32), "prefix_digest": bytes(32), "start_position": 3},
            Code.NOT_FOUND,
        ),
    ],
)
def test_terms_that_continue_nothing_are_refused(
    table: Table, changes: dict[str, object], code: Code
) -> None:
    client, node = table.client(), table.node()
    with pytest.raises(NovaMeshError) as refused:
        table.order(client, node, **changes)
    assert code_of(refused) is code


def test_an_answer_at_work_is_not_continued(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    with pytest.raises(NovaMeshError) as refused:
        table.order(client, node, key="job-2", parent=order.id, held=1)
    assert (code_of(refused), refused.value.hint) == (Code.CONFLICT, "cancel it first")


def test_another_model_continues_nothing(table: Table) -> None:
    client, node, parent = failed_half_way(table)
    with pytest.raises(NovaMeshError) as refused:
        table.order(
            client,  # type: ignore[arg-type]
            node,  # type: ignore[arg-type]
            key="job-2",
            parent=parent,
            held=1,
            model_profile=ProfileDigest(bytes(32)),
        )
    assert code_of(refused) is Code.BAD_REQUEST


def test_an_ack_goes_to_the_node_at_work(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk())
    early = client.acknowledge(attempt, table.now_ms, chunks=0)
    table.acknowledge(client.acknowledge(attempt, table.now_ms))
    assert len(table.taken(PassAck)) == 1
    table.acknowledge(early)
    table.detach(node)
    table.acknowledge(client.acknowledge(attempt, table.now_ms))
    table.cancel(client, order.id)
    table.acknowledge(client.acknowledge(attempt, table.now_ms))
    assert table.taken(PassAck) == []


def test_a_receipt_is_logged_once(table: Table) -> None:
    client, node = table.client(), table.node()
    table.order(client, node)
    attempt = table.assigned(node)
    table.answer(attempt)
    receipt = client.countersign(attempt, table.now_ms)
    table.countersign(receipt)
    table.countersign(receipt)
    kept = [r for r in table.log if isinstance(r, EvidenceKept)]
    assert [(r.kind, r.issuer) for r in kept] == [("client_receipt", client.id)]
    with pytest.raises(NovaMeshError) as refused:
        table.countersign(client.countersign(attempt, table.now_ms, fence=99))
    assert code_of(refused) is Code.STALE


def test_jobs_are_listed_newest_first(table: Table) -> None:
    client, node = table.client(), table.node(slots=4)
    orders = [table.order(client, node, key=f"k{n}") for n in range(3)]
    listed = [view.job for view in table.views(client)]
    assert listed == [order.id for order in reversed(orders)]
    assert len(table.views(client, count=2)) == 2
    assert table.views(table.client("other")) == ()


def test_a_cancelled_job_remembers_what_was_relayed(table: Table) -> None:
    client, node = table.client(), table.node()
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(7))
    table.cancel(client, order.id)
    table.pass_time(700)
    assert replace(table.view(client, order.id)).tokens == 7
