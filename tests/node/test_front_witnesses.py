"""What a client signs on a direct path: what of it the node keeps, and shows the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novamesh_node import delivery
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import RECORD_LIFE_MS
from novamesh_proto.messages import (
    AttachRequest,
    ClientReceipt,
    Envelope,
    InferenceAttestation,
    ReceiptVerdict,
    StreamAck,
    WatchResponse,
)
from support.clock import START_MS
from support.offers import Offer
from support.own_front import Counter, Visitor, open_front
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, nonce

BOTH = (COORDINATOR, NODE)
LENGTH = 60


@pytest.fixture
async def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counter]:
    monkeypatch.setattr(delivery, "WITNESS_S", 0.3)
    async with open_front(tmp_path) as made:
        yield made


class Direct:
    """The pool's own work, whose client follows it at the node."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        counter.gate.clear()
        self.offer: Offer = counter.node.offers.make(sampling={"max_tokens": LENGTH})
        counter.node.desk.take(self.offer.message)
        self.opener = self.offer.opener()
        self.events: list[WatchResponse] = []
        self._signed = 0

    async def follow(self) -> contextlib.aclosing[Any]:
        """The client is here; the engine waits."""
        stream = self.counter.front.watch(Visitor().watch(self.offer.job))
        assert (await anext(stream)).assignment is not None
        return contextlib.aclosing(stream)

    async def read(self, stream: Any) -> None:
        """To the end."""
        self.counter.gate.set()
        async for event in stream:
            self.events.append(event)
            if event.chunk is not None:
                self.opener.open(event.chunk)

    def ack(self, *to: PrivateKey, **changes: Any) -> Envelope:
        made = StreamAck(
            self._header(to, 60_000, bytes(32)), self.offer.job, 1, self.offer.fence,
            self.opener.chunks, self.opener.position, self.opener.head, bytes(16),
        )  # fmt: skip
        return envelope.seal(replace(made, **changes), CLIENT)

    def receipt(self, *to: PrivateKey, **changes: Any) -> Envelope:
        claim = next(e.attestation for e in self.events if e.attestation is not None)
        said = envelope.open(claim, InferenceAttestation, network=NETWORK)
        made = ClientReceipt(
            self._header(to, RECORD_LIFE_MS, said.id), self.offer.job, 1, self.offer.fence,
            self.opener.head, self.opener.chunks, self.opener.position, 1000, 9000, 0,
            ReceiptVerdict.OK,
        )  # fmt: skip
        return envelope.seal(replace(made, **changes), CLIENT)

    def _header(self, to: tuple[PrivateKey, ...], life_ms: int, in_reply_to: bytes) -> Any:
        self._signed += 1
        audience = tuple(key.node_id for key in to)
        return envelope.header(
            CLIENT, NETWORK, audience, START_MS, life_ms, in_reply_to=in_reply_to,
            nonce=nonce(f"witness {self._signed}"),
        )  # fmt: skip

    async def told(self) -> list[AttachRequest]:
        """What the coordinator gets, the claim last."""
        return await self.counter.node.until("attestation")


def relayed(told: list[AttachRequest]) -> int:
    return sum(message.chunk is not None for message in told)


async def test_what_the_coordinator_may_not_open_is_not_shown_to_it(counter: Counter) -> None:
    work = Direct(counter)
    async with await work.follow() as stream:
        await counter.begun()
        counter.front.acknowledge(work.ack(NODE))
        await work.read(stream)
    with pytest.raises(NovaMeshError) as caught:
        counter.front.countersign(work.receipt(NODE))
    assert caught.value.code is Code.WRONG_AUDIENCE
    told = await work.told()
    assert [message for message in told if message.witness] == []
    assert relayed(told) == work.opener.chunks


async def test_a_receipt_of_the_whole_answer_takes_the_place_of_its_chunks(
    counter: Counter,
) -> None:
    work = Direct(counter)
    async with await work.follow() as stream:
        await counter.begun()
        ack = work.ack(*BOTH)
        counter.front.acknowledge(ack)
        await work.read(stream)
    first, second = work.receipt(*BOTH), work.receipt(*BOTH)
    counter.front.countersign(first)
    counter.front.countersign(second)
    told = await work.told()
    assert [message.witness for message in told if message.witness] == [ack, first]
    assert relayed(told) == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"chain_head": bytes(32)}, {"completion_tokens": 1}, {"chunks": 1},
        {"verdict": ReceiptVerdict.MISMATCH},
    ],
)  # fmt: skip
async def test_a_receipt_that_lies_or_denies_keeps_no_chunk_back(
    counter: Counter, lie: dict[str, Any]
) -> None:
    work = Direct(counter)
    async with await work.follow() as stream:
        await work.read(stream)
    with contextlib.suppress(NovaMeshError):
        counter.front.countersign(work.receipt(*BOTH, **lie))
    told = await work.told()
    assert relayed(told) == work.opener.chunks
    assert len([message for message in told if message.witness]) == ("verdict" in lie)


async def test_an_ack_that_lies_is_dropped(counter: Counter) -> None:
    work = Direct(counter)
    async with await work.follow() as stream:
        await counter.begun()
        for lie in ({"chain_head": bytes(32)}, {"position": 9}):
            counter.front.acknowledge(work.ack(*BOTH, **lie))
        await work.read(stream)
    assert [message for message in await work.told() if message.witness] == []


async def test_a_receipt_counts_after_the_end_only(counter: Counter) -> None:
    work = Direct(counter)
    async with await work.follow() as stream:
        await counter.begun()
        early = ClientReceipt(
            work._header(BOTH, RECORD_LIFE_MS, bytes(32)), work.offer.job, 1, work.offer.fence,
            work.opener.head, 0, 0, 1, 2, 0, ReceiptVerdict.OK,
        )  # fmt: skip
        with pytest.raises(NovaMeshError) as caught:
            counter.front.countersign(envelope.seal(early, CLIENT))
        assert caught.value.code is Code.CORRUPT
        await work.read(stream)


async def test_an_answer_that_its_coordinator_gave_up_ends_for_its_client(
    counter: Counter,
) -> None:
    """Of what its client left meanwhile nobody waits for the end."""
    work = Direct(counter)
    async with await work.follow() as stream:
        await counter.begun()
        assert counter.node.attach() == ()
        await work.read(stream)
        assert work.opener.finished
        counter.front.countersign(work.receipt(*BOTH))
    told = await work.told()
    assert relayed(told) == 0
    assert [message.witness is not None for message in told] == [True, False]


async def test_who_left_what_was_given_up_stops_no_newer_attempt(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_node.front.ORPHAN_S", 0.05)
    work, desk = Direct(counter), counter.node.desk
    async with await work.follow():
        await counter.begun()
        counter.node.attach()
        again = counter.node.offers.make(given={"job": work.offer.job, "attempt": 2})
        desk.take(replace(again.message, job=work.offer.message.job))
        assert (await counter.node.decision()).accepted
        assert desk.running == 2
    await asyncio.sleep(0.2)
    counter.gate.set()
    await counter.node.until("attestation")
    await counter.node.idle()
    newest = desk.find(work.offer.job)
    assert newest is not None
    assert newest.number == 2
    assert newest.answer is not None
    assert newest.answer.tokens == LENGTH


async def test_an_answer_that_nobody_wants_any_more_is_stopped(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_node.front.ORPHAN_S", 0.05)
    work = Direct(counter)
    async with await work.follow():
        await counter.begun()
        counter.node.attach()
        assert counter.node.desk.running == 1
    await asyncio.sleep(0.2)
    counter.gate.set()
    await counter.node.idle()
