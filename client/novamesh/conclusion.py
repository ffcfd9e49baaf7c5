"""How a job ended for its client: with an answer and its proof, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from novamesh.completion import Piece
from novamesh_proto.attestation import Finding
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError, parse_code
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.messages import ClientReceipt, InferenceAttestation, JobState, JobView
from novamesh_proto.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a job brought that ended well, and what proves it."""

    attestation: Verified[InferenceAttestation]
    client_receipt: Verified[ClientReceipt]
    pieces: tuple[Piece, ...]
    findings: tuple[Finding, ...]
    proof: VerifiedReceipt
    receipt: Receipt


def failure_of(view: JobView) -> NovaMeshError:
    """Why a job ended badly."""
    fallback = {JobState.EXPIRED: Code.EXPIRED, JobState.CANCELLED: Code.CANCELLED}
    code = parse_code(view.code) if view.code else fallback.get(view.state, Code.NODE_LOST)
    hints = {
        Code.EXPIRED: "allow more time:  --deadline-s",
        Code.NODE_LOST: "run it again; another node may get it",
        Code.BUSY: "run it again; another node may have room for it",
    }
    message = view.message or f"the job ended {view.state.name.lower()}"
    return NovaMeshError(code, message, hints.get(code, ""))


def lost_answer() -> NovaMeshError:
    """The pool relayed the answer, and does not hold it any more: nobody is accused of that."""
    return NovaMeshError(
        Code.STALE,
        "the answer was given, but the pool holds no more of it than its proof",
        "run it again",
    )
