"""A node and a client that speak the real protocol, signed and sealed, one message at a time.

They hold keys and nothing else; who carries their messages (a core, a channel, a simulator) and
when is the test's business. `now_ms` is passed in everywhere.
"""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field, replace
from typing import Any

from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import DESCRIPTOR_LIFE_MS, RECORD_LIFE_MS
from novamesh_proto.messages import (
    AttachHello,
    AttemptChunk,
    CancelOrder,
    ChunkBody,
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    FinishReason,
    InferenceAttestation,
    JobAssignment,
    JobBody,
    JobDecision,
    JobFailure,
    JobId,
    JobQuery,
    JobsQuery,
    JobTerms,
    JoinClaim,
    MatchQuery,
    ModelsQuery,
    NodeDescriptor,
    NodeId,
    ReceiptVerdict,
    RunningAttempt,
    Sampling,
    SealedJob,
    StreamAck,
    Timing,
    WatchQuery,
)
from novamesh_proto.sealing import ChunkOpener, ChunkSealer, HpkeKey
from support.parties import HARDWARE, NETWORK, OFFER, PROFILE, body, hpke_key, party

MS = 1_000


@dataclass
class Actor:
    """Somebody with a key, and the coordinator it talks to."""

    name: str
    coordinator: NodeId
    network: str = NETWORK
    key: PrivateKey = field(init=False)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.key = party(self.name)
        self.rng = random.Random(self.name)

    @property
    def id(self) -> NodeId:
        """Its PeerId."""
        return self.key.node_id

    def header(self, now_ms: int, *audience: NodeId, life_ms: int = 60_000, **more: Any) -> Any:
        """A header of its own; to the coordinator where no audience is given."""
        nonce = self.rng.randbytes(16)
        names = audience or (self.coordinator,)
        return envelope.header(self.key, self.network, names, now_ms, life_ms, nonce=nonce, **more)

    def sign(self, message: Signable) -> Envelope:
        """Sealed as it is sent."""
        return envelope.seal(message, self.key)

    def claim(self, now_ms: int, invite: bytes = b"") -> Envelope:
        """A JoinClaim."""
        return self.sign(JoinClaim(self.header(now_ms), invite))


@dataclass
class NodeActor(Actor):
    """A node with one offer."""

    slots: int = 2
    sequence: int = 1
    hpke: HpkeKey = field(init=False)
    advert: Envelope | None = None

    def __post_init__(self) -> None:
        Actor.__post_init__(self)
        self.hpke = hpke_key(self.name)

    def descriptor(self, now_ms: int, **changes: Any) -> Envelope:
        """What it advertises now."""
        header = envelope.header(
            self.key,
            self.network,
            (),
            now_ms,
            DESCRIPTOR_LIFE_MS,
            nonce=hashlib.md5(b"%d" % now_ms).digest(),
        )
        made = NodeDescriptor(
            header=header,
            sequence=self.sequence,
            hpke_key=self.hpke.public,
            models=(OFFER,),
            hardware=HARDWARE,
            engine_build="0.1.0 test",
            slots=self.slots,
        )
        return self.sign(replace(made, **changes))

    def hello(
        self,
        nonce: bytes,
        key_digest: bytes,
        now_ms: int,
        running: tuple[RunningAttempt, ...] = (),
        descriptor: Envelope | None = None,
    ) -> Envelope:
        """An AttachHello."""
        self.advert = descriptor or self.advert or self.descriptor(now_ms)
        offered = self.advert
        return self.sign(AttachHello(self.header(now_ms), nonce, key_digest, offered, running))

    def take(self, assignment: Envelope, job: SealedJob) -> Attempt:
        """Open an assignment and its job, as a node does."""
        given = envelope.open(assignment, JobAssignment, network=self.network)
        terms = envelope.open(job.terms, JobTerms, network=self.network)
        opened = sealing.open_body(job, terms, self.hpke, self.id)
        return Attempt(self, given, terms, opened)


