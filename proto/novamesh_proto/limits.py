"""Every maximum on the wire, with its unit, and how a field states its bound.

Nothing here is configurable: these numbers are part of the protocol. What one process may choose
for itself (slots, threads, disk) lives in that part's config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Size:
    """Least and greatest length: bytes of a bytes or UTF-8 string field, entries of a tuple.

    With `or_empty` nothing at all is allowed too: how an absent digest travels.
    """

    least: int
    greatest: int
    or_empty: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """Least and greatest value of a number, both allowed. NaN is in no range."""

    least: float
    greatest: float


KIB: Final = 1024
MIB: Final = 1024 * KIB

CONTROL_BYTES_MAX: Final = 64 * KIB  # one signed control message, envelope included
GOSSIP_BYTES_MAX: Final = 8 * KIB  # one descriptor as it travels between peers
MESSAGE_BYTES_MAX: Final = 1 * MIB  # one gRPC message, a sealed job included
BODY_BYTES_MAX: Final = 896 * KIB  # sealed body of a job; the rest of a message is terms and wraps
CHUNK_BYTES_MAX: Final = 16 * KIB  # ciphertext of one chunk
METADATA_BYTES_MAX: Final = 8 * KIB  # gRPC headers of one call
RECEIPT_BYTES_MAX: Final = 1 * MIB  # of a receipt file for each part: eight envelopes as text

CANDIDATES_MAX: Final = 3  # nodes a body key is wrapped for
DESCRIPTOR_BYTES_MAX: Final = 2 * KIB  # one signed descriptor, envelope included
MODELS_MAX: Final = 64  # offers in one descriptor, as far as its bytes allow
ENDPOINTS_MAX: Final = 8
ENDPOINT_BYTES_MAX: Final = 160
DESCRIPTORS_LISTED_MAX: Final = 256
POOL_MODELS_MAX: Final = 256
POOL_NODES_MAX: Final = 4096
RUNNING_MAX: Final = 256  # attempts listed in a hello
AUDIENCE_MAX: Final = 8
EVIDENCE_MAX: Final = 8
EXCLUDED_MAX: Final = 64
PARTS_MAX: Final = 16  # jobs that one answer is put together from
JOBS_LISTED_MAX: Final = 200
IDLE_REASONS_MAX: Final = 16

CHAT_MESSAGES_MAX: Final = 256
CONTEXT_TOKENS_MAX: Final = 1_048_576
STOP_STRINGS_MAX: Final = 16
STOP_STRING_BYTES_MAX: Final = 256
STOP_TOKENS_MAX: Final = 64
LOGPROBS_MAX: Final = 20
SAMPLING_CANDIDATES: Final = 64  # logits that sampling looks at
CHUNK_TOKENS_MAX: Final = 256

CLOCK_SKEW_MS: Final = 120_000  # how far two honest wall clocks may be apart
CONTROL_LIFE_MS: Final = 600_000  # longest life of a control message
DESCRIPTOR_LIFE_MS: Final = 120_000  # of a descriptor: who is silent longer is absent
DESCRIPTOR_KEPT_LIFE_MS: Final = 86_400_000  # longest life of one in a receipt: they once had a day
RECORD_LIFE_MS: Final = 10 * 365 * 86_400_000  # attestations, receipts, settlements: they are kept
JOB_TIMEOUT_MS_MAX: Final = 600_000
RESERVATION_MS: Final = 2_000
LEASE_MS: Final = 15_000
TAIL_KEPT_MS: Final = 600_000  # sealed chunks stay readable this long after a job's end
CHECKPOINT_TOKENS: Final = 32
CHECKPOINT_MS: Final = 1_000

BODY_PADDING: Final = 256  # a sealed body's length is a multiple of this, bytes
CHUNK_PADDING: Final = 16  # a chunk's plaintext length is a multiple of this, bytes
