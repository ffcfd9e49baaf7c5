"""What a caller gets: pieces while an answer arrives, a completion when it is whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from novamesh_proto.attestation import Finding
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.messages import (
    FinishReason,
    JobId,
    JobPath,
    NodeId,
    PositionLogprobs,
    ProfileDigest,
)
from novamesh_proto.receipt import Receipt

_PATHS: Final = {JobPath.RELAYED: "relay", JobPath.DIRECT: "direct", JobPath.TUNNEL: "tunnel"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as one chunk brought it; `str(piece)` is its text."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish: FinishReason = FinishReason.UNSPECIFIED

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """What one job brought of an answer: positions `start` up to, without it, `end`.

    The node signed for those before `signed`; what follows was witnessed by the client alone.
    `path` says how it came, as the client signed: direct from the node, through a tunnel to it, or
    relayed by the coordinator; empty where it broke off, and nothing was signed for. `donated` is
    work that the node was asked for without a coordinator.
    """

    job: JobId
    node: NodeId
    start: int
    signed: int
    end: int
    path: str = ""
    donated: bool = False

    @property
    def unattested(self) -> int:
        """Tokens that only the client vouches for."""
        return self.end - self.signed


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer and its proof; `str(completion)` is its text. Times are the client's own.

    An answer whose node was lost went on at another: `parts` tells them in order, and `job`, `node`
    and the speed are of the last one, while the times and counts are of the whole answer.
    `tokens_per_s` is the witnessed speed, 0 where it cannot be told: of a short answer, of a burst,
    and where `resumed` says that the answer was read afterwards, not as it arrived. `findings` are
    witness rules that the node's timing does not keep; `receipt_path` is the file that verifies
    offline.
    """

    job: JobId
    model: str
    model_profile: ProfileDigest
    node: NodeId
    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    logprobs: tuple[PositionLogprobs, ...] = field(repr=False)
    finish: FinishReason
    prompt_tokens: int
    ttft_s: float
    total_s: float
    tokens_per_s: float
    findings: tuple[Finding, ...]
    receipt: Receipt = field(repr=False)
    receipt_path: Path
    resumed: bool = False
    parts: tuple[AnswerPart, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def donated(self) -> bool:
        """Whether any part of it was done without a coordinator, for nothing."""
        return any(part.donated for part in self.parts)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids)


def parts_of(proof: VerifiedReceipt) -> tuple[AnswerPart, ...]:
    """The parts of an answer, as its receipt proves them."""
    pairs = zip(proof.parts, proof.spans, strict=True)
    return tuple(
        AnswerPart(
            part.job, part.node, span.start, span.signed, span.end, _path(part), part.donated
        )
        for part, span in pairs
    )


def _path(part: VerifiedReceipt) -> str:
    receipt = part.client_receipt
    return "" if receipt is None else _PATHS.get(receipt.message.path, "")
