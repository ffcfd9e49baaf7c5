"""The desk: every assignment is decided, every attempt ends once, and no job ends the node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_node.attempt import AttemptKey
from novamesh_node.crew import Crew
from novamesh_node.desk import SLOTS_MAX
from novamesh_node.devices import DeviceLostError
from novamesh_node.governor import Ruling
from novamesh_proto import envelope
from novamesh_proto.attestation import check_attestation
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachCancel,
    FinishReason,
    InferenceAttestation,
    JobFailure,
    JobTerms,
    MessageId,
)
from novamesh_proto.sealing import forced_prefix_digest
from support.fake_crew import station
from support.fake_engine import CONTEXT, FIRST_TOKEN, FakeEngine
from support.offers import Offers
from support.parties import NETWORK, body
from support.working_desk import LONG, node, opened, read, tokens


async def test_a_job_is_answered_and_attested() -> None:
    async with node() as at:
        offer = at.offers.make(body("What is 2 + 3?"), sampling={"max_tokens": 6})
        at.desk.take(offer.message)
        assert (await at.decision()).accepted
        messages = await at.until("attestation")
        bodies = read(offer, messages)
        assert tokens(bodies) == list(range(FIRST_TOKEN, FIRST_TOKEN + 6))
        assert bodies[-1].finish is FinishReason.LENGTH
        terms = envelope.open(offer.message.job.terms, JobTerms, network=NETWORK)
        sealed = messages[-1].attestation
        assert sealed is not None
        attestation = envelope.open(sealed, InferenceAttestation, network=NETWORK)
        assert check_attestation(attestation, terms, offer.assignment).completion_tokens == 6
        await at.idle()
        assert (at.owner.taken, at.owner.over) == (1, 1)
    assert at.engine.submitted[0].sampling.seed == offer.body.client_seed


async def test_a_continued_answer_starts_behind_its_prefix() -> None:
    async with node() as at:
        parent = bytes(range(32))
        content = body(prefix_token_ids=(FIRST_TOKEN, FIRST_TOKEN + 1))
        offer = at.offers.make(
            content,
            sampling={"max_tokens": 5},
            wanted={
                "parent_job": parent,
                "start_position": 2,
                "prefix_digest": forced_prefix_digest(content, parent),  # type: ignore[arg-type]
            },
        )
        at.desk.take(offer.message)
        messages = await at.until("attestation")
        assert tokens(read(offer, messages)) == [FIRST_TOKEN + 2, FIRST_TOKEN + 3, FIRST_TOKEN + 4]
        claim = opened(messages[-1].attestation, InferenceAttestation)
        assert (claim.start_position, claim.completion_tokens) == (2, 3)


async def test_what_cannot_be_verified_gets_no_answer() -> None:
    async with node() as at:
        offer = at.offers.make()
        bad = replace(offer.message.assignment.signatures[0], sig=bytes(64))
        forged = replace(offer.message.assignment, signatures=(bad,))
        at.desk.take(replace(offer.message, assignment=forged))
        assert len(at.outbox) == 0
        assert at.owner.taken == 0


async def test_each_refusal_is_a_signed_decision() -> None:
    async with node() as at:
        offer = at.offers.make()
        at.desk.take(offer.message)
        assert (await at.decision()).accepted
        at.desk.take(offer.message)
        assert (await at.decision()).code == Code.REPLAYED
        at.owner.now = Ruling(0, False, "the owner paused this node")
        at.desk.take(at.offers.make().message)
        refusal = await at.decision()
        assert (refusal.accepted, refusal.code) == (False, Code.UNAVAILABLE)
        assert "paused" in refusal.message


async def test_a_body_for_another_descriptor_is_declined() -> None:
    async with node() as at:
        at.desk.take(Offers().make().message)
        assert (await at.decision()).code == Code.CANNOT_OPEN
        await at.idle()


async def test_a_prompt_that_does_not_fit_is_declined() -> None:
    async with node() as at:
        at.desk.take(at.offers.make(body("x" * CONTEXT)).message)
        assert (await at.decision()).code == Code.TOO_LARGE
        await at.idle()


async def test_a_device_takes_no_more_than_its_slots() -> None:
    async with node(crew=Crew([station("cpu", slots=1)], SLOTS_MAX)) as at:
        first = at.offers.make(sampling={"max_tokens": LONG})
        at.desk.take(first.message)
        assert (await at.decision()).accepted
        at.desk.take(at.offers.make().message)
        assert (await at.decision()).code == Code.BUSY
        at.desk.cancel(AttachCancel(first.job, 1, first.fence, Code.STALE.value))
        await at.idle()
        at.desk.take(at.offers.make().message)
        await at.until("attestation")


async def test_each_answer_is_attested_by_the_device_that_computed_it() -> None:
    names = ("GPU-1a2b3c4d-0000", "GPU-9f8e7d6c-0000")
    async with node(crew=Crew([station(name) for name in names], SLOTS_MAX)) as at:
        seen = set()
        for _ in names:
            at.desk.take(at.offers.make(sampling={"max_tokens": 2000}).message)
        for _ in names:
            sealed = (await at.until("attestation"))[-1].attestation
            seen.add(opened(sealed, InferenceAttestation).hardware.name.rpartition(" ")[2])
        assert seen == {"GPU-1a2b3c4d", "GPU-9f8e7d6c"}


async def test_a_model_whose_device_is_out_is_declined() -> None:
    crew = Crew([station("GPU-1"), station("GPU-2")], SLOTS_MAX)
    async with node(crew=crew) as at:
        at.desk.take(at.offers.make(sampling={"max_tokens": LONG}).message)
        assert (await at.decision()).accepted
        for each in crew.stations:
            crew.fail(each, DeviceLostError("AcceleratorError"))
        (*_, last) = await at.until("failure")
        assert opened(last.failure, JobFailure).code == Code.UNAVAILABLE
        await at.idle()
        at.desk.take(at.offers.make().message)
        assert (await at.decision()).code == Code.UNAVAILABLE
        assert at.owner.taken == 1


async def test_a_full_disk_declines_and_the_node_lives() -> None:
    def full(attempt: MessageId, until_ms: int) -> None:
        raise NovaMeshError(Code.STORAGE, "the disk is full")

    async with node(remember=full) as at:
        at.desk.take(at.offers.make().message)
        assert (await at.decision()).code == Code.STORAGE
        assert at.owner.taken == 0


@pytest.mark.parametrize("code", [Code.CANCELLED, Code.EXPIRED])
async def test_a_stopped_answer_ends_with_its_final_chunk_and_attestation(code: Code) -> None:
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": LONG})
        at.desk.take(offer.message)
        messages = await at.until("chunk")
        order = AttachCancel(offer.job, 1, offer.fence, code.value)
        at.desk.cancel(order)
        at.desk.cancel(order)
        messages += await at.until("attestation")
        assert read(offer, messages)[-1].finish is FinishReason.CANCELLED
        await at.idle()


async def test_what_nobody_wants_ends_in_silence() -> None:
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": LONG})
        at.desk.take(offer.message)
        await at.until("chunk")
        at.desk.cancel(AttachCancel(offer.job, 1, offer.fence, Code.STALE.value))
        await at.idle()
        assert at.owner.over == 1
        while len(at.outbox):
            left = await at.next()
            assert left.attestation is None
            assert left.failure is None


async def test_a_cancel_before_the_task_began_frees_the_slot() -> None:
    async with node() as at:
        offer = at.offers.make()
        at.desk.take(offer.message)
        at.desk.cancel(AttachCancel(offer.job, 1, offer.fence, Code.STALE.value))
        await at.idle()
        assert (at.owner.taken, at.owner.over) == (1, 1)


async def test_an_engine_failure_is_a_signed_failure_and_the_next_job_runs() -> None:
    def explode() -> None:
        if at.engine.steps == 2:
            raise RuntimeError("boom")

    async with node(FakeEngine(hook=explode)) as at:
        at.desk.take(at.offers.make(sampling={"max_tokens": 50}).message)
        (*_, last) = await at.until("failure")
        assert opened(last.failure, JobFailure).code == Code.INTERNAL
        offer = at.offers.make()
        at.desk.take(offer.message)
        await at.until("attestation")


async def test_a_job_for_which_memory_ran_out_fails_and_says_so() -> None:
    async with node(FakeEngine(short_at=2)) as at:
        at.desk.take(at.offers.make(sampling={"max_tokens": 50}).message)
        (*_, last) = await at.until("failure")
        failure = opened(last.failure, JobFailure)
        assert failure.code == Code.BUSY
        assert "ran out of memory" in failure.message
        await at.idle()
        at.desk.take(at.offers.make().message)
        await at.until("attestation")


async def test_a_job_beyond_its_time_fails_as_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_node.desk.GRACE_S", 0.0)
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": LONG}, wanted={"timeout_ms": 60})
        at.desk.take(offer.message)
        (*_, last) = await at.until("failure")
        assert opened(last.failure, JobFailure).code == Code.EXPIRED
        await at.idle()


async def test_abandoning_tells_the_pool() -> None:
    async with node() as at:
        at.desk.take(at.offers.make(sampling={"max_tokens": LONG}).message)
        await at.until("chunk")
        at.desk.abandon(NovaMeshError(Code.UNAVAILABLE, "the owner stopped this node"))
        (*_, last) = await at.until("failure")
        assert opened(last.failure, JobFailure).code == Code.UNAVAILABLE
        await at.idle()


async def test_a_new_session_gets_what_it_lacks_without_gap_or_repeat() -> None:
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": 3000})
        at.desk.take(offer.message)
        first = await at.until("chunk")
        old = at.outbox
        await at.until("chunk")  # lost on the way
        (listed,) = at.desk.listing()
        assert AttemptKey(listed.job, listed.attempt, listed.fence).job == offer.job
        backlog = at.attach(replace(listed, chunks=1))
        await old.close()
        messages = [*first, *backlog, *await at.until("attestation")]
        assert tokens(read(offer, messages)) == list(range(FIRST_TOKEN, FIRST_TOKEN + 3000))


async def test_an_answer_that_ended_meanwhile_is_sent_again() -> None:
    async with node() as at:
        offer = at.offers.make()
        at.desk.take(offer.message)
        await at.until("attestation")
        await at.idle()
        (listed,) = at.desk.listing()
        assert listed.chunks >= 1
        backlog = at.attach(replace(listed, chunks=0))
        assert len(tokens(read(offer, list(backlog)))) == 8
        assert backlog[-1].attestation is not None
        at.attach()
        assert at.desk.listing() == ()


async def test_what_a_welcome_does_not_name_is_abandoned() -> None:
    async with node() as at:
        at.desk.take(at.offers.make(sampling={"max_tokens": LONG}).message)
        await at.until("chunk")
        assert at.attach() == ()
        await at.idle()
        assert len(at.outbox) == 0


async def test_answers_outlive_the_session() -> None:
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": 2000})
        at.desk.take(offer.message)
        await at.until("chunk")
        await at.outbox.close()
        await at.idle()
        (listed,) = at.desk.listing()
        backlog = at.attach(replace(listed, chunks=0))
        assert len(tokens(read(offer, list(backlog)))) == 2000
