"""Parties with known keys, and signed messages of one plausible job, the same on every run.

Every builder takes the fields that a test cares about as keyword arguments; everything else is
plausible and belongs together. Nonces are derived from labels: two messages with the same label
and fields are the same message.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, TypeVar

from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    ChatMessage,
    ChatPrompt,
    Hardware,
    Header,
    JobBody,
    JobId,
    JobTerms,
    ModelOffer,
    NodeDescriptor,
    ProfileDigest,
    Sampling,
    SealedJob,
)
from support.clock import START_MS

NETWORK = "testnet"
PROFILE = ProfileDigest(hashlib.sha256(b"profile").digest())
DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
MS = 1000  # microseconds

T = TypeVar("T", bound=Signable)


def party(name: str) -> PrivateKey:
    """The identity key that belongs to a name."""
    return PrivateKey.from_bytes(hashlib.sha256(b"party " + name.encode()).digest())


def hpke_key(name: str) -> sealing.HpkeKey:
    """The HPKE key that belongs to a name."""
    return sealing.HpkeKey.from_bytes(hashlib.sha256(b"hpke " + name.encode()).digest())


def digest(label: str) -> bytes:
    """32 bytes that belong to a label."""
    return hashlib.sha256(b"digest " + label.encode()).digest()


def nonce(label: str) -> bytes:
    """16 bytes that belong to a label."""
    return digest(label)[:16]


def head(
    issuer: PrivateKey,
    *audience: PrivateKey,
    label: str = "",
    now_ms: int = START_MS,
    life_ms: int = 60_000,
    network: str = NETWORK,
    in_reply_to: bytes = b"",
) -> Header:
    """A header with a nonce that belongs to `label`."""
    names = [key.node_id for key in audience]
    return envelope.header(
        issuer, network, names, now_ms, life_ms, in_reply_to=in_reply_to, nonce=nonce(label)
    )


def sign(message: T, key: PrivateKey) -> Verified[T]:
    """Seal a message and open it again, as whoever receives it would."""
    sealed = envelope.seal(message, key)
    return envelope.open(sealed, type(message), network=message.header.network)


CLIENT, NODE, COORDINATOR = party("client"), party("node"), party("coordinator")

HARDWARE = Hardware(
    kind="cuda",
    name="NVIDIA GeForce RTX 3060",
    memory_bytes=12 * 2**30,
    bandwidth_bytes_per_s=340 * 10**9,
    driver="550.54",
)
OFFER = ModelOffer(
    model_profile=PROFILE,
    name="nova-pico",
    context_max=512,
    decode_tokens_per_s=80.0,
    prefill_tokens_per_s=800.0,
    active_bytes=2 * 10**9,
)


def descriptor(node: PrivateKey = NODE, name: str = "node", **changes: Any) -> NodeDescriptor:
    """What a node advertises; `name` picks its HPKE key."""
    made = NodeDescriptor(
        header=head(node, label=f"descriptor {name}", life_ms=DAY_MS),
        sequence=1,
        hpke_key=hpke_key(name).public,
        models=(OFFER,),
        hardware=HARDWARE,
        engine_build="0.1.0 reference",
        slots=4,
    )
    return replace(made, **changes)


def terms(
    client: PrivateKey = CLIENT, coordinator: PrivateKey = COORDINATOR, **changes: Any
) -> JobTerms:
    """What a client wants; the body is not sealed here: see `sealed_job`."""
    made = JobTerms(
        header=head(client, coordinator, label="terms"),
        model_profile=PROFILE,
        sampling=Sampling(seed_commitment=digest("seed"), max_tokens=200),
        timeout_ms=60_000,
        body_digest=digest("body"),
        body_bytes=1_040,
        key_commitment=digest("body key"),
        idempotency_key="job-1",
    )
    return replace(made, **changes)


def body(text: str = "What is 2 + 3?", **changes: Any) -> JobBody:
    """A chat of one question."""
    made = JobBody(
        client_seed=digest("client seed"),
        response_key=digest("response key"),
        chat=ChatPrompt((ChatMessage("user", text),)),
    )
    return replace(made, **changes)


def sealed_job(
    node: Verified[NodeDescriptor],
    content: JobBody | None = None,
    client: PrivateKey = CLIENT,
    **changes: Any,
) -> tuple[SealedJob, Verified[JobTerms]]:
    """A really sealed job for one node, and its terms. Sealing is random: never the same twice."""
    content = content or body()
    sealed = sealing.seal_body(content)
    wanted = terms(client)
    made = replace(
        wanted,
        sampling=replace(
            wanted.sampling, seed_commitment=sealing.seed_commitment(content.client_seed)
        ),
        body_digest=sealed.digest,
        body_bytes=len(sealed.ciphertext),
        key_commitment=sealed.commitment,
    )
    signed = sign(replace(made, **changes), client)
    wrap = sealing.wrap_key(sealed.key, JobId(signed.id), node)
    return SealedJob(signed.envelope, sealed.ciphertext, (wrap,)), signed
