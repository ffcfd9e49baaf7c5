"""That the signed messages of one job belong together; if they do not, which of them is wrong.

Rules: every part speaks of the same pool, job, attempt, client, node, coordinator and model; the
later ones answer the earlier ones; witnesses of the same chunks saw the same chain; the settlement
is what the rule gives for this evidence. Where parts disagree, the one that differs from most is
blamed. Signatures are verified before anything comes here; files are the business of `receipt`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from novamesh_proto.attestation import (
    Finding,
    Witness,
    check_attestation,
    findings,
    roofline,
    witnessed_speed,
)
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobTerms,
    ModelOffer,
    NodeDescriptor,
    NodeId,
    ProfileDigest,
    ReceiptVerdict,
    RelayReceipt,
    Settlement,
    StreamAck,
)
from novamesh_proto.settlement import Work, settle

HINT: Final = "this copy proves nothing: use an unchanged one"

Attempted = (
    JobAssignment
    | ChunkCheckpoint
    | InferenceAttestation
    | RelayReceipt
    | ClientReceipt
    | Settlement
)
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Span:
    """Completion positions of a part: `start` up to, without it, `end`; signed for up to `signed`.

    What was witnessed without being attested lies between the last two.
    """

    start: int
    signed: int
    end: int

    @property
    def unattested(self) -> int:
        """Tokens that were witnessed by the client and attested by nobody."""
        return self.end - self.signed


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt proves: parts signed by the right parties that belong together.

    There is always an attestation, or the checkpoint at which the node died; what else is absent is
    not vouched for. `earlier` are the parts of the answer that this one goes on with, in order:
    of those the node may have died before it signed anything.
    """

    descriptor: Verified[NodeDescriptor]
    terms: Verified[JobTerms]
    assignment: Verified[JobAssignment]
    checkpoint: Verified[ChunkCheckpoint] | None
    attestation: Verified[InferenceAttestation] | None
    relay_receipt: Verified[RelayReceipt] | None
    client_receipt: Verified[ClientReceipt] | None
    settlement: Verified[Settlement] | None
    earlier: tuple[VerifiedReceipt, ...] = ()

    @property
    def job(self) -> JobId:
        """Id of the job."""
        return JobId(self.terms.id)

    @property
    def client(self) -> NodeId:
        """Who asked."""
        return self.terms.issuer

    @property
    def node(self) -> NodeId:
        """Who answered."""
        return self.assignment.message.node

    @property
    def coordinator(self) -> NodeId:
        """Who gave the job to the node."""
        return self.assignment.issuer

    @property
    def donated(self) -> bool:
        """Whether the node was asked without a coordinator: it assigned the work to itself."""
        return self.coordinator == self.node

    @property
    def model_profile(self) -> ProfileDigest:
        """Digest of the model that was asked for and, by the node's word, ran."""
        return self.terms.message.model_profile

    @property
    def offer(self) -> ModelOffer | None:
        """That model as the node advertised it; its name is a label that nobody vouches for."""
        offers = self.descriptor.message.models
        return next((one for one in offers if one.model_profile == self.model_profile), None)

    @property
    def prompt_tokens(self) -> int | None:
        """Prompt tokens by the node's word; None where it died before it gave it."""
        return None if self.attestation is None else self.attestation.message.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens of this part that the node signed for."""
        if self.attestation is not None:
            return self.attestation.message.completion_tokens
        position = 0 if self.checkpoint is None else self.checkpoint.message.position
        return max(0, position - self.terms.message.start_position)

    @property
    def start_position(self) -> int:
        """Completion position at which this part begins."""
        return self.terms.message.start_position

    @property
    def signed_position(self) -> int:
        """Completion position up to which its node signed; `start_position` if for nothing."""
        return self.start_position + self.completion_tokens

    @property
    def parts(self) -> tuple[VerifiedReceipt, ...]:
        """Every part of the answer, this one last."""
        return (*self.earlier, self)

    @property
    def spans(self) -> tuple[Span, ...]:
        """How far each part of the answer went, and how much of that was signed for."""
        ends = [*(part.start_position for part in self.parts[1:]), self.signed_position]
        return tuple(
            Span(part.start_position, part.signed_position, end)
            for part, end in zip(self.parts, ends, strict=True)
        )

    @property
    def ttft_us(self) -> int | None:
        """From the request to the first chunk on the client's clock, µs; None without its word."""
        return None if self.client_receipt is None else self.client_receipt.message.ttft_us

    @property
    def tokens_per_s(self) -> float | None:
        """Speed as the client witnessed it; None where it cannot be told."""
        if self.client_receipt is None:
            return None
        return witnessed_speed(self.client_receipt.message) or None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Witness rules that the claimed timing does not keep; they make no receipt invalid."""
        if self.attestation is None:
            return ()
        claim = self.attestation.message
        active_bytes = 0 if self.offer is None else self.offer.active_bytes
        witness = Witness(
            client=None if self.client_receipt is None else self.client_receipt.message,
            relay=None if self.relay_receipt is None else self.relay_receipt.message,
            roofline_tokens_per_s=roofline(claim.hardware, active_bytes),
        )
        return findings(claim, witness)

    @property
    def signatures(self) -> tuple[tuple[str, NodeId], ...]:
        """Every part that is there, and who signed it."""
        return tuple((part, header.issuer) for part, header in _headers(self))


def wrong(part: str, problem: str, code: Code = Code.CORRUPT) -> NovaMeshError:
    """The refusal of a receipt, naming the part that is wrong."""
    return NovaMeshError(code, f"receipt part {part}: {problem}", HINT)


@contextmanager
def blame(part: str) -> Iterator[None]:
    """Whatever is refused inside is refused as this part's fault."""
    try:
        yield
    except NovaMeshError as error:
        raise wrong(part, error.message, error.code) from error


