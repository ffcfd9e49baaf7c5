"""What a caller gets: pieces while an answer arrives, a completion when it is whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from novamesh_proto.attestation import Finding
from novamesh_proto.messages import (
    FinishReason,
    JobId,
    NodeId,
    PositionLogprobs,
    ProfileDigest,
)
from novamesh_proto.receipt import Receipt


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
class Completion:
    """A whole answer and its proof; `str(completion)` is its text. Times are the client's own.

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

    def __str__(self) -> str:
        return self.text

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids)
