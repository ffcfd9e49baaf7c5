"""Nodes that lie: what a modified daemon could put on its own stream, each lie by name.

A liar has its key and signs what it likes; everything else it does is the production code's. What
it must not get away with is in `invariants`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from novamesh_node.session import Stream
from novamesh_proto import envelope
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    AttachRequest,
    AttachResponse,
    ChunkCheckpoint,
    Envelope,
    InferenceAttestation,
)
from support.parties import NETWORK

LATE_S: Final = 17.0  # longer than a lease


class Liar:
    """A stream that changes what its node says."""

    def __init__(self, stream: Stream, key: PrivateKey, lie: Lie, rng: random.Random) -> None:
        self._stream = stream
        self._lie = lie
        self.key = key
        self.rng = rng
        self.said: list[AttachRequest] = []
        self.held: list[AttachRequest] = []
        self.certificate_key_digest = stream.certificate_key_digest
        self._later: set[asyncio.Task[None]] = set()

    async def read(self) -> AttachResponse:
        """What the pool says is not changed."""
        return await self._stream.read()

    async def write(self, message: AttachRequest) -> None:
        """Say something else, more, or nothing."""
        for changed in self._lie(self, message) if message.hello is None else (message,):
            await self._stream.write(changed)
        self.said = [*self.said, message][-50:]

    async def end(self) -> None:
        """Nothing more."""
        await self._stream.end()

    def delay(self, message: AttachRequest) -> None:
        """Say it when it is too late."""

        async def speak() -> None:
            await asyncio.sleep(LATE_S)
            with contextlib.suppress(NovaMeshError):
                await self._stream.write(message)

        task = asyncio.create_task(speak())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def resign(self, sealed: Envelope, cls: type[Any], **changes: object) -> Envelope:
        """What it signed, with other contents, properly signed."""
        claim = envelope.open(sealed, cls, network=NETWORK).message
        return envelope.seal(replace(claim, **changes), self.key)


Lie = Callable[[Liar, AttachRequest], tuple[AttachRequest, ...]]


def wrong_fence(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """Chunks of an attempt that it was never given."""
    if message.chunk is None or liar.rng.random() > 0.3:
        return (message,)
    fence = max(1, message.chunk.fence + liar.rng.choice((-1, 1)))
    return (AttachRequest(chunk=replace(message.chunk, fence=fence)),)


def withheld(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """A chunk is missing, now and then all that follows too."""
    return () if message.chunk is not None and liar.rng.random() < 0.2 else (message,)


def held_back(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """All chunks come at once at the end, as if they had taken no time."""
    if message.chunk is not None or message.checkpoint is not None:
        liar.held.append(message)
        return ()
    if message.attestation is None:
        return (message,)
    held, liar.held = liar.held, []
    return (*held, message)


def altered(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """A chunk whose bytes are not what was sealed."""
    if message.chunk is None or liar.rng.random() > 0.3:
        return (message,)
    chunk = message.chunk.chunk
    flipped = bytes([chunk.ciphertext[0] ^ 1]) + chunk.ciphertext[1:]
    return (AttachRequest(chunk=replace(message.chunk, chunk=replace(chunk, ciphertext=flipped))),)


def twice(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """Everything is claimed a second time."""
    del liar
    return (message, message)


def anothers(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """What it did is claimed for another attempt too."""
    if message.attestation is None:
        return (message,)
    claim = envelope.open(message.attestation, InferenceAttestation, network=NETWORK).message
    fence = max(1, claim.fence + liar.rng.choice((-1, 1)))
    other = liar.resign(message.attestation, InferenceAttestation, fence=fence)
    return (AttachRequest(attestation=other), message)


def late(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """It takes a job, and everything else comes when another one has it."""
    if message.decision or message.load or message.descriptor:
        return (message,)
    liar.delay(message)
    return ()


def replayed(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """What it said before comes again."""
    old = [m for m in liar.said if m.load is None]
    return (message, liar.rng.choice(old)) if old and liar.rng.random() < 0.4 else (message,)


def forged_timing(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """It claims to have been ten times as fast."""
    if message.attestation is None:
        return (message,)
    claim = envelope.open(message.attestation, InferenceAttestation, network=NETWORK).message
    parts = claim.timing
    faster = replace(
        parts,
        prefill_us=parts.prefill_us // 10,
        decode_us=parts.decode_us // 10,
        ttft_us=parts.ttft_us // 10,
        total_us=parts.total_us // 10,
    )
    forged = liar.resign(message.attestation, InferenceAttestation, timing=faster)
    return (AttachRequest(attestation=forged),)


def forged_checkpoint(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """It commits to another chain than the one that it sends."""
    if message.checkpoint is None:
        return (message,)
    head = liar.rng.randbytes(32)
    forged = liar.resign(message.checkpoint, ChunkCheckpoint, chain_head=head)
    return (AttachRequest(checkpoint=forged),)


def padded(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """It claims more tokens than it sent."""
    if message.attestation is None:
        return (message,)
    claim = envelope.open(message.attestation, InferenceAttestation, network=NETWORK).message
    more = claim.completion_tokens + 5
    padded = liar.resign(message.attestation, InferenceAttestation, completion_tokens=more)
    return (AttachRequest(attestation=padded),)


def silent(liar: Liar, message: AttachRequest) -> tuple[AttachRequest, ...]:
    """It takes jobs and then says nothing any more."""
    del liar
    return (message,) if message.decision or message.load or message.descriptor else ()


LIES: Final[dict[str, Lie]] = {
    lie.__name__: lie
    for lie in (
        wrong_fence, withheld, held_back, altered, twice, anothers, late, replayed, forged_timing,
        forged_checkpoint, padded, silent,
    )
}  # fmt: skip
