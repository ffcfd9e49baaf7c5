"""Clients' side, word for word: what they are refused, and what they can do about it."""

from __future__ import annotations

from typing import Any

import pytest

from novamesh_coordinator import desk
from novamesh_coordinator.effects import PassAck, Publish
from novamesh_coordinator.events import EvidenceKept, JobAdmitted
from novamesh_coordinator.inputs import WatchAsked
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState, ProfileDigest, WatchQuery
from support.actors import ClientActor
from support.parties import COORDINATOR, PROFILE
from support.refusals import refused
from support.scene import Scene
from support.table import Table

HINT_GONE = "ended jobs are kept for half an hour; your receipts: novamesh receipt ls"


@pytest.fixture
def table() -> Table:
    return Table()


def refusal(table: Table, *arguments: Any, **changes: Any) -> NovaMeshError:
    before = len(table.log)
    with pytest.raises(NovaMeshError) as caught:
        table.order(*arguments, **changes)
    assert len(table.log) == before, "a refused job leaves no trace"
    return caught.value


def test_what_is_admitted_is_what_the_terms_say(table: Table) -> None:
    client, one, two = table.client(), table.node("one"), table.node("two")
    order = table.order(client, one, two, key="mine", timeout_ms=9_000)
    wanted = order.terms.message
    (admitted,) = [record for record in table.log if isinstance(record, JobAdmitted)]
    assert admitted == JobAdmitted(
        job=order.id,
        at_ms=table.now_ms,
        client=client.id,
        key="mine",
        model_profile=PROFILE,
        timeout_ms=9_000,
        max_tokens=200,
        body_bytes=wanted.body_bytes,
        start_position=0,
        root=order.id,
        candidates=(one.id, two.id),
        terms=order.terms.envelope,
    )


def test_strangers_have_no_jobs(table: Table) -> None:
    node, stranger = table.node(), ClientActor("stranger", COORDINATOR.node_id)
    assert refusal(table, stranger, node).code is Code.NOT_A_MEMBER
    member = table.client()
    table.order(member, node)
    table.ban(member.id)
    assert refusal(table, member, node, key="job-2").code is Code.BANNED


def test_a_job_that_is_not_yours_is_none(table: Table) -> None:
    scene = Scene()
    name = scene.order.id.hex()[:12]
    other = scene.table.client("other")
    for ask in (scene.table.view, scene.table.cancel):
        with refused(Code.NOT_FOUND, f"you have no job {name} here", HINT_GONE):
            ask(other, scene.order.id)
    with refused(Code.NOT_FOUND, "you have no job 000000000000 here", HINT_GONE):
        scene.table.view(scene.client, JobId(bytes(32)))


def test_a_key_that_is_taken_names_its_job(table: Table) -> None:
    client, node = table.client(), table.node()
    first = table.order(client, node, key="k")
    error = refusal(table, client, node, key="k")
    assert (error.code, error.message, error.hint) == (
        Code.CONFLICT,
        f"this key already names job {first.id.hex()[:12]} with other terms",
        "follow that job, or choose a new idempotency key",
    )


def test_a_watch_shows_the_job_to_its_watchers() -> None:
    scene = Scene()
    table = scene.table
    table.taken(Publish)
    sealed = scene.client.watch(scene.order.id, table.now_ms)
    table.do(WatchAsked(table.verifier.open_query(sealed, WatchQuery, table.now_ms)))
    (shown,) = table.taken(Publish)
    assert (shown.view.job, shown.view.state) == (scene.order.id, JobState.RUNNING)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ("CLIENT_JOBS_MAX", "you have 1 jobs at work, as many as a client may have"),
        ("LIVE_JOBS_MAX", "the pool is full"),
        ("JOBS_KEPT_MAX", "the pool is full"),
    ],
)
def test_a_bound_is_refused_with_a_retry_time(
    table: Table, monkeypatch: pytest.MonkeyPatch, bound: str, words: str
) -> None:
    client, node = table.client(), table.node()
    monkeypatch.setattr(desk, bound, 1)
    first = table.order(client, node)
    error = refusal(table, client, node, key="job-2")
    assert (error.code, error.message, error.hint, error.retry_after_ms) == (
        Code.BUSY,
        words,
        "try again shortly",
        desk.RETRY_MS,
    )
    table.submit(first)  # the same job is no further one
    table.cancel(client, first.id)
    if bound == "JOBS_KEPT_MAX":
        assert refusal(table, client, node, key="job-2").message == words
    else:
        table.order(client, node, key="job-2")


