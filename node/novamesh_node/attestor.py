"""The timing attestation: what this node measured about one attempt, signed.

Rules: phases are the engine's own, on one monotonic clock, and begin when the sealed body was
opened, so the time before the engine saw the request is queueing; tokens are digested with the
job's salt, so nobody can guess them; energy is the device's counter shared among the attempts that
ran at the same time, 0 where there is no counter. What a node says of itself is believed only
inside what its witnesses saw.
"""

from __future__ import annotations

from dataclasses import dataclass

from novamesh_engine import request as engine
from novamesh_node.statements import Signer
from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Verified
from novamesh_proto.limits import RECORD_LIFE_MS
from novamesh_proto.messages import (
    Envelope,
    FinishReason,
    Hardware,
    InferenceAttestation,
    JobAssignment,
    JobTerms,
    Timing,
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What every attestation of this node says alike."""

    hardware: Hardware
    engine_build: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt came to.

    `before_us`: from the opened body to the engine's queue. `energy_mj`: this attempt's share.
    """

    salt: bytes
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    chain_head: bytes
    chunks: int
    finish: FinishReason
    timing: engine.Timing
    before_us: int = 0
    energy_mj: int = 0
    batch_size_max: int = 1


def sign_attestation(
    signer: Signer,
    assignment: Verified[JobAssignment],
    terms: Verified[JobTerms],
    machine: Machine,
    outcome: Outcome,
    *,
    now_ms: int,
) -> Envelope:
    """The envelope over the attestation of an attempt that ended with its final chunk."""
    given = assignment.message
    attestation = InferenceAttestation(
        header=signer.header(assignment, terms.issuer, now_ms, RECORD_LIFE_MS),
        job=given.job,
        attempt=given.attempt,
        fence=given.fence,
        model_profile=terms.message.model_profile,
        engine_build=machine.engine_build,
        prompt_digest=sealing.prompt_digest(outcome.salt, outcome.prompt),
        output_digest=sealing.output_digest(outcome.salt, outcome.output),
        chain_head=outcome.chain_head,
        chunks=outcome.chunks,
        start_position=terms.message.start_position,
        prompt_tokens=len(outcome.prompt),
        completion_tokens=len(outcome.output),
        finish=outcome.finish,
        timing=measured(outcome),
        hardware=machine.hardware,
        energy_mj=outcome.energy_mj,
        batch_size_max=max(1, outcome.batch_size_max),
    )
    return envelope.seal(attestation, signer.key)


def measured(outcome: Outcome) -> Timing:
    """The engine's phases, moved to begin when the body was opened, microseconds.

    An attempt without a token has no first one: its TTFT is its total.
    """
    timing, before_us = outcome.timing, max(0, outcome.before_us)
    total_us = timing.total_us + before_us
    return Timing(
        queue_us=timing.queue_us + before_us,
        prefill_us=timing.prefill_us,
        decode_us=timing.decode_us,
        ttft_us=timing.ttft_us + before_us if outcome.output else total_us,
        total_us=total_us,
    )


class EnergyShares:
    """Splits a device's energy counter among the attempts at work; one owner, the engine's thread.

    A reading covers the time since the last one and is shared equally by who was at work then.
    """

    def __init__(self) -> None:
        self._last_mj: int | None = None
        self._shares_mj: dict[str, float] = {}

    def read(self, counter_mj: int | None) -> None:
        """Take the counter's value; None where there is no counter."""
        if counter_mj is None:
            return
        if self._last_mj is not None and self._shares_mj:
            share = max(0, counter_mj - self._last_mj) / len(self._shares_mj)
            for name in self._shares_mj:
                self._shares_mj[name] += share
        self._last_mj = counter_mj

    def begin(self, name: str) -> None:
        """An attempt starts; the next reading is its first."""
        self._shares_mj[name] = 0.0

    def end(self, name: str) -> int:
        """An attempt ended: its share in whole millijoules."""
        return round(self._shares_mj.pop(name, 0.0))
