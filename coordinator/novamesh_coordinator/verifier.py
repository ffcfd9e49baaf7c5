"""Open what others signed, and judge what nodes claim. Nothing here decides what happens next.

Rules: bytes become a Verified message here or nowhere; a query is addressed to us, fresh, of a
member, and seen once; what a node says on its stream is signed by that node; an owner's order is
signed with the coordinator's own key. Ids of queries are remembered in memory, ids of orders that
changed something are in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

from novamesh_coordinator.inputs import JobSubmitted
from novamesh_coordinator.relay import Stream
from novamesh_coordinator.seen_queries import SeenQueries
from novamesh_proto import attestation, envelope
from novamesh_proto.attestation import Severity, Witness
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.evidence import VerifiedReceipt, check_evidence
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import (
    AttachHello,
    ClientReceipt,
    Donation,
    Envelope,
    InferenceAttestation,
    JobAssignment,
    JobTerms,
    NodeDescriptor,
    NodeId,
    RelayReceipt,
    SealedJob,
    StreamAck,
)
from novamesh_proto.names import payload_type
from novamesh_proto.node_table import open_descriptor

T = TypeVar("T", bound=Signable)
SECOND_US: Final = 1_000_000
_RECEIPT: Final = payload_type("ClientReceipt")


class Verifier:
    """The door: one a coordinator. `require` raises for whoever may not ask here."""

    def __init__(
        self, coordinator: NodeId, network: str, require: Callable[[NodeId], None]
    ) -> None:
        self._coordinator = coordinator
        self._network = network
        self._require = require
        self._seen = SeenQueries()

    def open_query(self, sealed: Envelope, cls: type[T], now_ms: int) -> Verified[T]:
        """A query of a member: addressed to us, fresh, and never seen before.

        Raises:
            NovaMeshError: whatever `envelope.open` refuses, NOT_A_MEMBER, BANNED, REPLAYED.
        """
        query = self.open(sealed, cls, now_ms)
        self._require(query.issuer)
        self._seen.admit(query, now_ms)
        return query

    def open_order(self, sealed: Envelope, cls: type[T], now_ms: int) -> Verified[T]:
        """The same, from the pool's owner.

        Raises:
            NovaMeshError: FORBIDDEN if it is not signed with the coordinator's own key.
        """
        order = self.open(sealed, cls, now_ms)
        if order.issuer != self._coordinator:
            raise NovaMeshError(
                Code.FORBIDDEN,
                "only the pool's owner may ask this",
                "run it where the coordinator's key is",
            )
        self._seen.admit(order, now_ms)
        return order

    def open(self, sealed: Envelope, cls: type[T], now_ms: int) -> Verified[T]:
        """A message addressed to us, fresh; where a repetition is harmless."""
        return envelope.open(
            sealed, cls, network=self._network, audience=self._coordinator, now_ms=now_ms
        )

    def open_of(self, sealed: Envelope, cls: type[T], node: NodeId, now_ms: int) -> Verified[T]:
        """What a node says on its own stream.

        Raises:
            PeerError: FORBIDDEN if somebody else signed it.
        """
        message = self.open(sealed, cls, now_ms)
        if message.issuer != node:
            raise PeerError(
                Code.FORBIDDEN,
                f"{cls.__name__} was signed by {format_node_id(message.issuer)}",
                format_node_id(node),
            )
        return message

    def open_descriptor(
        self, sealed: Envelope, node: NodeId, now_ms: int
    ) -> Verified[NodeDescriptor]:
        """A node's own advertisement; a copy of another's is refused.

        Raises:
            PeerError: FORBIDDEN if it is not the node's own.
            NovaMeshError: as `node_table.open_descriptor`.
        """
        found = open_descriptor(sealed, self._network, now_ms)
        if found.issuer != node:
            raise PeerError(
                Code.FORBIDDEN,
                "this descriptor belongs to another node",
                format_node_id(node),
                "attach with the key that signed the descriptor",
            )
        return found

    def open_hello(
        self, sealed: Envelope, nonce: bytes, certificate_key_digest: bytes, now_ms: int
    ) -> tuple[Verified[AttachHello], Verified[NodeDescriptor]]:
        """A node proves that it holds its key, on this very connection.

        Raises:
            NovaMeshError: BAD_SIGNATURE if it answers another challenge, PIN_MISMATCH if it sees
                another certificate than ours.
        """
        hello = self.open(sealed, AttachHello, now_ms)
        if hello.message.nonce != nonce:
            raise NovaMeshError(
                Code.BAD_SIGNATURE, "this hello answers another challenge", "attach again"
            )
        if hello.message.certificate_key_digest != certificate_key_digest:
            raise NovaMeshError(
                Code.PIN_MISMATCH,
                "the node sees another certificate than the coordinator's",
                "somebody stands in between, or the certificate is an old one: fetch it again",
            )
        return hello, self.open_descriptor(hello.message.descriptor, hello.issuer, now_ms)

    def open_witness(
        self, sealed: Envelope, now_ms: int
    ) -> Verified[StreamAck] | Verified[ClientReceipt]:
        """What a client signed for on a direct path; it may be older than a query could be.

        Raises:
            NovaMeshError: as `envelope.open`.
        """
        kind: type[Any] = ClientReceipt if sealed.payload_type == _RECEIPT else StreamAck
        found: Verified[Any] = envelope.open(
            sealed, kind, network=self._network, audience=self._coordinator
        )
        if found.message.header.issued_at_ms > now_ms + CLOCK_SKEW_MS:
            raise NovaMeshError(Code.NOT_FRESH, "this was signed ahead of our clock")
        return found

    def open_donation(self, given: Donation) -> VerifiedReceipt:
        """Donated work whose signed parts belong together.

        Raises:
            NovaMeshError: naming the part that is wrong.
        """
        network = self._network
        proof = VerifiedReceipt(
            descriptor=envelope.open(given.descriptor, NodeDescriptor, network=network),
            terms=envelope.open(given.terms, JobTerms, network=network),
            assignment=envelope.open(given.assignment, JobAssignment, network=network),
            checkpoint=None,
            attestation=envelope.open(given.attestation, InferenceAttestation, network=network),
            relay_receipt=None,
            client_receipt=envelope.open(given.receipt, ClientReceipt, network=network),
            settlement=None,
        )
        check_evidence(proof)
        return proof

    def open_job(
        self, job: SealedJob, reservations: tuple[bytes, ...], now_ms: int
    ) -> JobSubmitted:
        """A sealed job whose body is the one its terms name. Its key may be submitted again.

        Raises:
            NovaMeshError: BAD_REQUEST if body or wraps do not fit.
        """
        terms = self.open(job.terms, JobTerms, now_ms)
        wanted = terms.message
        if len(job.body) != wanted.body_bytes:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                f"the sealed body has {len(job.body)} bytes, its terms say {wanted.body_bytes}",
            )
        if hashlib.sha256(job.body).digest() != wanted.body_digest:
            raise NovaMeshError(
                Code.BAD_REQUEST, "the sealed body is not the one its terms name", "seal it again"
            )
        nodes = [wrap.node for wrap in job.wraps]
        if len(set(nodes)) != len(nodes):
            raise NovaMeshError(Code.BAD_REQUEST, "two key wraps are for the same node")
        wraps = tuple((wrap.node, wrap.descriptor) for wrap in job.wraps)
        return JobSubmitted(terms, wraps, reservations)


def check_claim(
    claim: Verified[InferenceAttestation], terms: Verified[JobTerms], stream: Stream
) -> None:
    """Return if an attestation is of this attempt and of the chain that the relay saw to its end.

    Raises:
        PeerError: as `attestation.check_attestation`; CORRUPT for another chain.
    """
    att = attestation.check_attestation(claim, terms, stream.assignment)
    chain = stream.chain
    if (att.chunks, att.chain_head) != (chain.chunks, chain.head) or not chain.finished:
        raise PeerError(
            Code.CORRUPT,
            f"the attestation names a chain of {att.chunks} chunks, the relay saw another one "
            f"of {chain.chunks}{'' if chain.finished else ' without a final chunk'}",
            format_node_id(claim.issuer),
        )


def rankable_speed(
    claim: InferenceAttestation,
    relay: RelayReceipt,
    burst_tokens: int,
    descriptor: NodeDescriptor | None,
) -> int:
    """Decode speed that counts for ranking, thousandths of tokens/s; 0 where none does.

    What the relay witnessed, but no more than the node claims: chunks that were held back and then
    sent at once look faster than they were made. A claim is bounded by the machine it names, so
    none counts where nothing is known of that, where it cannot be told, or where it contradicts
    itself or a witness: timing changes ranking, and never what is paid.
    """
    steps, decode_us = relay.tokens - 1, claim.timing.decode_us
    if steps <= 0 or decode_us <= 0 or attestation.is_burst(burst_tokens, relay.tokens):
        return 0
    active = 0
    if descriptor is not None:
        offers = (o for o in descriptor.models if o.model_profile == claim.model_profile)
        active = next((offer.active_bytes for offer in offers), 0)
    roofline = attestation.roofline(claim.hardware, active)
    if roofline is None:
        return 0
    witness = Witness(relay=relay, roofline_tokens_per_s=roofline)
    found = attestation.findings(claim, witness)
    if any(finding.severity >= Severity.INCONSISTENT for finding in found):
        return 0
    took_us = max(relay.last_us - relay.first_us, decode_us)
    return min(steps * 1000 * SECOND_US // took_us, 10**12)
