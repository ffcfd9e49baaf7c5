"""What a coordinator, and a client behind it, can make a node read."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from novamesh_node.descriptor import Advertiser
from novamesh_proto import envelope, sealing, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import BODY_BYTES_MAX, BODY_PADDING
from novamesh_proto.messages import (
    AttachAssignment,
    AttachCancel,
    AttachGoodbye,
    AttachResponse,
    ChatMessage,
    ChatPrompt,
    IdleReason,
    IdleReport,
    JobAssignment,
    JobBody,
    JobId,
    Sampling,
    SealedJob,
    StreamAck,
    TokenPrompt,
)
from novamesh_proto.names import LABEL_BODY
from novamesh_proto.padding import pad
from novamesh_proto.v1 import job_pb2, node_pb2
from support.fuzz import tree
from support.fuzz.methods import KEYS
from support.fuzz.sealing import blank, complete, repeatable
from support.fuzz.target import Target
from support.fuzz.tree import frames, shape_of
from support.fuzz.visited_node import VisitedNode, advertiser, given, opening
from support.offers import Offers, descriptor_of
from support.parties import CLIENT, COORDINATOR, NODE, body, digest, head, sign, terms

COMES_DOWN: Final = frames("stream to a node", message=node_pb2.AttachResponse)
BODY: Final = shape_of(job_pb2.JobBody.DESCRIPTOR)
PARENT: Final = JobId(digest("parent"))


def node_targets() -> tuple[Target, ...]:
    """All of it."""
    return (
        Target("stream to a node", _stream, _streams(), COMES_DOWN),
        Target("sealed prompt", _prompt, _prompts(), BODY),
    )


def _stream(data: bytes) -> None:
    sent = complete(data, COMES_DOWN, KEYS, {})
    VisitedNode().meet([message for _, message in tree.split(sent, COMES_DOWN)])


def _streams() -> tuple[bytes, ...]:
    """What an honest coordinator says: two jobs, one of which is stopped; then a goodbye."""
    offers = Offers(advertiser())
    with repeatable("offers"):
        long, short = offers.make(sampling={"max_tokens": 400}), offers.make()
    ids: dict[str, Any] = {"job": long.job, "attempt": long.attempt, "fence": long.fence}
    ack = StreamAck(
        header=head(CLIENT, NODE, COORDINATOR, label="ack"), **ids, chunks=0, position=0,
        chain_head=long.opener().head, challenge=bytes(16),
    )  # fmt: skip
    report = IdleReport(3, 1, (IdleReason("another node was faster", 2),))
    messages = (
        *opening(),
        AttachResponse(assignment=long.message),
        AttachResponse(ack=envelope.seal(ack, CLIENT)),
        AttachResponse(idle_report=report),
        AttachResponse(cancel=AttachCancel(**ids, code=Code.CANCELLED)),
        AttachResponse(assignment=short.message),
        AttachResponse(goodbye=AttachGoodbye(Code.UNAVAILABLE, "the pool restarts")),
    )
    signed = tree.join(COMES_DOWN, [(1, wire.encode(message)) for message in messages])
    return blank(signed, COMES_DOWN), signed


def _prompt(data: bytes) -> None:
    """A body, whatever it is, sealed and signed as it should be."""
    node = VisitedNode()
    node.meet(given(_assignment(data, node.advertiser)))


def _prompts() -> tuple[bytes, ...]:
    turns = (ChatMessage("system", "Be brief."), ChatMessage("user", "What is 2 + 3?"))
    seeds: dict[str, Any] = {"client_seed": digest("seed"), "response_key": digest("key")}
    bodies = (
        body(chat=ChatPrompt(turns), stop=("\n\n", "Ende."), **seeds),
        JobBody(**seeds, text="Once upon a time", prefix_token_ids=(100, 101)),
        JobBody(**seeds, tokens=TokenPrompt((1, 2, 3))),
    )
    return tuple(map(wire.encode, bodies))


def _assignment(data: bytes, source: Advertiser) -> AttachAssignment:
    key = bytes(32)
    plaintext = pad(data, BODY_PADDING, BODY_BYTES_MAX)
    ciphertext = ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, LABEL_BODY)
    wanted = terms(
        body_digest=hashlib.sha256(ciphertext).digest(),
        body_bytes=len(ciphertext),
        key_commitment=sealing.body_key_commitment(key),
        **_promises(data),
    )
    signed = sign(wanted, CLIENT)
    job = JobId(signed.id)
    order = JobAssignment(
        header=head(COORDINATOR, NODE, CLIENT, label="given", in_reply_to=signed.id),
        job=job, node=NODE.node_id, attempt=1, fence=1, lease_ms=15_000,
    )  # fmt: skip
    wrap = sealing.wrap_key(key, job, descriptor_of(source))
    sealed = SealedJob(signed.envelope, ciphertext, (wrap,))
    return AttachAssignment(sign(order, COORDINATOR).envelope, sealed)


def _promises(data: bytes) -> dict[str, Any]:
    """What terms say that fit the body, as far as it is one."""
    try:
        found = wire.decode(JobBody, data)
    except NovaMeshError:
        found = body()
    held = len(found.prefix_token_ids)
    commitment = sealing.seed_commitment(found.client_seed)
    sampling = Sampling(commitment, max_tokens=held + 8, temperature=0.7, logprobs=2)
    if not held:
        return {"sampling": sampling}
    return {
        "sampling": sampling,
        "parent_job": PARENT,
        "start_position": held,
        "prefix_digest": sealing.forced_prefix_digest(found, PARENT),
    }
