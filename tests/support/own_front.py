"""A node's front on a working desk, and clients that knock there themselves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from novamesh_node.admission import Policy
from novamesh_node.donations import Donations
from novamesh_node.front import Front, Means
from novamesh_proto import envelope, sealing
from novamesh_proto.attestation import check_attestation
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import RECORD_LIFE_MS
from novamesh_proto.messages import (
    CancelOrder,
    ClientReceipt,
    Donation,
    Envelope,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobPath,
    JobQuery,
    ReceiptVerdict,
    Sampling,
    SealedJob,
    StreamAck,
    WatchQuery,
    WatchResponse,
)
from support.clock import START_MS
from support.fake_engine import FakeEngine
from support.offers import SIGNER, descriptor_of
from support.parties import CLIENT, NETWORK, NODE, body, head, nonce, sealed_job
from support.working_desk import CLOCK, Node, node

DONATING = Policy(donates=True)
HELD_S = 20.0


@dataclass
class Visitor:
    """A client of that node; every query is new."""

    key: PrivateKey = CLIENT
    asked: int = 0

    def header(self, node: PrivateKey = NODE, **more: Any) -> Header:
        """To the node alone."""
        self.asked += 1
        label = f"{self.key.node_id.hex()} {self.asked}"
        return envelope.header(
            self.key, NETWORK, (node.node_id,), START_MS, nonce=nonce(label), **more
        )

    def watch(self, job: JobId, attempt: int = 0, from_chunk: int = 0) -> Envelope:
        """A WatchQuery."""
        return envelope.seal(WatchQuery(self.header(), job, attempt, from_chunk), self.key)

    def query(self, job: JobId, node: PrivateKey = NODE) -> Envelope:
        """A JobQuery."""
        return envelope.seal(JobQuery(self.header(node), job), self.key)

    def cancel(self, job: JobId) -> Envelope:
        """A CancelOrder."""
        return envelope.seal(CancelOrder(self.header(), job), self.key)


@dataclass
class Alone:
    """A job that names the node alone, and the client's side of its answer."""

    visitor: Visitor
    job: SealedJob
    id: JobId
    opener: sealing.ChunkOpener
    terms: Any
    tokens: list[int] = field(default_factory=list)

    def read(self, events: list[WatchResponse]) -> list[int]:
        """All tokens so far, with those of these events; raises on a gap and on a repeat."""
        for event in events:
            if event.chunk is not None:
                self.tokens += self.opener.open(event.chunk).token_ids
        return self.tokens

    def receipt(
        self, events: list[WatchResponse], verdict: ReceiptVerdict = ReceiptVerdict.OK
    ) -> Envelope:
        """What the client makes of a whole answer; the attestation is checked."""
        given = next(e.assignment for e in events if e.assignment is not None)
        claim = next(e.attestation for e in events if e.attestation is not None)
        assignment = envelope.open(given, JobAssignment, network=NETWORK)
        opened = envelope.open(claim, InferenceAttestation, network=NETWORK)
        check_attestation(opened, self.terms, assignment)
        said = opened.message
        header = self.visitor.header(life_ms=RECORD_LIFE_MS, in_reply_to=opened.id)
        receipt = ClientReceipt(
            header, said.job, said.attempt, said.fence, said.chain_head, said.chunks,
            said.completion_tokens, 1000, 9000, 0, verdict, JobPath.DIRECT,
        )  # fmt: skip
        return envelope.seal(receipt, self.visitor.key)

    def ack(self, key: PrivateKey | None = None) -> Envelope:
        """The client holds what it has read."""
        ack = StreamAck(
            self.visitor.header(), self.id, 1, 1, self.opener.chunks, len(self.tokens),
            self.opener.head, bytes(16),
        )  # fmt: skip
        if key is not None:
            ack = StreamAck(
                Visitor(key).header(), self.id, 1, 1, ack.chunks, ack.position, ack.chain_head,
                ack.challenge,
            )  # fmt: skip
        return envelope.seal(ack, key or self.visitor.key)


@dataclass
class Counter:
    """The front, what stands behind it, and what it told the coordinator."""

    front: Front
    node: Node
    donations: Donations
    told: list[Donation]
    gate: threading.Event  # closed, the engine makes no step
    stepping: threading.Event  # it was asked for one
    numbers: int = 0

    def order(
        self,
        visitor: Visitor | None = None,
        max_tokens: int = 8,
        to: tuple[PrivateKey, ...] = (NODE,),
        **changes: Any,
    ) -> Alone:
        """A job of a client for `to`, by default for the node alone."""
        self.numbers += 1
        visitor = visitor or Visitor()
        content = body(f"question {self.numbers}")
        header = head(visitor.key, *to, label=f"alone {self.numbers}")
        sampling = Sampling(
            seed_commitment=sealing.seed_commitment(content.client_seed), max_tokens=max_tokens
        )
        changes = {"header": header, "sampling": sampling} | changes
        job, terms = sealed_job(
            descriptor_of(self.node.offers.source), content, visitor.key, **changes
        )
        name = JobId(terms.id)
        opener = sealing.ChunkOpener(content.response_key, name, 1, 1, NODE.node_id)
        return Alone(visitor, job, name, opener, terms)

    async def begun(self) -> None:
        """Until the engine is at work."""
        assert await asyncio.to_thread(self.stepping.wait, HELD_S)

    async def watch(self, alone: Alone, from_chunk: int = 0) -> list[WatchResponse]:
        """Everything to the end of the stream."""
        query = alone.visitor.watch(alone.id, 1 if from_chunk else 0, from_chunk)
        async with asyncio.timeout(10), contextlib.aclosing(self.front.watch(query)) as events:
            return [event async for event in events]


@contextlib.asynccontextmanager
async def open_front(
    folder: Path, policy: Policy = DONATING, slots: int = 4
) -> AsyncIterator[Counter]:
    """A front that answers; the gate is open."""
    gate = threading.Event()
    gate.set()

    stepping = threading.Event()

    def hold() -> None:
        stepping.set()
        gate.wait(HELD_S)

    engine, told = FakeEngine(hook=hold), list[Donation]()
    donations = Donations(folder / "donations")
    async with node(engine, policy=policy) as at, asyncio.TaskGroup() as tasks:
        means = Means(
            at.desk, SIGNER, at.offers.source, donations, told.append, lambda: slots, CLOCK, "0.1"
        )
        try:
            yield Counter(Front(means, tasks), at, donations, told, gate, stepping)
        finally:
            gate.set()
