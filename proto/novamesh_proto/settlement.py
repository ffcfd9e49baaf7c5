"""What an attempt is paid: one pure rule, used by the coordinator and by whoever checks a receipt.

Rules: an old fence earns nothing. Completion tokens are paid up to what the node signed (its
attestation, or its last checkpoint where it died), never above what the relay saw, or what the
client signed for on a direct path, never above the terms, and each position of an answer once
across all jobs that continue it. Prompt tokens are paid up to the bytes of the sealed body.

Timing plays no part here, and neither do prices: both build on these records elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobState,
    JobTerms,
    MessageId,
    RelayReceipt,
    Settlement,
    StreamAck,
)


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt as it is settled: verified messages that belong together.

    `fence` is the newest one given out for the job; `paid_until` the first position of the answer
    that no job it continues was paid for. On a direct path there is no relay receipt: the highest
    `ack` and the `client_receipt` stand in its place.
    """

    terms: JobTerms
    assignment: JobAssignment
    fence: int
    attestation: InferenceAttestation | None = None
    checkpoint: ChunkCheckpoint | None = None
    relay_receipt: RelayReceipt | None = None
    ack: StreamAck | None = None
    client_receipt: ClientReceipt | None = None
    paid_until: int = 0


@dataclass(frozen=True, slots=True)
class Payment:
    """Positions [start_position, start_position + completion_tokens) and prompt tokens paid.

    `reasons` says, in sentences, what kept it below what the node signed.
    """

    start_position: int
    prompt_tokens: int
    completion_tokens: int
    reasons: tuple[str, ...] = ()

    @property
    def paid_until(self) -> int:
        """First position that is still unpaid afterwards."""
        return self.start_position + self.completion_tokens


@dataclass(frozen=True, slots=True)
class _Chain:
    """How far one party's view of an attempt's chain reaches; `end` is an absolute position."""

    end: int
    chunks: int
    head: bytes


def settle(work: Work) -> Payment:
    """What the attempt is paid; never more than any bound allows, possibly nothing."""
    start = max(work.terms.start_position, work.paid_until)
    claim = _claim(work)
    refusal = _refusal(work, claim)
    if claim is None or refusal:
        return Payment(start, 0, 0, (refusal,))
    bounds = _bounds(work)
    end = min(claim.end, *(bound for bound, _ in bounds))
    reasons = [reason for bound, reason in bounds if bound < claim.end]
    if start > work.terms.start_position and claim.end > work.terms.start_position:
        reasons.append(f"positions up to {start} are already paid")
    prompt, cut = _prompt(work)
    return Payment(start, prompt, max(0, end - start), (*reasons, *cut))


def record(
    header: Header,
    work: Work,
    payment: Payment,
    outcome: JobState,
    evidence: tuple[MessageId, ...],
) -> Settlement:
    """The settlement that says so. `evidence`: ids of the envelopes behind it, at most 8.

    A receipt verifies only where `evidence` names the attestation, or the checkpoint in its place.
    """
    return Settlement(
        header=header,
        job=work.assignment.job,
        attempt=work.assignment.attempt,
        fence=work.assignment.fence,
        client=work.terms.header.issuer,
        node=work.assignment.node,
        model_profile=work.terms.model_profile,
        start_position=payment.start_position,
        prompt_tokens=payment.prompt_tokens,
        completion_tokens=payment.completion_tokens,
        outcome=outcome,
        evidence=evidence,
    )


def _claim(work: Work) -> _Chain | None:
    """What the node signed for: its attestation, else its last checkpoint."""
    if work.attestation is not None:
        att = work.attestation
        end = work.terms.start_position + att.completion_tokens
        return _Chain(end, att.chunks, att.chain_head)
    if work.checkpoint is not None:
        point = work.checkpoint
        return _Chain(point.position, point.chunks, point.chain_head)
    return None


def _views(work: Work) -> list[tuple[_Chain, str]]:
    """What others saw: the relay, or on a direct path the client."""
    start = work.terms.start_position
    if work.relay_receipt is not None:
        relay = work.relay_receipt
        return [(_Chain(start + relay.tokens, relay.chunks, relay.chain_head), "the relay saw")]
    views: list[tuple[_Chain, str]] = []
    if work.ack is not None:
        ack = work.ack
        views.append((_Chain(ack.position, ack.chunks, ack.chain_head), "the client signed for"))
    if work.client_receipt is not None:
        got = work.client_receipt
        chain = _Chain(start + got.completion_tokens, got.chunks, got.chain_head)
        views.append((chain, "the client signed for"))
    return views


def _refusal(work: Work, claim: _Chain | None) -> str:
    """Why nothing at all is paid; empty where something may be."""
    if work.assignment.fence != work.fence:
        return f"fence {work.assignment.fence} is old, the job is at {work.fence}"
    parts = (work.attestation, work.checkpoint, work.relay_receipt, work.ack, work.client_receipt)
    ours = (work.assignment.job, work.assignment.attempt, work.assignment.fence)
    if any((part.job, part.attempt, part.fence) != ours for part in parts if part is not None):
        return "the evidence speaks of another attempt"
    if claim is None:
        return "the node signed neither an attestation nor a checkpoint"
    for view, who in _views(work):
        if view.chunks == claim.chunks and view.head != claim.head:
            return f"the node signed another chain than {who}"
    return ""


def _bounds(work: Work) -> list[tuple[int, str]]:
    """Last positions that may be paid, each with the reason it binds."""
    views = _views(work)
    most, who = max(((view.end, who) for view, who in views), default=(0, "nobody saw"))
    tokens = max(0, most - work.terms.start_position)
    limit = work.terms.sampling.max_tokens
    return [
        (most, f"{who} {tokens} tokens" if views else "nobody saw a token"),
        (limit, f"the terms allow {limit} tokens"),
    ]


def _prompt(work: Work) -> tuple[int, tuple[str, ...]]:
    """Prompt tokens paid. A checkpoint states none, so an attempt that died earns none."""
    if work.attestation is None:
        return 0, ()
    stated, most = work.attestation.prompt_tokens, work.terms.body_bytes
    if stated > most:
        return most, (f"the sealed body has {most} bytes, so at most as many prompt tokens",)
    return stated, ()