def check_evidence(r: VerifiedReceipt) -> None:
    """Return if all parts belong together.

    Raises:
        NovaMeshError: its message names the part that is wrong.
    """
    _check_same(r)
    _check_parties(r)
    _check_descriptor(r)
    if r.coordinator not in r.terms.message.header.audience:
        raise wrong("assignment", "the terms are not addressed to its issuer")
    if r.attestation is not None:
        _check_answers(r, r.attestation)
        with blame("attestation"):
            check_attestation(r.attestation, r.terms, r.assignment)
    _check_chain(r)
    if r.settlement is not None:
        _check_settlement(r, r.settlement.message)


def _headers(r: VerifiedReceipt) -> Iterator[tuple[str, Header]]:
    yield "descriptor", r.descriptor.message.header
    yield "terms", r.terms.message.header
    for part, message in _attempted(r):
        yield part, message.header


def _attempted(r: VerifiedReceipt) -> Iterator[tuple[str, Attempted]]:
    """Every message that speaks of an attempt."""
    yield "assignment", r.assignment.message
    if r.checkpoint is not None:
        yield "checkpoint", r.checkpoint.message
    if r.attestation is not None:
        yield "attestation", r.attestation.message
    if r.relay_receipt is not None:
        yield "relay-receipt", r.relay_receipt.message
    if r.client_receipt is not None:
        yield "client-receipt", r.client_receipt.message
    if r.settlement is not None:
        yield "settlement", r.settlement.message


def _agree(what: str, stated: Iterable[tuple[str, V]]) -> None:
    """All parts state the same value, or the first that differs from most is wrong."""
    values = list(stated)
    (most, _), *_ = Counter(value for _, value in values).most_common(1)
    for part, value in values:
        if value != most:
            raise wrong(part, f"it names another {what} than the other parts")


def _check_same(r: VerifiedReceipt) -> None:
    """Pool, job, attempt and model are the same everywhere."""
    _agree("pool", ((part, header.network) for part, header in _headers(r)))
    _agree("job", [("terms", r.job), *((part, m.job) for part, m in _attempted(r))])
    _agree("attempt", ((part, (m.attempt, m.fence)) for part, m in _attempted(r)))
    models = [("terms", r.model_profile)]
    for part, message in _attempted(r):
        if isinstance(message, InferenceAttestation | Settlement):
            models.append((part, message.model_profile))
    _agree("model", models)


def _check_parties(r: VerifiedReceipt) -> None:
    """Client, node and coordinator are the same everywhere."""
    nodes = [("assignment", r.node), ("descriptor", r.descriptor.issuer)]
    clients = [("terms", r.client)]
    coordinators = [("assignment", r.coordinator)]
    for part, message in _attempted(r):
        issuer = message.header.issuer
        match message:
            case ChunkCheckpoint() | InferenceAttestation():
                nodes.append((part, issuer))
            case ClientReceipt():
                clients.append((part, issuer))
            case RelayReceipt():
                coordinators.append((part, issuer))
            case Settlement(client=client, node=node):
                nodes.append((part, node))
                clients.append((part, client))
                coordinators.append((part, issuer))
    _agree("node", nodes)
    _agree("client", clients)
    _agree("coordinator", coordinators)


