"""Nodes' side, word for word: what is logged, what is answered, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator import floor, inputs
from novamesh_coordinator.effects import Assign, StopAttempt, Wake
from novamesh_coordinator.events import AttemptEnded, EvidenceKept
from novamesh_coordinator.sessions import Session
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import (
    FinishReason,
    IdleReport,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobState,
    NodeDescriptor,
    NodeLoad,
    RunningAttempt,
)
from support.refusals import refused
from support.scene import Scene

NEWER = (Code.STALE, "this session has ended, a newer one took its place", "attach again")


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.table.effects.clear()
    return made


def session(scene: Scene) -> Session:
    found = scene.table.core.registry.sessions.get(scene.node.id)
    assert found is not None
    return found


def ended(scene: Scene) -> AttemptEnded:
    (record,) = scene.records(AttemptEnded)
    assert isinstance(record, AttemptEnded)
    return record


def test_a_node_goes_on_after_what_the_relay_has(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    table.send(attempt, attempt.chunk())
    claimed = replace(attempt.running, chunks=9)
    assert table.attach(scene.node, (claimed,)) == (replace(attempt.running, chunks=2),)
    table.pass_time(14.9)
    assert scene.state is JobState.RUNNING


@pytest.mark.parametrize("field", ["attempt", "fence", "job"])
def test_a_node_that_lists_another_attempt_is_given_the_job_anew(scene: Scene, field: str) -> None:
    table, running = scene.table, scene.attempt.running
    other = bytes(32) if field == "job" else getattr(running, field) + 1
    wrong: RunningAttempt = replace(running, **{field: other})
    assert table.attach(scene.node, (wrong,)) == ()
    end = ended(scene)
    assert (end.code, end.message, end.lost, end.node, end.attempt, end.fence, end.evidence) == (
        Code.NODE_LOST,
        "the node came back without the attempt",
        True,
        scene.node.id,
        1,
        running.fence,
        None,
    )
    assert not table.taken(StopAttempt)
    assert table.assigned(scene.node).ids["attempt"] == 2


def test_so_many_attempts_are_resumed_and_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = scene.table
    table.order(scene.client, scene.node, key="job-2")
    second = table.assigned(scene.node)
    monkeypatch.setattr(floor, "RUNNING_MAX", 1)
    listed = (scene.attempt.running, second.running)
    assert table.attach(scene.node, listed) == (scene.attempt.running,)
    assert ended(scene).attempt == 1
    assert [assign.node for assign in table.taken(Assign)] == [scene.node.id]


def test_a_banned_node_cannot_come_back(scene: Scene) -> None:
    scene.table.ban(scene.node.id)
    with pytest.raises(NovaMeshError) as caught:
        scene.table.attach(scene.node)
    assert caught.value.code is Code.BANNED


def test_the_end_of_an_older_stream_changes_nothing(scene: Scene) -> None:
    table = scene.table
    older = table.sessions[scene.node.id]
    table.attach(scene.node, (scene.attempt.running,))
    table.do(inputs.NodeDetached(scene.node.id, older))
    assert session(scene).session == table.sessions[scene.node.id]


def test_a_stream_that_ended_moves_what_had_not_begun(scene: Scene) -> None:
    table, other = scene.table, scene.table.node("other")
    order = table.order(scene.client, scene.node, other, key="job-2")
    attempt = table.assigned(scene.node)
    assert attempt.ids["job"] == order.id
    table.detach(scene.node)
    assert table.assigned(other).ids["attempt"] == 2
    assert (ended(scene).message, ended(scene).lost) == (
        "the node vanished before its first token",
        True,
    )


def test_only_the_newest_stream_says_how_much_more_a_node_takes(scene: Scene) -> None:
    table = scene.table
    older = table.sessions[scene.node.id]
    table.load(scene.node, 0, accepting=False, reason="gaming")
    table.clock.advance(1)
    table.load(scene.node, 0, accepting=False, reason="gaming")
    now = session(scene)
    assert (now.free, now.accepting, now.refusal, now.seen_ms) == (
        0,
        False,
        "gaming",
        table.now_ms,
    )
    table.attach(scene.node)
    with refused(*NEWER):
        table.do(inputs.LoadChanged(scene.node.id, older, NodeLoad(1, True, "")))
    with refused(*NEWER):
        table.do(inputs.IdleAsked(scene.node.id, older))
    descriptor = scene.node.descriptor(table.now_ms, sequence=2)
    opened = table.verifier.open_descriptor(descriptor, scene.node.id, table.now_ms)
    with refused(*NEWER):
        table.do(inputs.DescriptorRenewed(scene.node.id, older, opened))
    table.do(inputs.DescriptorRenewed(scene.node.id, table.sessions[scene.node.id], opened))
    known = table.core.registry.descriptor(scene.node.id)
    assert isinstance(known, NodeDescriptor)
    assert known.sequence == 2


def test_a_node_may_ask_why_it_was_idle(scene: Scene) -> None:
    table = scene.table
    table.match(scene.client)
    report = table.do(inputs.IdleAsked(scene.node.id, table.sessions[scene.node.id]))
    assert report == IdleReport(considered=1, chosen=1, reasons=())


@pytest.mark.parametrize("said", ["the owner is playing", ""])
def test_a_refusal_is_logged_in_the_nodes_words(said: str) -> None:
    table = Scene().table
    client, node = table.client("second"), table.node("second node")
    table.order(client, node)
    attempt = table.assigned(node)
    answer = JobDecision(attempt._header(table.now_ms), **attempt.ids, accepted=False, code="busy")
    sealed = node.sign(replace(answer, message=said))
    opened = table.verifier.open_of(sealed, JobDecision, node.id, table.now_ms)
    table.effects.clear()
    table.do(inputs.AttemptDecided(table.sessions[node.id], opened))
    (end,) = [record for record in table.log if isinstance(record, AttemptEnded)]
    words = said or "the node declined the job"
    assert (end.code, end.message, end.lost, end.evidence) == (Code.BUSY, words, False, sealed)
    assert not table.taken(StopAttempt)
    filled = table.core.registry.sessions.get(node.id)
    assert filled is not None
    assert filled.free == 0


def test_another_refusal_gives_the_slot_back(scene: Scene) -> None:
    table = scene.table
    table.order(scene.client, scene.node, key="job-2")
    attempt = table.assigned(scene.node)
    assert session(scene).free == 0
    table.decide(attempt, accepted=False, code="policy")
    assert session(scene).free == 1


def test_what_was_sent_again_is_not_kept_twice(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    sent = [attempt.chunk(), attempt.chunk()]
    for chunk in sent:
        table.send(attempt, chunk)
    assert table.taken(Wake) == [Wake(scene.order.id)] * 2
    table.pass_time(14.9)
    table.send(attempt, sent[1])
    stream = table.core.relay.get(scene.order.id)
    assert stream is not None
    assert stream.chain.chunks == 2
    assert not table.taken(Wake)
    table.pass_time(0.2)
    assert scene.state is JobState.FAILED, "a chunk of before renews no lease"


def test_a_chunk_out_of_order_ends_the_attempt(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    attempt.chunk()
    table.send(attempt, attempt.chunk())
    end = ended(scene)
    assert (end.code, end.lost, end.evidence) == (Code.CORRUPT, True, None)
    assert [stop.code for stop in table.taken(StopAttempt)] == [Code.STALE]


def test_more_tokens_than_the_terms_allow_end_the_attempt(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(199))
    table.send(attempt, attempt.chunk(1))
    assert scene.state is JobState.RUNNING
    table.send(attempt, attempt.chunk(1))
    assert ended(scene).message == (
        "the answer is longer than the 200 tokens of its terms, or has more than 264 chunks"
    )


def test_no_answer_has_more_than_so_many_chunks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "CHUNKS_MAX", 2)
    table, attempt = scene.table, scene.attempt
    for _ in range(3):
        table.send(attempt, attempt.chunk(0))
    assert scene.state is JobState.RUNNING
    table.send(attempt, attempt.chunk(0))
    assert ended(scene).message.endswith("or has more than 2 chunks")


def test_a_checkpoint_wakes_the_watchers(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    table.taken(Wake)
    table.checkpoint(attempt)
    assert table.taken(Wake) == [Wake(scene.order.id)]
    table.checkpoint(attempt, position=7)
    assert ended(scene).message == "its checkpoint names another chain than the relay saw"


def test_a_node_that_stopped_early_is_told_apart_from_one_that_is_done(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    sealed = attempt.attest(table.now_ms, FinishReason.FAILED)
    table.attest(attempt, sealed)
    end = ended(scene)
    words = "the node stopped before the answer was complete"
    assert (end.code, end.message, end.lost, end.evidence) == (
        Code.NODE_LOST,
        words,
        True,
        sealed,
    )
    assert not table.taken(StopAttempt)
    assert table.view(scene.client, scene.order.id).tokens == 1


@pytest.mark.parametrize("finish", [FinishReason.STOP, FinishReason.LENGTH])
def test_a_whole_answer_settles(scene: Scene, finish: FinishReason) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt, attempt.attest(table.now_ms, finish))
    assert scene.state is JobState.SETTLED


def test_a_false_attestation_is_evidence_against_its_node(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    sealed = attempt.attest(table.now_ms, chunks=2)
    table.attest(attempt, sealed)
    end = ended(scene)
    assert (end.code, end.evidence, end.lost) == (Code.CORRUPT, sealed, True)


def test_an_attestation_of_a_job_that_nobody_knows_is_dropped(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    before = len(table.log)
    table.attest(attempt, attempt.attest(table.now_ms, job=bytes(32)))
    assert len(table.log) == before


def test_what_comes_too_late_names_its_sender(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    sealed = attempt.attest(table.now_ms)
    table.attest(attempt, sealed)
    (kept,) = scene.records(EvidenceKept)
    assert kept == EvidenceKept(
        scene.order.id, table.now_ms, scene.node.id, "late_attestation", sealed
    )


def test_an_older_stream_may_attest_nothing(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    older = table.sessions[scene.node.id]
    table.attach(scene.node, (attempt.running,))
    sealed = attempt.attest(table.now_ms)
    claim = table.verifier.open_of(sealed, InferenceAttestation, scene.node.id, table.now_ms)
    with refused(*NEWER):
        table.do(inputs.AttemptAttested(older, claim))


@pytest.mark.parametrize("said", ["out of memory", ""])
def test_a_node_that_gives_up_says_why(scene: Scene, said: str) -> None:
    table, attempt = scene.table, scene.attempt
    failure = JobFailure(attempt._header(table.now_ms), **attempt.ids, code="unavailable")
    sealed = scene.node.sign(replace(failure, message=said))
    opened = table.verifier.open_of(sealed, JobFailure, scene.node.id, table.now_ms)
    table.do(inputs.AttemptFailed(table.sessions[scene.node.id], opened))
    end = ended(scene)
    words = said or "the node could not go on"
    assert (end.code, end.message, end.lost, end.evidence) == (
        Code.UNAVAILABLE,
        words,
        False,
        sealed,
    )
    assert not table.taken(StopAttempt)


def test_a_stop_says_why(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.cancel(scene.client, scene.order.id)
    table.taken(StopAttempt)
    table.progress(attempt, 1)
    ids = attempt.ids
    assert table.taken(StopAttempt) == [
        StopAttempt(
            scene.node.id,
            table.sessions[scene.node.id],
            scene.order.id,
            ids["attempt"],
            ids["fence"],
            Code.CANCELLED,
        )
    ]
    scene.attempt.ids["job"] = bytes(32)
    table.progress(attempt, 1)
    assert [stop.code for stop in table.taken(StopAttempt)] == [Code.STALE]


def test_the_liar_is_named(scene: Scene) -> None:
    """Reputation is kept by PeerId: the error itself says whose it is."""
    table = scene.table
    job = table.core.jobs.get(scene.order.id)
    stream = table.core.relay.get(scene.order.id)
    assert job is not None
    assert stream is not None
    with pytest.raises(floor.PeerError) as caught:
        table.core.floor._check_room(job, stream, 201)
    assert caught.value.peer == format_node_id(scene.node.id)


@pytest.mark.parametrize(("done", "state"), [(0, JobState.FAILED), (1, JobState.RUNNING)])
def test_only_progress_renews_a_lease(scene: Scene, done: int, state: JobState) -> None:
    table = scene.table
    table.pass_time(14.9)
    table.progress(scene.attempt, done)
    table.pass_time(0.2)
    assert scene.state is state
