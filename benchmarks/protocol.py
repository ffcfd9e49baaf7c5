"""What the protocol costs on one core: envelopes, sealing, chunks.

    python benchmarks/protocol.py [--json] [--samples N]

Prints medians of CPU time in microseconds, and exits 1 when a bar is missed. Each sample is the
mean of a few calls; operations take turns, and CPU time counts instead of wall time, so that a
moment's noise does not change the verdict.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from novamesh_proto import envelope, identity, sealing, wire
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import CHUNK_BYTES_MAX, CHUNK_PADDING, DESCRIPTOR_LIFE_MS
from novamesh_proto.messages import (
    ChatMessage,
    ChatPrompt,
    ChunkBody,
    Hardware,
    JobBody,
    JobId,
    JobTerms,
    NodeDescriptor,
    ProfileDigest,
    Sampling,
    SealedJob,
)
from novamesh_proto.padding import pad

NETWORK: Final = "benchmark"
NOW_MS: Final = 1_800_000_000_000
SAMPLE_US: Final = 2_000.0  # one sample calls as often as fits
WARM_UP_CALLS: Final = 100
TOKENS: Final = 1  # in one chunk


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: its median and 95th percentile in µs, and the bar it must hold."""

    name: str
    median_us: float
    p95_us: float
    bar_us: float | None

    @property
    def missed(self) -> bool:
        """Whether it has a bar and is above it."""
        return self.bar_us is not None and self.median_us > self.bar_us


@dataclass(frozen=True, slots=True)
class Task:
    """One operation to measure."""

    name: str
    call: Callable[[], object]
    bar_us: float | None = None


def measure(tasks: list[Task], samples: int) -> list[Row]:
    """CPU time of each operation, taken in turns, the caches warm."""
    calls = [max(1, round(SAMPLE_US / time_calls(task.call, WARM_UP_CALLS))) for task in tasks]
    taken: list[list[float]] = [[] for _ in tasks]
    for _ in range(samples):
        for task, count, times in zip(tasks, calls, taken, strict=True):
            times.append(time_calls(task.call, count))
    return [summarise(task, sorted(times)) for task, times in zip(tasks, taken, strict=True)]


def time_calls(call: Callable[[], object], count: int) -> float:
    """Mean CPU time of a call, µs."""
    start = time.thread_time_ns()
    for _ in range(count):
        call()
    return (time.thread_time_ns() - start) / count / 1000


def summarise(task: Task, times_us: list[float]) -> Row:
    """The row of one operation's sorted samples."""
    p95 = times_us[int(len(times_us) * 0.95)]
    return Row(task.name, statistics.median(times_us), p95, task.bar_us)


def make_terms(client: PrivateKey, body: JobBody, sealed: sealing.SealedBody) -> JobTerms:
    """Terms as a client signs them."""
    return JobTerms(
        header=envelope.header(client, NETWORK, [client.node_id], NOW_MS),
        model_profile=ProfileDigest(bytes(32)),
        sampling=Sampling(sealing.seed_commitment(body.client_seed), max_tokens=200),
        timeout_ms=60_000,
        body_digest=sealed.digest,
        body_bytes=len(sealed.ciphertext),
        key_commitment=sealed.commitment,
        idempotency_key="benchmark-1",
    )


def envelope_tasks(terms: JobTerms, client: PrivateKey) -> list[Task]:
    """Signing and opening, and what they are made of."""
    signed = envelope.seal(terms, client)
    data = wire.encode(terms)
    covered = envelope.pae(signed.payload_type, signed.payload)
    signature = signed.signatures[0].sig

    def open_terms() -> object:
        return envelope.open(
            signed, JobTerms, network=NETWORK, audience=client.node_id, now_ms=NOW_MS
        )

    return [
        Task("seal: encode and sign JobTerms", lambda: envelope.seal(terms, client), 60.0),
        Task("open: verify and decode JobTerms", open_terms, 100.0),
        Task("  of these: encode", lambda: wire.encode(terms)),
        Task("  of these: decode", lambda: wire.decode(JobTerms, data)),
        Task("  of these: sign", lambda: client.sign(covered)),
        Task("  of these: verify", lambda: identity.verify(client.node_id, signature, covered)),
    ]


