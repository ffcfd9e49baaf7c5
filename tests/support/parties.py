"""Parties with known keys, and signed messages of one plausible job, the same on every run.

Every builder takes the fields that a test cares about as keyword arguments; everything else is
plausible and belongs together. Nonces are derived from labels: two messages with the same label
and fields are the same message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    ChatMessage,
    ChatPrompt,
    ChunkCheckpoint,
    ClientReceipt,
    FinishReason,
    Hardware,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobBody,
    JobId,
    JobState,
    JobTerms,
    ModelOffer,
    NodeDescriptor,
    ProfileDigest,
    ReceiptVerdict,
    RelayReceipt,
    Sampling,
    SealedJob,
    Settlement,
    StreamAck,
    Timing,
)
from novamesh_proto.receipt import Receipt
from novamesh_proto.settlement import Work, record, settle
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


@dataclass(frozen=True, slots=True)
class Story:
    """All signed messages of one finished job."""

    descriptor: Verified[NodeDescriptor]
    terms: Verified[JobTerms]
    assignment: Verified[JobAssignment]
    checkpoint: Verified[ChunkCheckpoint]
    ack: Verified[StreamAck]
    attestation: Verified[InferenceAttestation]
    relay_receipt: Verified[RelayReceipt]
    client_receipt: Verified[ClientReceipt]
    settlement: Verified[Settlement]

    @property
    def receipt(self) -> Receipt:
        """Everything that the client of a relayed job keeps."""
        return Receipt(
            descriptor=self.descriptor.envelope,
            terms=self.terms.envelope,
            assignment=self.assignment.envelope,
            checkpoint=self.checkpoint.envelope,
            attestation=self.attestation.envelope,
            relay_receipt=self.relay_receipt.envelope,
            client_receipt=self.client_receipt.envelope,
            settlement=self.settlement.envelope,
        )

    @property
    def work(self) -> Work:
        """The attempt as the coordinator settles it."""
        return Work(
            terms=self.terms.message,
            assignment=self.assignment.message,
            fence=self.assignment.message.fence,
            attestation=self.attestation.message,
            relay_receipt=self.relay_receipt.message,
        )


Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Teller:
    """Writes one part after the other; `changes` are fields by part, `signers` keys by part."""

    changes: Changes
    signers: Mapping[str, PrivateKey]

    def sign(self, part: str, message: T, key: PrivateKey) -> Verified[T]:
        """Apply what the test wants different, then sign."""
        changes = dict(self.changes.get(part, {}))
        key = self.signers.get(part, key)
        own = {f.name for f in fields(Header)}
        header = replace(message.header, issuer=key.node_id)
        header = replace(header, **{k: v for k, v in changes.items() if k in own})
        rest = {k: v for k, v in changes.items() if k not in own}
        changed: T = replace(cast(Any, message), **{"header": header, **rest})
        return sign(changed, key)


def tell(
    changes: Changes | None = None,
    signers: Mapping[str, PrivateKey] | None = None,
    client: PrivateKey = CLIENT,
    node: PrivateKey = NODE,
    coordinator: PrivateKey = COORDINATOR,
) -> Story:
    """One job from advertisement to settlement: 120 prompt tokens, 100 completion tokens, 2.5 s.

    `changes` replaces fields by part, a header's own fields too:
    `tell({"terms": {"body_bytes": 64, "network": "other"}})`. What comes later follows from it.
    """
    teller = _Teller(changes or {}, signers or {})
    offered = teller.sign("descriptor", descriptor(node), node)
    wanted = teller.sign("terms", terms(client, coordinator), client)
    given = teller.sign("assignment", _assignment(wanted, node, client, coordinator), coordinator)
    ids = {
        "job": given.message.job,
        "attempt": given.message.attempt,
        "fence": given.message.fence,
    }
    point = _checkpoint(given, ids, node, client, coordinator)
    checkpoint = teller.sign("checkpoint", point, node)
    ack = teller.sign("ack", _ack(checkpoint, ids, client, node, coordinator), client)
    claim = _attestation(wanted, given, ids, node, client, coordinator)
    attestation = teller.sign("attestation", claim, node)
    relay = teller.sign(
        "relay_receipt", _relay(attestation, ids, coordinator, client, node), coordinator
    )
    received = teller.sign(
        "client_receipt", _receipt(attestation, ids, client, coordinator, node), client
    )
    work = Work(
        wanted.message, given.message, given.message.fence, attestation.message, None, relay.message
    )
    evidence = (wanted.id, given.id, attestation.id, relay.id)
    settled = record(
        head(coordinator, client, node, label="settlement", life_ms=YEAR_MS),
        work,
        settle(work),
        JobState.SETTLED,
        evidence,
    )
    return Story(
        offered,
        wanted,
        given,
        checkpoint,
        ack,
        attestation,
        relay,
        received,
        teller.sign("settlement", settled, coordinator),
    )


def _assignment(
    wanted: Verified[JobTerms], node: PrivateKey, client: PrivateKey, coordinator: PrivateKey
) -> JobAssignment:
    return JobAssignment(
        header=head(coordinator, node, client, label="assignment", in_reply_to=wanted.id),
        job=JobId(wanted.id),
        node=node.node_id,
        attempt=1,
        fence=7,
        lease_ms=15_000,
    )


def _checkpoint(
    given: Verified[JobAssignment], ids: dict[str, Any], node: PrivateKey, *audience: PrivateKey
) -> ChunkCheckpoint:
    return ChunkCheckpoint(
        header=head(node, *audience, label="checkpoint", life_ms=YEAR_MS, in_reply_to=given.id),
        chunks=64,
        position=64,
        chain_head=digest("chain 64"),
        **ids,
    )


def _ack(
    checkpoint: Verified[ChunkCheckpoint],
    ids: dict[str, Any],
    client: PrivateKey,
    *audience: PrivateKey,
) -> StreamAck:
    return StreamAck(
        header=head(client, *audience, label="ack", in_reply_to=checkpoint.id),
        chunks=checkpoint.message.chunks,
        position=checkpoint.message.position,
        chain_head=checkpoint.message.chain_head,
        challenge=nonce("challenge 64"),
        **ids,
    )


def _attestation(
    wanted: Verified[JobTerms],
    given: Verified[JobAssignment],
    ids: dict[str, Any],
    node: PrivateKey,
    *audience: PrivateKey,
) -> InferenceAttestation:
    return InferenceAttestation(
        header=head(node, *audience, label="attestation", life_ms=YEAR_MS, in_reply_to=given.id),
        model_profile=wanted.message.model_profile,
        engine_build="0.1.0 reference",
        prompt_digest=digest("prompt"),
        output_digest=digest("output"),
        chain_head=digest("chain 100"),
        chunks=100,
        start_position=wanted.message.start_position,
        prompt_tokens=120,
        completion_tokens=100,
        finish=FinishReason.STOP,
        timing=Timing(
            queue_us=10 * MS,
            prefill_us=300 * MS,
            decode_us=2_000 * MS,
            ttft_us=320 * MS,
            total_us=2_310 * MS,
        ),
        hardware=HARDWARE,
        energy_mj=250_000,
        batch_size_max=2,
        **ids,
    )


def _relay(
    attestation: Verified[InferenceAttestation],
    ids: dict[str, Any],
    coordinator: PrivateKey,
    *audience: PrivateKey,
) -> RelayReceipt:
    return RelayReceipt(
        header=head(
            coordinator, *audience, label="relay", life_ms=YEAR_MS, in_reply_to=attestation.id
        ),
        chain_head=attestation.message.chain_head,
        chunks=attestation.message.chunks,
        tokens=attestation.message.completion_tokens,
        first_us=340 * MS,
        last_us=2_330 * MS,
        rtt_us=20 * MS,
        **ids,
    )


def _receipt(
    attestation: Verified[InferenceAttestation],
    ids: dict[str, Any],
    client: PrivateKey,
    *audience: PrivateKey,
) -> ClientReceipt:
    return ClientReceipt(
        header=head(
            client, *audience, label="received", life_ms=YEAR_MS, in_reply_to=attestation.id
        ),
        chain_head=attestation.message.chain_head,
        chunks=attestation.message.chunks,
        completion_tokens=attestation.message.completion_tokens,
        ttft_us=380 * MS,
        total_us=2_360 * MS,
        burst_tokens=13,
        verdict=ReceiptVerdict.OK,
        **ids,
    )