def test_candidates_that_moved_are_worth_asking_for_anew(table: Table) -> None:
    client, node = table.client(), table.node()
    for away in ("gone", "closed"):
        if away == "gone":
            table.load(node, 1, accepting=False)
        else:
            table.detach(node)
        error = refusal(table, client, node)
        assert (error.code, error.message, error.hint, error.retry_after_ms) == (
            Code.BUSY,
            "none of the nodes the job is sealed for is here and takes work any more",
            "ask for new candidates and seal the job again",
            desk.MOVED_MS,
        )


def test_a_job_that_no_candidate_could_ever_take_is_told_so(table: Table) -> None:
    client, node = table.client(), table.node()
    terms = client.seal([node.descriptor(table.now_ms)], table.now_ms).terms.message
    sampling = type(terms.sampling)
    wanted = sampling(seed_commitment=terms.sampling.seed_commitment, max_tokens=600)
    error = refusal(table, client, node, sampling=wanted)
    assert error.code is Code.NO_CAPACITY
    assert "the job needs about 600 tokens of context, it takes 512" in error.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_position": 1}, "start, parent and forced prefix do not fit together"),
        ({"prefix_digest": bytes(32)}, "start, parent and forced prefix do not fit together"),
        ({"parent_job": bytes(32)}, "start, parent and forced prefix do not fit together"),
        (
            {"start_position": 201, "parent_job": bytes(32), "prefix_digest": bytes(32)},
            "the answer has 201 tokens already, its terms allow 200",
        ),
    ],
)
def test_terms_that_continue_nothing_say_why(
    table: Table, changes: dict[str, Any], words: str
) -> None:
    error = refusal(table, table.client(), table.node(), **changes)
    assert (error.code, error.message) == (Code.BAD_REQUEST, words)


def test_a_job_is_continued_when_it_ended_and_by_its_own_model() -> None:
    scene = Scene()
    table, going_on = scene.table, {"parent": scene.order.id, "held": 1, "key": "next"}
    error = refusal(table, scene.client, scene.node, **going_on)
    assert (error.code, error.message, error.hint) == (
        Code.CONFLICT,
        "the job to continue is still at work",
        "cancel it first",
    )
    table.cancel(scene.client, scene.order.id)
    other = ProfileDigest(bytes(32))
    error = refusal(table, scene.client, scene.node, model_profile=other, **going_on)
    assert (error.code, error.message) == (
        Code.BAD_REQUEST,
        "an answer is continued by the model it began with",
    )
    stranger = table.client("stranger")
    assert refusal(table, stranger, scene.node, **going_on).code is Code.NOT_FOUND
    second = table.order(scene.client, scene.node, **going_on)
    job = table.core.jobs.get(second.id)
    assert job is not None
    assert (job.root, job.start_position) == (scene.order.id, 1)


def test_an_ack_goes_on_as_it_came() -> None:
    scene = Scene()
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    sealed = scene.client.acknowledge(attempt, table.now_ms)
    table.acknowledge(sealed)
    session = table.sessions[scene.node.id]
    assert table.taken(PassAck) == [PassAck(scene.node.id, session, sealed)]
    table.acknowledge(scene.client.acknowledge(attempt, table.now_ms))
    assert len(table.taken(PassAck)) == 1, "the same again may be a client's new challenge"
    attempt.ids["fence"] += 1
    table.acknowledge(scene.client.acknowledge(attempt, table.now_ms))
    assert not table.taken(PassAck), "an old fence is nobody's"


def test_a_receipt_is_of_the_last_attempt_and_kept_within_bounds() -> None:
    scene = Scene()
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    fence = attempt.ids["fence"]
    for changed, said in (({"attempt": 2}, 2), ({"fence": fence + 1}, 1)):
        attempt.ids |= changed
        late = scene.client.countersign(attempt, table.now_ms)
        with refused(Code.STALE, f"the receipt is of attempt {said}, the job had 1"):
            table.countersign(late)
        attempt.ids |= {"attempt": 1, "fence": fence}
    sealed = scene.client.countersign(attempt, table.now_ms)
    table.countersign(sealed)
    (kept,) = scene.records(EvidenceKept)
    assert kept == EvidenceKept(
        scene.order.id, table.now_ms, scene.client.id, "client_receipt", sealed
    )


def test_no_receipt_is_kept_above_the_bound_of_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    monkeypatch.setattr(desk, "EVIDENCE_KEPT_MAX", 0)
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    table.countersign(scene.client.countersign(attempt, table.now_ms))
    assert not scene.records(EvidenceKept)


def test_a_job_that_ended_is_not_cancelled_again() -> None:
    scene = Scene()
    for _ in range(2):
        view = scene.table.cancel(scene.client, scene.order.id)
        assert (view.state, view.code) == (JobState.CANCELLED, "cancelled")