def body_tasks(body: JobBody, client: PrivateKey, node: PrivateKey) -> list[Task]:
    """Sealing a prompt of 2 KiB to one node."""
    key = sealing.HpkeKey.generate()
    described = NodeDescriptor(
        header=envelope.header(node, NETWORK, [], NOW_MS, DESCRIPTOR_LIFE_MS),
        sequence=1,
        hpke_key=key.public,
        models=(),
        hardware=Hardware("cpu", "benchmark", 2**30),
        engine_build="benchmark",
        slots=1,
    )
    descriptor = envelope.open(envelope.seal(described, node), NodeDescriptor, network=NETWORK)
    sealed = sealing.seal_body(body)
    signed = envelope.seal(make_terms(client, body, sealed), client)
    opened = envelope.open(signed, JobTerms, network=NETWORK)
    wrap = sealing.wrap_key(sealed.key, JobId(opened.id), descriptor)
    job = SealedJob(signed, sealed.ciphertext, (wrap,))
    return [
        Task("seal a body of 2 KiB", lambda: sealing.seal_body(body)),
        Task("wrap its key", lambda: sealing.wrap_key(sealed.key, JobId(opened.id), descriptor)),
        Task("open it", lambda: sealing.open_body(job, opened, key, node.node_id)),
    ]


def chunk_tasks(node: PrivateKey) -> list[Task]:
    """One token a chunk. The core is AEAD and chain over a chunk that is already encoded."""
    attempt = (JobId(bytes(32)), 1, 1, node.node_id)
    secret = os.urandom(32)
    alone, followed, opened = (sealing.ChunkSealer(secret, *attempt) for _ in range(3))
    follower = sealing.ChainFollower(*attempt)
    opener = sealing.ChunkOpener(secret, *attempt)
    body = ChunkBody((4242,), " apples")
    plaintext = pad(wire.encode(body), CHUNK_PADDING, CHUNK_BYTES_MAX)
    return [
        Task("chunk: AEAD and chain", lambda: alone.seal_padded(plaintext, TOKENS, False), 3.0),
        Task("chunk with its encoding", lambda: alone.seal(body, False)),
        Task(
            "chunk sealed and followed by a relay",
            lambda: follower.follow(followed.seal(body, False)),
        ),
        Task("chunk sealed and opened", lambda: opener.open(opened.seal(body, False))),
    ]


def run(samples: int) -> list[Row]:
    """Everything, on one core where the system lets us choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    client, node = PrivateKey.generate(), PrivateKey.generate()
    body = JobBody(
        os.urandom(32), os.urandom(32), chat=ChatPrompt((ChatMessage("user", "x" * 2000),))
    )
    terms = make_terms(client, body, sealing.seal_body(body))
    tasks = [*envelope_tasks(terms, client), *chunk_tasks(node), *body_tasks(body, client, node)]
    gc.disable()
    return measure(tasks, samples)


def show(rows: list[Row]) -> None:
    """A table for people."""
    print(f"{'CPU time, one core':<40} {'median µs':>10} {'p95 µs':>10} {'bar µs':>8}")
    for row in rows:
        bar = f"{row.bar_us:.0f}" if row.bar_us is not None else ""
        mark = "  missed" if row.missed else ""
        print(f"{row.name:<40} {row.median_us:>10.1f} {row.p95_us:>10.1f} {bar:>8}{mark}")


def main() -> int:
    """Exit status: 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description="What the protocol costs on one core.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--samples", type=int, default=200, help="samples an operation")
    options = parser.parse_args()
    rows = run(options.samples)
    if options.json:
        print(json.dumps([asdict(row) | {"missed": row.missed} for row in rows], indent=1))
    else:
        show(rows)
    return 1 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
