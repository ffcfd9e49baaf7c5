"""The counter of a node: its own client alone is served, within bounds, and proved as ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novamesh_node import front as front_module
from novamesh_node.admission import Policy
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt, check_evidence
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Donation,
    InferenceAttestation,
    JobAssignment,
    JobState,
    JobTerms,
    NodeDescriptor,
    PoolCard,
    ReceiptVerdict,
)
from support.clock import START_MS
from support.fake_engine import FIRST_TOKEN
from support.own_front import Counter, Visitor, open_front
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, party
from support.working_desk import LONG

STRANGER = Visitor(party("stranger"))


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    async with open_front(tmp_path) as made:
        yield made


async def _refusal(call: object) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        call()  # type: ignore[operator]
    return caught.value


async def test_says_who_it_is_and_what_it_offers(counter: Counter) -> None:
    card = envelope.open(counter.front.card(), PoolCard, network=NETWORK, now_ms=START_MS)
    assert (card.issuer, card.message.open) == (NODE.node_id, False)
    said = envelope.open(counter.front.descriptor(), NodeDescriptor, network=NETWORK)
    assert said.issuer == NODE.node_id


async def test_an_answer_is_given_proved_and_logged_once(counter: Counter) -> None:
    alone = counter.order(max_tokens=40)
    assert counter.front.submit(alone.job).state is JobState.RUNNING
    assert counter.front.submit(alone.job).job == alone.id
    events = await counter.watch(alone)
    assert alone.read(events) == list(range(FIRST_TOKEN, FIRST_TOKEN + 40))
    assert events[-1].job is not None
    assert (events[-1].job.state, events[-1].job.tokens) == (JobState.SETTLED, 40)
    assert counter.front.view(alone.visitor.query(alone.id)).state is JobState.SETTLED
    receipt = alone.receipt(events)
    for _ in range(2):
        counter.front.countersign(receipt)
    (kept,) = counter.donations.pending()
    assert counter.told == [kept]
    assert _proof(kept).donated


def _proof(told: Donation) -> VerifiedReceipt:
    """What a donation proves."""
    proof = VerifiedReceipt(
        envelope.open(told.descriptor, NodeDescriptor, network=NETWORK),
        envelope.open(told.terms, JobTerms, network=NETWORK),
        envelope.open(told.assignment, JobAssignment, network=NETWORK),
        None,
        envelope.open(told.attestation, InferenceAttestation, network=NETWORK),
        None,
        envelope.open(told.receipt, ClientReceipt, network=NETWORK),
        None,
    )
    check_evidence(proof)
    return proof


async def test_an_answer_that_its_client_denies_is_no_donation(counter: Counter) -> None:
    alone = counter.order()
    counter.front.submit(alone.job)
    events = await counter.watch(alone)
    counter.front.countersign(alone.receipt(events, ReceiptVerdict.MISMATCH))
    assert counter.donations.pending() == ()
    assert counter.told == []


async def test_a_stream_that_broke_is_taken_up_where_it_broke(counter: Counter) -> None:
    alone = counter.order(max_tokens=200)
    counter.front.submit(alone.job)
    async with contextlib.aclosing(counter.front.watch(alone.visitor.watch(alone.id))) as events:
        async for event in events:
            alone.read([event])
            if len(alone.tokens) > 20:
                break
    alone.read(await counter.watch(alone, alone.opener.chunks))
    assert alone.tokens == list(range(FIRST_TOKEN, FIRST_TOKEN + 200))


async def test_nobody_else_learns_anything(counter: Counter) -> None:
    counter.gate.clear()
    alone = counter.order(max_tokens=LONG)
    counter.front.submit(alone.job)
    front = counter.front
    for call in (
        lambda: front.view(STRANGER.query(alone.id)),
        lambda: front.cancel(STRANGER.cancel(alone.id)),
        lambda: front.view(STRANGER.query(alone.terms.id[::-1])),
    ):
        refused = await _refusal(call)
        assert refused.code is Code.NOT_FOUND
    with pytest.raises(NovaMeshError, match="not on this node"):
        await anext(front.watch(STRANGER.watch(alone.id)))
    assert counter.node.desk.running == 1


async def test_what_is_meant_for_another_is_refused(counter: Counter) -> None:
    alone = counter.order()
    counter.front.submit(alone.job)
    for to, code in ((COORDINATOR, Code.WRONG_AUDIENCE), (party("other"), Code.WRONG_AUDIENCE)):
        query = alone.visitor.query(alone.id, to)
        assert (await _refusal(lambda query=query: counter.front.view(query))).code is code


@pytest.mark.parametrize("to", [(COORDINATOR,), (NODE, COORDINATOR), (party("other"),)])
async def test_terms_name_this_node_and_nobody_else(counter: Counter, to: tuple) -> None:
    alone = counter.order(to=to)
    assert (await _refusal(lambda: counter.front.submit(alone.job))).code is Code.WRONG_AUDIENCE
    assert counter.node.desk.running == 0


async def test_who_does_not_donate_works_for_its_pool_only(tmp_path: Path) -> None:
    async with open_front(tmp_path, Policy()) as counter:
        refused = await _refusal(lambda: counter.front.submit(counter.order().job))
        assert refused.code is Code.POLICY


async def test_a_refused_client_and_a_long_answer_are_the_owners_to_refuse(tmp_path: Path) -> None:
    policy = Policy(10, frozenset({STRANGER.key.node_id}), donates=True)
    async with open_front(tmp_path, policy) as counter:
        for order in (counter.order(STRANGER), counter.order(max_tokens=11)):
            refused = await _refusal(lambda order=order: counter.front.submit(order.job))
            assert refused.code is Code.POLICY


async def test_strangers_take_half_of_the_slots_at_most(counter: Counter) -> None:
    counter.gate.clear()
    taken = [counter.order(max_tokens=LONG) for _ in range(2)]
    for alone in taken:
        counter.front.submit(alone.job)
    refused = await _refusal(lambda: counter.front.submit(counter.order().job))
    assert refused.code is Code.BUSY
    assert refused.retry_after_ms
    assert counter.front.submit(taken[0].job).job == taken[0].id
    offer = counter.node.offers.make()
    counter.node.desk.take(offer.message)
    assert (await counter.node.decision()).accepted, "the pool's work still fits in"


async def test_a_client_stops_its_work(counter: Counter) -> None:
    counter.gate.clear()
    alone = counter.order(max_tokens=LONG)
    counter.front.submit(alone.job)
    watching = asyncio.create_task(counter.watch(alone))
    await counter.begun()
    counter.front.cancel(alone.visitor.cancel(alone.id))
    counter.gate.set()
    events = await watching
    assert events[-1].job is not None
    assert events[-1].job.state is JobState.CANCELLED
    assert counter.front.cancel(alone.visitor.cancel(alone.id)).state is JobState.CANCELLED


async def test_work_whose_client_does_not_come_ends(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "ORPHAN_S", 0.05)
    left, followed = counter.order(max_tokens=LONG), counter.order(max_tokens=300)
    counter.gate.clear()
    counter.front.submit(left.job)
    counter.front.submit(followed.job)
    watching = asyncio.create_task(counter.watch(followed))
    await asyncio.sleep(0.2)
    counter.gate.set()
    assert len(followed.read(await watching)) == 300
    await counter.node.idle()
    assert counter.front.view(left.visitor.query(left.id)).state is not JobState.SETTLED


async def test_who_left_and_came_back_in_time_is_nobodys_orphan(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "ORPHAN_S", 1.0)
    counter.gate.clear()
    alone = counter.order(max_tokens=300)
    counter.front.submit(alone.job)
    for _ in range(4):  # each time nearly too late
        await asyncio.sleep(0.3)
        events = counter.front.watch(alone.visitor.watch(alone.id))
        assert (await anext(events)).assignment is not None
        await events.aclose()
    counter.gate.set()
    assert len(alone.read(await counter.watch(alone))) == 300


async def test_what_cannot_be_opened_is_a_failed_job_also_for_who_asks_late(
    counter: Counter,
) -> None:
    alone = counter.order(key_commitment=bytes(32))
    counter.front.submit(alone.job)
    first = await counter.watch(alone)
    await counter.node.idle()
    for events in (first, await counter.watch(alone)):
        assert events[-1].job is not None
        assert events[-1].job.state is JobState.FAILED
        assert events[-1].job.code
    assert counter.front.view(alone.visitor.query(alone.id)).state is JobState.FAILED


async def test_a_node_that_stops_says_so(counter: Counter) -> None:
    counter.gate.clear()
    alone = counter.order(max_tokens=LONG)
    counter.front.submit(alone.job)
    watching = asyncio.create_task(counter.watch(alone))
    await counter.begun()
    counter.node.desk.abandon(NovaMeshError(Code.UNAVAILABLE, "the owner stops this node"))
    counter.gate.set()
    end = (await watching)[-1].job
    assert end is not None
    assert (end.state, end.code) == (JobState.FAILED, "unavailable")
    assert "stops" in end.message


async def test_an_ack_of_its_client_alone_is_answered_by_a_checkpoint(counter: Counter) -> None:
    counter.gate.clear()
    alone = counter.order(max_tokens=100)
    counter.front.submit(alone.job)
    events = counter.front.watch(alone.visitor.watch(alone.id))
    assert (await anext(events)).assignment is not None
    await counter.begun()
    with pytest.raises(NovaMeshError, match="not on this node"):
        counter.front.acknowledge(alone.ack(STRANGER.key))
    attempt = counter.node.desk.find(alone.id)
    assert attempt is not None
    counter.front.acknowledge(alone.ack())
    assert attempt.delivery.ack is None, "there is no coordinator to show it to"
    counter.gate.set()
    rest = [event async for event in events]
    points = [wire.decode(ChunkCheckpoint, e.checkpoint.payload) for e in rest if e.checkpoint]
    assert all(point.challenge == bytes(16) for point in points)


async def test_the_pools_own_work_is_followed_here_by_its_client(counter: Counter) -> None:
    """The coordinator tells how it ends: the node's stream ends with its claim."""
    offer = counter.node.offers.make(sampling={"max_tokens": 60})
    counter.node.desk.take(offer.message)
    visitor = Visitor(CLIENT)
    async with asyncio.timeout(10):
        events = [e async for e in counter.front.watch(visitor.watch(offer.job))]
    assert events[0].assignment == offer.assignment.envelope
    assert events[-1].attestation is not None
    opener = offer.opener()
    tokens = [t for e in events if e.chunk for t in opener.open(e.chunk).token_ids]
    assert tokens == list(range(FIRST_TOKEN, FIRST_TOKEN + 60))
    with pytest.raises(NovaMeshError, match="not on this node"):
        await anext(counter.front.watch(STRANGER.watch(offer.job)))


async def test_a_receipt_of_another_attempt_is_refused(counter: Counter) -> None:
    alone = counter.order()
    counter.front.submit(alone.job)
    events = await counter.watch(alone)
    said = wire.decode(ClientReceipt, alone.receipt(events).payload)
    other = ClientReceipt(
        alone.visitor.header(in_reply_to=said.header.in_reply_to), said.job, 2, said.fence,
        said.chain_head, said.chunks, said.completion_tokens, 1, 2, 0, ReceiptVerdict.OK,
    )  # fmt: skip
    sealed = envelope.seal(other, CLIENT)
    assert (await _refusal(lambda: counter.front.countersign(sealed))).code is Code.STALE
