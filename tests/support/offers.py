"""What a coordinator sends to a node: real sealed jobs and signed assignments for one node."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from novamesh_node.descriptor import Advertiser, Facts
from novamesh_node.statements import Signer
from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    AttachAssignment,
    JobAssignment,
    JobBody,
    JobId,
    NodeDescriptor,
    Sampling,
    SealedJob,
)
from support.clock import START_MS
from support.parties import (
    CLIENT,
    COORDINATOR,
    HARDWARE,
    NETWORK,
    NODE,
    OFFER,
    PROFILE,
    body,
    head,
    sign,
    terms,
)

SIGNER = Signer(NODE, NETWORK, COORDINATOR.node_id)
FACTS = Facts((OFFER,), HARDWARE, "0.1.0 fake", 4)


def advertiser(now_ms: int = START_MS) -> Advertiser:
    """A node's advertiser with one descriptor issued."""
    made = Advertiser(NODE, NETWORK, FACTS, lambda least: least, lambda: 1)
    made.renew(now_ms)
    return made


def descriptor_of(source: Advertiser, now_ms: int = START_MS) -> Verified[NodeDescriptor]:
    """The newest descriptor as a client sees it."""
    return envelope.open(source.current(now_ms), NodeDescriptor, network=NETWORK)


@dataclass(frozen=True)
class Offer:
    """An assignment on its way, and what the client keeps to read the answer."""

    message: AttachAssignment
    body: JobBody
    job: JobId
    attempt: int
    fence: int
    assignment: Verified[JobAssignment]

    def opener(self) -> sealing.ChunkOpener:
        """The client's side of the answer."""
        key, node = self.body.response_key, NODE.node_id
        return sealing.ChunkOpener(key, self.job, self.attempt, self.fence, node)


@dataclass
class Offers:
    """Makes offers for one node; every one has a fence of its own."""

    source: Advertiser = field(default_factory=advertiser)
    now_ms: int = START_MS
    client: PrivateKey = CLIENT
    coordinator: PrivateKey = COORDINATOR
    fence: int = 0

    def make(
        self,
        content: JobBody | None = None,
        sampling: dict[str, Any] | None = None,
        wanted: dict[str, Any] | None = None,
        given: dict[str, Any] | None = None,
        head_changes: dict[str, Any] | None = None,
    ) -> Offer:
        """One offer; the dictionaries change the terms' sampling, the terms, the assignment."""
        self.fence += 1
        content = content or body()
        sealed = sealing.seal_body(content)
        label = f"offer {self.fence}"
        made = terms(
            header=head(self.client, self.coordinator, label=label, now_ms=self.now_ms),
            sampling=Sampling(
                **{
                    "seed_commitment": sealing.seed_commitment(content.client_seed),
                    "max_tokens": 8,
                    **(sampling or {}),
                }
            ),
            body_digest=sealed.digest,
            body_bytes=len(sealed.ciphertext),
            key_commitment=sealed.commitment,
            model_profile=PROFILE,
        )
        signed = sign(replace(made, **(wanted or {})), self.client)
        job = JobId(signed.id)
        wrap = sealing.wrap_key(sealed.key, job, descriptor_of(self.source, self.now_ms))
        order = JobAssignment(
            header=head(
                self.coordinator, NODE, self.client, label=label, now_ms=self.now_ms,
                in_reply_to=signed.id, **(head_changes or {}),
            ),
            job=job, node=NODE.node_id, attempt=1, fence=self.fence, lease_ms=15_000,
        )  # fmt: skip
        order = replace(order, **(given or {}))
        assignment = sign(order, self.coordinator)
        offer = AttachAssignment(
            assignment.envelope, SealedJob(signed.envelope, sealed.ciphertext, (wrap,))
        )
        return Offer(offer, content, job, order.attempt, order.fence, assignment)
