"""Whatever sessions an answer is cut into, what arrives is one chain without gap or repeat."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_node import outbox
from novamesh_proto.messages import AttachRequest, RunningAttempt
from novamesh_proto.sealing import ChainFollower
from support.fake_engine import FIRST_TOKEN
from support.offers import Offer
from support.parties import NODE
from support.working_desk import Node, node, read, tokens

LENGTH = 400


@dataclass
class Relay:
    """What a coordinator knows of one attempt; a restart forgets it."""

    offer: Offer
    chain: ChainFollower = field(init=False)
    kept: list[AttachRequest] = field(default_factory=list)
    signed: set[bytes] = field(default_factory=set)
    attested: bool = False

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.kept.clear()
        self.chain = ChainFollower(
            self.offer.job, self.offer.attempt, self.offer.fence, NODE.node_id
        )

    def take(self, message: AttachRequest) -> None:
        if message.chunk is not None:
            self.chain.follow(message.chunk.chunk)  # raises on a gap and on a repeat
            self.kept.append(message)
            return
        for signed in (message.checkpoint, message.attestation):
            if signed is not None:
                assert signed.payload not in self.signed  # once in a session
                self.signed.add(signed.payload)
        self.attested |= message.attestation is not None


async def play(cuts: list[tuple[int, bool]]) -> None:
    async with node() as at:
        offer = at.offers.make(sampling={"max_tokens": LENGTH})
        relay = Relay(offer)
        at.desk.take(offer.message)
        assert (await at.decision()).accepted
        for count, restart in cuts:
            await _read(at, relay, count)
            if relay.attested:
                break
            await at.outbox.close()
            await asyncio.sleep(0)
            if restart:
                relay.restart()
            (listed,) = at.desk.listing()
            wanted = RunningAttempt(listed.job, listed.attempt, listed.fence, relay.chain.chunks)
            relay.signed.clear()
            backlog = at.attach(wanted)
            for message in backlog:
                relay.take(message)
        await _read(at, relay, 10_000)
        assert relay.attested
        assert relay.chain.finished
        made = tokens(read(offer, relay.kept))
        assert made == list(range(FIRST_TOKEN, FIRST_TOKEN + LENGTH))


async def _read(at: Node, relay: Relay, count: int) -> None:
    for _ in range(count):
        if relay.attested:
            return
        relay.take(await at.next())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=6))
def test_any_cuts(cuts: list[tuple[int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "OUTBOX_MAX", 1)  # so that attempts wait for room when a cut comes
        asyncio.run(play(cuts))
