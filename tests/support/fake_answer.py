"""What a node of the fake pool sends for one attempt, from its first chunk to the settlement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import RECORD_LIFE_MS
from novamesh_proto.messages import (
    ChunkBody,
    ChunkCheckpoint,
    Envelope,
    FinishReason,
    Hardware,
    InferenceAttestation,
    JobAssignment,
    JobBody,
    JobId,
    JobState,
    JobTerms,
    PositionLogprobs,
    ProfileDigest,
    RelayReceipt,
    Settlement,
    Timing,
    TokenLogprob,
    WatchResponse,
)
from support.parties import digest

T = TypeVar("T", bound=Signable)

NETWORK = "fakenet"
PICO = ProfileDigest(digest("nova-pico"))
OTHER_PICO = ProfileDigest(digest("another nova-pico"))


@dataclass
class Script:
    """What the pool does; everything has a use in some test."""

    answer: tuple[str, ...] = ("Two ", "plus ", "three ", "is ", "five.")
    finish: FinishReason = FinishReason.STOP
    checkpoint_every: int = 2
    models: tuple[tuple[str, ProfileDigest], ...] = (("nova-pico", PICO),)
    refusals: dict[str, list[NovaMeshError]] = field(default_factory=dict)  # by call, each once
    break_after: list[int] = field(default_factory=list)  # chunks after which a stream breaks
    lost_attempts: int = 0  # attempts that end before their first token
    hang_after: int | None = None  # chunks after which nothing comes any more
    failures: list[NovaMeshError] = field(default_factory=list)  # jobs that end FAILED, each once
    tampered: str = ""  # what is a lie: chunk, checkpoint, attestation, offer, …
    clock_offset_ms: int = 0
    needs_invite: bool = True


@dataclass
class Play:
    """The messages of one finished attempt."""

    script: Script
    coordinator: PrivateKey
    node: PrivateKey
    terms: Verified[JobTerms]
    given: Verified[JobAssignment]
    body: JobBody

    def events(self) -> Iterator[WatchResponse]:
        """Chunks and checkpoints, then attestation, relay receipt and settlement."""
        script = self.script
        sealer = self._sealer()
        for number, word in enumerate(script.answer):
            last = number == len(script.answer) - 1
            finish = script.finish if last else FinishReason.UNSPECIFIED
            logprob = PositionLogprobs(TokenLogprob(number, -0.5))
            wants = self.terms.message.sampling.logprobs > 0
            content = ChunkBody((number,), word, (logprob,) * wants, finish)
            chunk = sealer.seal(content, last)
            if script.tampered == "chunk" and number == 2:
                chunk = replace(chunk, ciphertext=bytes(len(chunk.ciphertext)))
            yield WatchResponse(chunk=chunk)
            if (number + 1) % script.checkpoint_every == 0:
                yield WatchResponse(checkpoint=self._checkpoint(sealer))
        claim = self._attestation(sealer)
        yield WatchResponse(attestation=claim.envelope)
        relay = self._relay(sealer, claim)
        yield WatchResponse(relay_receipt=relay.envelope)
        yield WatchResponse(settlement=self._settlement(claim, relay))

    def _sealer(self) -> sealing.ChunkSealer:
        given = self.given.message
        return sealing.ChunkSealer(
            self.body.response_key, given.job, given.attempt, given.fence, given.node
        )

    @property
    def _ids(self) -> dict[str, Any]:
        given = self.given.message
        return {"job": given.job, "attempt": given.attempt, "fence": given.fence}

    def _header(self, key: PrivateKey, in_reply_to: bytes, *others: bytes) -> Any:
        audience = (self.terms.issuer, *others)
        now_ms = time.time_ns() // 1_000_000
        return envelope.header(
            key, NETWORK, audience, now_ms, RECORD_LIFE_MS, in_reply_to=in_reply_to
        )

    def _checkpoint(self, sealer: sealing.ChunkSealer) -> Envelope:
        head = sealer.head
        if self.script.tampered == "checkpoint":
            head = bytes(32)
        made = ChunkCheckpoint(
            header=self._header(self.node, self.given.id, self.coordinator.node_id),
            chunks=sealer.chunks,
            position=sealer.position,
            chain_head=head,
            **self._ids,
        )
        return envelope.seal(made, self.node)

    def _attestation(self, sealer: sealing.ChunkSealer) -> Verified[InferenceAttestation]:
        salt = sealing.salt(self.body.response_key, JobId(self.terms.id))
        tokens = list(range(len(self.script.answer)))
        if self.script.tampered == "attestation":
            tokens.reverse()
        made = InferenceAttestation(
            header=self._header(self.node, self.given.id, self.coordinator.node_id),
            model_profile=self.terms.message.model_profile,
            engine_build="0.1.0 fake",
            prompt_digest=sealing.prompt_digest(salt, [1, 2, 3]),
            output_digest=sealing.output_digest(salt, tokens),
            chain_head=sealer.head,
            chunks=sealer.chunks,
            start_position=0,
            prompt_tokens=12,
            completion_tokens=sealer.position,
            finish=self.script.finish,
            timing=Timing(10, 20, 30, 40, 60),
            hardware=Hardware("cpu", "test machine", 2**30),
            **self._ids,
        )
        return sign(made, self.node)

    def _relay(
        self, sealer: sealing.ChunkSealer, claim: Verified[InferenceAttestation]
    ) -> Verified[RelayReceipt]:
        made = RelayReceipt(
            header=self._header(self.coordinator, claim.id, self.node.node_id),
            chain_head=sealer.head,
            chunks=sealer.chunks,
            tokens=sealer.position,
            first_us=50,
            last_us=70,
            **self._ids,
        )
        return sign(made, self.coordinator)

    def _settlement(
        self, claim: Verified[InferenceAttestation], relay: Verified[RelayReceipt]
    ) -> Envelope:
        key = self.node if self.script.tampered == "settlement" else self.coordinator
        made = Settlement(
            header=self._header(key, b"", self.node.node_id),
            client=self.terms.issuer,
            node=self.node.node_id,
            model_profile=self.terms.message.model_profile,
            start_position=0,
            prompt_tokens=claim.message.prompt_tokens,
            completion_tokens=claim.message.completion_tokens,
            outcome=JobState.SETTLED,
            evidence=(self.terms.id, self.given.id, claim.id, relay.id),
            **self._ids,
        )
        return envelope.seal(made, key)


def sign(message: T, key: PrivateKey, network: str = NETWORK) -> Verified[T]:
    """Seal a message and open it again, as whoever receives it would."""
    sealed = envelope.seal(message, key)
    return envelope.open(sealed, type(message), network=network)