def _check_descriptor(r: VerifiedReceipt) -> None:
    """The node had advertised this model when the client asked."""
    if r.offer is None:
        raise wrong("descriptor", "it does not offer the model of the terms")
    asked, offered = r.terms.message.header, r.descriptor.message.header
    early = asked.issued_at_ms + CLOCK_SKEW_MS < offered.issued_at_ms
    late = asked.issued_at_ms - CLOCK_SKEW_MS > offered.expires_at_ms
    if early or late:
        raise wrong("descriptor", "it was not in force when the terms were signed")


def _check_answers(r: VerifiedReceipt, attestation: Verified[InferenceAttestation]) -> None:
    """Everybody speaks of this attestation, not of another one for the same attempt."""
    answers: list[tuple[str, bytes]] = [("attestation", attestation.id)]
    for name, part in (("relay-receipt", r.relay_receipt), ("client-receipt", r.client_receipt)):
        if part is not None:
            answers.append((name, part.message.header.in_reply_to))
    if r.settlement is not None:
        named = attestation.id in r.settlement.message.evidence
        answers.append(("settlement", attestation.id if named else b""))
    _agree("attestation", answers)


def _check_chain(r: VerifiedReceipt) -> None:
    """Whoever counts the same chunks counts the same tokens and computes the same head."""
    start = r.terms.message.start_position
    seen: list[tuple[str, int, tuple[int, bytes]]] = []
    for part, message in _attempted(r):
        match message:
            case InferenceAttestation() as att:
                seen.append((part, att.chunks, (att.completion_tokens, att.chain_head)))
            case RelayReceipt() as relay:
                seen.append((part, relay.chunks, (relay.tokens, relay.chain_head)))
            case ChunkCheckpoint() as point:
                seen.append((part, point.chunks, (point.position - start, point.chain_head)))
            case ClientReceipt(verdict=ReceiptVerdict.OK) as got:
                seen.append((part, got.chunks, (got.completion_tokens, got.chain_head)))
    for chunks in {count for _, count, _ in seen}:
        _agree("chain", [(part, view) for part, count, view in seen if count == chunks])
    if r.attestation is None:
        return
    end, all_tokens = r.attestation.message.chunks, r.attestation.message.completion_tokens
    for part, count, (tokens, _) in seen:
        if count > end or (part == "client-receipt" and count != end):
            raise wrong(part, f"it counts {count} chunks, the attestation {end}")
        if tokens > all_tokens:
            raise wrong(part, f"it counts {tokens} tokens, the attestation {all_tokens}")


def _all_acknowledged(
    r: VerifiedReceipt, claim: InferenceAttestation | ChunkCheckpoint
) -> StreamAck | None:
    """The most that the client can have signed for, where no other witness is in the file."""
    if r.relay_receipt is not None or r.client_receipt is not None:
        return None
    if isinstance(claim, InferenceAttestation):
        position = r.terms.message.start_position + claim.completion_tokens
    else:
        position = claim.position
    return StreamAck(
        header=claim.header,
        job=claim.job,
        attempt=claim.attempt,
        fence=claim.fence,
        chunks=claim.chunks,
        position=position,
        chain_head=claim.chain_head,
        challenge=b"",
    )


def _check_settlement(r: VerifiedReceipt, settled: Settlement) -> None:
    """It pays what the rule gives; on a direct path, whose acks are not here, at most that."""
    claim = r.attestation or r.checkpoint
    if claim is None or claim.id not in settled.evidence:
        raise wrong("settlement", "it does not rest on the evidence in this file")
    work = Work(
        terms=r.terms.message,
        assignment=r.assignment.message,
        fence=r.assignment.message.fence,
        attestation=None if r.attestation is None else r.attestation.message,
        checkpoint=None if r.checkpoint is None else r.checkpoint.message,
        relay_receipt=None if r.relay_receipt is None else r.relay_receipt.message,
        client_receipt=None if r.client_receipt is None else r.client_receipt.message,
        ack=_all_acknowledged(r, claim.message),
        paid_until=settled.start_position,
    )
    due = settle(work)
    paid = (settled.start_position, settled.prompt_tokens, settled.completion_tokens)
    owed = (due.start_position, due.prompt_tokens, due.completion_tokens)
    above = any(had > may for had, may in zip(paid, owed, strict=True))
    if above or (r.relay_receipt is not None and paid != owed):
        raise wrong(
            "settlement",
            f"it pays {paid[1]} prompt and {paid[2]} completion tokens from position {paid[0]}, "
            f"the evidence bears {owed[1]} and {owed[2]} from {owed[0]}",
        )
