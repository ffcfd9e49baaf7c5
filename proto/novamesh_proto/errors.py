"""One error for every part, and the one table of what a code means on each transport.

Rules: a message says what happened, a hint names what to do next; neither ever holds a prompt or an
answer. `PeerError` is raised when somebody else misbehaved and carries who. Bugs of ours are
assertions, not codes. This module imports nothing of ours and no gRPC: statuses are names.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Code(StrEnum):
    """Why something was refused. The value is what travels on the wire."""

    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    BAD_SIGNATURE = "bad_signature"
    BAD_KEY = "bad_key"
    WRONG_NETWORK = "wrong_network"
    WRONG_AUDIENCE = "wrong_audience"
    WRONG_TYPE = "wrong_type"
    NOT_FRESH = "not_fresh"
    REPLAYED = "replayed"
    STALE = "stale"
    CANNOT_OPEN = "cannot_open"
    NOT_A_MEMBER = "not_a_member"
    BANNED = "banned"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    CONFLICT = "conflict"
    BUSY = "busy"
    NO_CAPACITY = "no_capacity"
    UNSUPPORTED = "unsupported"
    POLICY = "policy"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNAVAILABLE = "unavailable"
    NODE_LOST = "node_lost"
    PIN_MISMATCH = "pin_mismatch"
    CORRUPT = "corrupt"
    BAD_CONFIG = "bad_config"
    STORAGE = "storage"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code is called by gRPC, by HTTP and by a process's exit status (sysexits.h)."""

    grpc: str
    http: int
    exit: int
    retryable: bool = False


MEANINGS: Final[dict[Code, Meaning]] = {
    Code.BAD_REQUEST: Meaning("INVALID_ARGUMENT", 400, 2),
    Code.TOO_LARGE: Meaning("INVALID_ARGUMENT", 413, 2),
    Code.BAD_SIGNATURE: Meaning("UNAUTHENTICATED", 401, 77),
    Code.BAD_KEY: Meaning("UNAUTHENTICATED", 401, 77),
    Code.WRONG_NETWORK: Meaning("UNAUTHENTICATED", 401, 77),
    Code.WRONG_AUDIENCE: Meaning("UNAUTHENTICATED", 401, 77),
    Code.WRONG_TYPE: Meaning("INVALID_ARGUMENT", 400, 2),
    Code.NOT_FRESH: Meaning("UNAUTHENTICATED", 401, 75),
    Code.REPLAYED: Meaning("ALREADY_EXISTS", 409, 1),
    Code.STALE: Meaning("FAILED_PRECONDITION", 409, 1),
    Code.CANNOT_OPEN: Meaning("INVALID_ARGUMENT", 400, 1),
    Code.NOT_A_MEMBER: Meaning("PERMISSION_DENIED", 403, 77),
    Code.BANNED: Meaning("PERMISSION_DENIED", 403, 77),
    Code.FORBIDDEN: Meaning("PERMISSION_DENIED", 403, 77),
    Code.NOT_FOUND: Meaning("NOT_FOUND", 404, 1),
    Code.MODEL_NOT_FOUND: Meaning("NOT_FOUND", 404, 1),
    Code.CONFLICT: Meaning("FAILED_PRECONDITION", 409, 1),
    Code.BUSY: Meaning("RESOURCE_EXHAUSTED", 429, 75, retryable=True),
    Code.NO_CAPACITY: Meaning("FAILED_PRECONDITION", 503, 69),
    Code.UNSUPPORTED: Meaning("UNIMPLEMENTED", 501, 1),
    Code.POLICY: Meaning("PERMISSION_DENIED", 403, 1),
    Code.CANCELLED: Meaning("CANCELLED", 499, 130),
    Code.EXPIRED: Meaning("DEADLINE_EXCEEDED", 504, 75),
    Code.UNAVAILABLE: Meaning("UNAVAILABLE", 503, 69, retryable=True),
    Code.NODE_LOST: Meaning("ABORTED", 502, 75, retryable=True),
    Code.PIN_MISMATCH: Meaning("UNAUTHENTICATED", 401, 77),
    Code.CORRUPT: Meaning("DATA_LOSS", 500, 1),
    Code.BAD_CONFIG: Meaning("INVALID_ARGUMENT", 400, 78),
    Code.STORAGE: Meaning("UNAVAILABLE", 503, 74, retryable=True),
    Code.INTERNAL: Meaning("INTERNAL", 500, 70),
}


class NovaMeshError(Exception):
    """Something expected went wrong; `message` says what, `hint` names what to do next."""

    def __init__(self, code: Code, message: str, hint: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after_ms = retry_after_ms

    @property
    def meaning(self) -> Meaning:
        """What the code is called on each transport."""
        return MEANINGS[self.code]


class PeerError(NovaMeshError):
    """A peer broke the protocol; `peer` is its NodeId text, for reputation and for logs."""

    def __init__(self, code: Code, message: str, peer: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.peer = peer


def parse_code(text: str) -> Code:
    """The code that a peer sent; one we do not know is INTERNAL, so that it is never a success."""
    try:
        return Code(text)
    except ValueError:
        return Code.INTERNAL
