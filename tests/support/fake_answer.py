"""What a node of the fake pool sends for one attempt, from its first chunk to the settlement.

A token is a word of the script, or the bytes that it names; the engine's own detokeniser turns them
into text, so a continued answer has the seam that a real one has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from novamesh_engine.completion import Completion
from novamesh_engine.request import SamplingParams
from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
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
# Half characters, a token without a whole one, a stop string in two tokens, and one that is none.
SEAMS: tuple[str | bytes, ...] = (
    b"\xe2", b"\x82", b"\xac", b" caf\xc3", b"\xa9 EN", b"Dive ", b"\xf0\x9f", b"\xa6\x8a!", b"E",
    b"ND", b"ING? no, E", b"ND of it EN", b"D.", b" never said",
)  # fmt: skip
STOP = "END."


@dataclass(frozen=True)
class Death:
    """A job's node gives up after so many chunks of it.

    `how` is "lost" without a word, "handed back" with its attestation, or "silent": what it signed
    before is not settled.
    """

    after: int
    how: str = "lost"
    code: Code = Code.NODE_LOST


@dataclass
class Script:
    """What the pool does; everything has a use in some test."""

    answer: tuple[str | bytes, ...] = ("Two ", "plus ", "three ", "is ", "five.")
    finish: FinishReason = FinishReason.STOP
    checkpoint_every: int = 2
    models: tuple[tuple[str, ProfileDigest], ...] = (("nova-pico", PICO),)
    refusals: dict[str, list[NovaMeshError]] = field(default_factory=dict)  # by call, each once
    break_after: list[int] = field(default_factory=list)  # chunks after which a stream breaks
    lost_attempts: int = 0  # attempts that end before their first token
    hang_after: int | None = None  # chunks after which nothing comes any more
    failures: list[NovaMeshError] = field(default_factory=list)  # jobs that end FAILED, each once
    deaths: list[Death | None] = field(default_factory=list)  # of jobs under way, each once
    tampered: str = ""  # what is a lie: chunk, checkpoint, attestation, offer, …
    clock_offset_ms: int = 0
    needs_invite: bool = True


@dataclass
class Play:
    """The messages of one attempt, to its end or to the death of its node."""

    script: Script
    coordinator: PrivateKey
    node: PrivateKey
    terms: Verified[JobTerms]
    given: Verified[JobAssignment]
    body: JobBody
    death: Death | None = None
    finish: FinishReason = FinishReason.UNSPECIFIED
    checkpoint: Verified[ChunkCheckpoint] | None = None

    @property
    def start(self) -> int:
        """Where this part of the answer begins."""
        return self.terms.message.start_position

    def events(self) -> Iterator[WatchResponse]:
        """Chunks and checkpoints, then attestation, relay receipt and settlement."""
        script, death = self.script, self.death
        sealer = self._sealer()
        for number, text, finish in self._chunks():
            last = finish is not FinishReason.UNSPECIFIED
            if death is not None and sealer.chunks == death.after:
                break
            logprob = PositionLogprobs(TokenLogprob(number, -0.5))
            wants = self.terms.message.sampling.logprobs > 0
            ids = () if number < 0 else (number,)
            content = ChunkBody(ids, text, (logprob,) * (wants and len(ids)), finish)
            self.finish = finish
            chunk = sealer.seal(content, last)
            if script.tampered == "chunk" and number == 2:
                chunk = replace(chunk, ciphertext=bytes(len(chunk.ciphertext)))
            yield WatchResponse(chunk=chunk)
            if (number + 1) % script.checkpoint_every == 0:
                self.checkpoint = self._checkpoint(sealer)
                yield WatchResponse(checkpoint=self.checkpoint.envelope)
        yield from self._tail(sealer)

    def _chunks(self) -> Iterator[tuple[int, str, FinishReason]]:
        """Tokens that are new, each with the text that became certain; -1 where there is none."""
        words = [one if isinstance(one, bytes) else one.encode() for one in self.script.answer]
        sampling = SamplingParams(stop=self.body.stop)
        text_of = Completion(lambda token: words[token], sampling, (), len(words))
        over = False
        for token in self.body.prefix_token_ids:
            assert not over, "the forced prefix goes on after its answer ended"
            over = text_of.accept(token)[1] is not None
        if over:
            yield -1, "", self.script.finish
        for number in range(len(words) * over + self.start, len(words)):
            text, ended = text_of.accept(number)
            yield number, text, self.script.finish if ended else FinishReason.UNSPECIFIED
            if ended:
                return

    def _tail(self, sealer: sealing.ChunkSealer) -> Iterator[WatchResponse]:
        death, outcome = self.death, JobState.SETTLED
        claim: Verified[InferenceAttestation] | Verified[ChunkCheckpoint] | None = None
        if death is None:
            claim = self._attestation(sealer)
        elif death.how == "handed back":
            self.finish, outcome = FinishReason.CANCELLED, JobState.FAILED
            yield WatchResponse(chunk=sealer.seal(ChunkBody(finish=self.finish), True))
            claim = self._attestation(sealer)
        elif death.how == "lost":
            claim, outcome = self.checkpoint, JobState.FAILED
        if claim is None:
            return
        if isinstance(claim.message, InferenceAttestation):
            yield WatchResponse(attestation=claim.envelope)
        relay = self._relay(sealer, claim)
        yield WatchResponse(relay_receipt=relay.envelope)
        yield WatchResponse(settlement=self._settlement(claim, relay, outcome))

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

    def _checkpoint(self, sealer: sealing.ChunkSealer) -> Verified[ChunkCheckpoint]:
        head = sealer.head
        if self.script.tampered == "checkpoint":
            head = bytes(32)
        made = ChunkCheckpoint(
            header=self._header(self.node, self.given.id, self.coordinator.node_id),
            chunks=sealer.chunks,
            position=self.start + sealer.position,
            chain_head=head,
            **self._ids,
        )
        return sign(made, self.node)

    def _attestation(self, sealer: sealing.ChunkSealer) -> Verified[InferenceAttestation]:
        salt = sealing.salt(self.body.response_key, JobId(self.terms.id))
        tokens = list(range(self.start, self.start + sealer.position))
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
            start_position=self.start,
            prompt_tokens=12,
            completion_tokens=sealer.position,
            finish=self.finish,
            timing=Timing(10, 20, 30, 40, 60),
            hardware=Hardware("cpu", "test machine", 2**30),
            **self._ids,
        )
        return sign(made, self.node)

    def _relay(
        self,
        sealer: sealing.ChunkSealer,
        claim: Verified[InferenceAttestation] | Verified[ChunkCheckpoint],
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
        self,
        claim: Verified[InferenceAttestation] | Verified[ChunkCheckpoint],
        relay: Verified[RelayReceipt],
        outcome: JobState,
    ) -> Envelope:
        said = claim.message
        attested = isinstance(said, InferenceAttestation)
        tokens = said.completion_tokens if attested else said.position - self.start
        key = self.node if self.script.tampered == "settlement" else self.coordinator
        made = Settlement(
            header=self._header(key, b"", self.node.node_id),
            client=self.terms.issuer,
            node=self.node.node_id,
            model_profile=self.terms.message.model_profile,
            start_position=self.start,
            prompt_tokens=said.prompt_tokens if attested else 0,
            completion_tokens=tokens,
            outcome=outcome,
            evidence=(self.terms.id, self.given.id, claim.id, relay.id),
            **self._ids,
        )
        return envelope.seal(made, key)


def sign(message: T, key: PrivateKey, network: str = NETWORK) -> Verified[T]:
    """Seal a message and open it again, as whoever receives it would."""
    sealed = envelope.seal(message, key)
    return envelope.open(sealed, type(message), network=network)