class Attempt:
    """One attempt at work on a node."""

    def __init__(
        self,
        node: NodeActor,
        assignment: Verified[JobAssignment],
        terms: Verified[JobTerms],
        opened: JobBody,
    ) -> None:
        self.node = node
        self.assignment = assignment
        self.terms = terms
        self.body = opened
        given = assignment.message
        self.ids: dict[str, Any] = {
            "job": given.job,
            "attempt": given.attempt,
            "fence": given.fence,
        }
        self.sealer = ChunkSealer(
            opened.response_key, given.job, given.attempt, given.fence, node.id
        )
        self.sent: list[AttemptChunk] = []
        self.tokens: list[int] = []

    @property
    def running(self) -> RunningAttempt:
        """How it stands in a hello."""
        return RunningAttempt(**self.ids, chunks=self.sealer.chunks)

    def decide(self, now_ms: int, accepted: bool = True, code: str = "busy") -> Envelope:
        """A JobDecision."""
        why = {} if accepted else {"code": code, "message": "no"}
        return self.node.sign(
            JobDecision(self._header(now_ms), **self.ids, accepted=accepted, **why)
        )

    def fail(self, now_ms: int, code: str = "internal") -> Envelope:
        """A JobFailure."""
        return self.node.sign(JobFailure(self._header(now_ms), **self.ids, code=code, message="oh"))

    def chunk(self, tokens: int = 1, final: bool = False) -> AttemptChunk:
        """The next chunk."""
        made = tuple(range(len(self.tokens), len(self.tokens) + tokens))
        self.tokens += made
        finish = FinishReason.STOP if final else FinishReason.UNSPECIFIED
        sealed = self.sealer.seal(ChunkBody(made, "x" * tokens, finish=finish), final)
        self.sent.append(AttemptChunk(**self.ids, chunk=sealed))
        return self.sent[-1]

    def checkpoint(self, now_ms: int, **changes: Any) -> Envelope:
        """A ChunkCheckpoint of the chain so far."""
        point = ChunkCheckpoint(
            header=self._header(now_ms, RECORD_LIFE_MS),
            **self.ids,
            chunks=self.sealer.chunks,
            position=self.terms.message.start_position + len(self.tokens),
            chain_head=self.sealer.head,
        )
        return self.node.sign(replace(point, **changes))

    def attest(
        self, now_ms: int, finish: FinishReason = FinishReason.STOP, **changes: Any
    ) -> Envelope:
        """An InferenceAttestation of what was made."""
        decode_us = (len(self.tokens) - 1) * 10 * MS if self.tokens else 0
        claim = InferenceAttestation(
            header=self._header(now_ms, RECORD_LIFE_MS),
            **self.ids,
            model_profile=self.terms.message.model_profile,
            engine_build="0.1.0 test",
            prompt_digest=bytes(32),
            output_digest=bytes(32),
            chain_head=self.sealer.head,
            chunks=self.sealer.chunks,
            start_position=self.terms.message.start_position,
            prompt_tokens=20,
            completion_tokens=len(self.tokens),
            finish=finish,
            timing=Timing(1 * MS, 5 * MS, decode_us, 6 * MS, decode_us + 6 * MS),
            hardware=HARDWARE,
        )
        return self.node.sign(replace(claim, **changes))

    def _header(self, now_ms: int, life_ms: int = 60_000) -> Any:
        parties = (self.terms.issuer, self.node.coordinator)
        return self.node.header(now_ms, *parties, life_ms=life_ms, in_reply_to=self.assignment.id)


@dataclass
class Order:
    """A sealed job and the keys its client keeps."""

    job: SealedJob
    id: JobId
    body: JobBody
    terms: Verified[JobTerms]

    def opener(self, assignment: Verified[JobAssignment]) -> ChunkOpener:
        """What opens the chunks of an attempt."""
        given = assignment.message
        return ChunkOpener(
            self.body.response_key, given.job, given.attempt, given.fence, given.node
        )


