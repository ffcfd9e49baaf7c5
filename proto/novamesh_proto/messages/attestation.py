"""Values of attestation.proto: what a node claims about a job and what its witnesses say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from novamesh_proto.limits import Size
from novamesh_proto.messages.envelope import Digest, Header, JobIdField, ProfileField
from novamesh_proto.messages.job import Attempt, FinishReason, Position


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine says of itself. `kind` is cpu, cuda, rocm, xpu or mps."""

    kind: Annotated[str, Size(1, 16)]
    name: Annotated[str, Size(1, 128)]
    memory_bytes: int
    bandwidth_bytes_per_s: int = 0
    driver: Annotated[str, Size(0, 64)] = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of one attempt on the node's monotonic clock, µs."""

    queue_us: int
    prefill_us: int
    decode_us: int
    ttft_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class InferenceAttestation:
    """The timing attestation: the node's signed claim about one attempt."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    model_profile: ProfileField
    engine_build: Annotated[str, Size(1, 128)]
    prompt_digest: Digest
    output_digest: Digest
    chain_head: Digest
    chunks: int
    start_position: Position
    prompt_tokens: Position
    completion_tokens: Position
    finish: FinishReason
    timing: Timing
    hardware: Hardware
    energy_mj: int = 0
    batch_size_max: int = 1


class ReceiptVerdict(IntEnum):
    """What the client makes of what it received."""

    UNSPECIFIED = 0
    OK = 1
    INCOMPLETE = 2
    UNDECRYPTABLE = 3
    MISMATCH = 4


class JobPath(IntEnum):
    """Which way the answer of an attempt came."""

    UNSPECIFIED = 0
    RELAYED = 1
    DIRECT = 2
    TUNNEL = 3


@dataclass(frozen=True, slots=True)
class ClientReceipt:
    """The client's countersignature; durations on its own monotonic clock, µs."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    chain_head: Digest
    chunks: int
    completion_tokens: Position
    ttft_us: int
    total_us: int
    burst_tokens: int
    verdict: ReceiptVerdict
    path: JobPath = JobPath.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class RelayReceipt:
    """What the relay saw of one attempt; durations on its own monotonic clock, µs."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    chain_head: Digest
    chunks: int
    tokens: Position
    first_us: int
    last_us: int
    rtt_us: int = 0
