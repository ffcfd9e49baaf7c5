"""All signed messages of one finished job, with any field of any of them as a test wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    FinishReason,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobState,
    JobTerms,
    NodeDescriptor,
    ReceiptVerdict,
    RelayReceipt,
    Settlement,
    StreamAck,
    Timing,
)
from novamesh_proto.receipt import Receipt
from novamesh_proto.settlement import Work, record, settle
from support.parties import (
    CLIENT,
    COORDINATOR,
    HARDWARE,
    MS,
    NODE,
    YEAR_MS,
    descriptor,
    digest,
    head,
    nonce,
    sign,
    terms,
)

T = TypeVar("T", bound=Signable)


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