@dataclass
class ClientActor(Actor):
    """A client."""

    def ask_models(self, now_ms: int) -> Envelope:
        """A ModelsQuery."""
        return self.sign(ModelsQuery(self.header(now_ms)))

    def match(self, now_ms: int, **changes: Any) -> Envelope:
        """A MatchQuery."""
        query = MatchQuery(self.header(now_ms), PROFILE, prompt_bytes=40, max_tokens=100)
        return self.sign(replace(query, **changes))

    def seal(
        self,
        descriptors: list[Envelope],
        now_ms: int,
        key: str = "job-1",
        text: str = "What is 2 + 3?",
        parent: JobId | None = None,
        held: int = 0,
        max_tokens: int = 200,
        **changes: Any,
    ) -> Order:
        """A job really sealed to some nodes; with a parent it goes on after `held` tokens."""
        seeds = {"client_seed": os.urandom(32), "response_key": os.urandom(32)}
        content = body(text, prefix_token_ids=tuple(range(held)), **seeds)
        if parent is not None:
            changes |= {
                "parent_job": parent,
                "start_position": held,
                "prefix_digest": sealing.forced_prefix_digest(content, parent),
            }
        sealed = sealing.seal_body(content)
        sampling = Sampling(
            seed_commitment=sealing.seed_commitment(content.client_seed), max_tokens=max_tokens
        )
        wanted = JobTerms(
            header=self.header(now_ms),
            model_profile=PROFILE,
            sampling=sampling,
            timeout_ms=60_000,
            body_digest=sealed.digest,
            body_bytes=len(sealed.ciphertext),
            key_commitment=sealed.commitment,
            idempotency_key=key,
        )
        terms = envelope.open(self.sign(replace(wanted, **changes)), JobTerms, network=self.network)
        job = JobId(terms.id)
        opened = [envelope.open(d, NodeDescriptor, network=self.network) for d in descriptors]
        wraps = tuple(sealing.wrap_key(sealed.key, job, one) for one in opened)
        return Order(SealedJob(terms.envelope, sealed.ciphertext, wraps), job, content, terms)

    def watch(self, job: JobId, now_ms: int, attempt: int = 0, from_chunk: int = 0) -> Envelope:
        """A WatchQuery."""
        return self.sign(WatchQuery(self.header(now_ms), job, attempt, from_chunk))

    def cancel(self, job: JobId, now_ms: int) -> Envelope:
        """A CancelOrder."""
        return self.sign(CancelOrder(self.header(now_ms), job))

    def ask(self, job: JobId, now_ms: int) -> Envelope:
        """A JobQuery."""
        return self.sign(JobQuery(self.header(now_ms), job))

    def ask_all(self, now_ms: int, count: int = 50) -> Envelope:
        """A JobsQuery."""
        return self.sign(JobsQuery(self.header(now_ms), count))

    def acknowledge(self, attempt: Attempt, now_ms: int, chunks: int | None = None) -> Envelope:
        """A StreamAck of what the attempt has sent."""
        ack = StreamAck(
            header=self.header(now_ms, attempt.node.id, self.coordinator),
            **attempt.ids,
            chunks=attempt.sealer.chunks if chunks is None else chunks,
            position=len(attempt.tokens),
            chain_head=attempt.sealer.head,
            challenge=os.urandom(16),
        )
        return self.sign(ack)

    def countersign(self, attempt: Attempt, now_ms: int, **changes: Any) -> Envelope:
        """A ClientReceipt for an attempt."""
        receipt = ClientReceipt(
            header=self.header(now_ms, self.coordinator, attempt.node.id, life_ms=RECORD_LIFE_MS),
            **attempt.ids,
            chain_head=attempt.sealer.head,
            chunks=attempt.sealer.chunks,
            completion_tokens=len(attempt.tokens),
            ttft_us=20 * MS,
            total_us=90 * MS,
            burst_tokens=1,
            verdict=ReceiptVerdict.OK,
        )
        return self.sign(replace(receipt, **changes))
