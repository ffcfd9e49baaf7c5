"""The attestation: phases that add up, digests that fit, energy shared fairly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.request import Timing
from novamesh_node.attestor import EnergyShares, Machine, Outcome, measured, sign_attestation
from novamesh_proto import envelope, sealing
from novamesh_proto.attestation import Witness, check_attestation, findings
from novamesh_proto.messages import FinishReason, InferenceAttestation, JobTerms
from support.clock import START_MS
from support.fake_engine import TIMING
from support.offers import SIGNER, Offers
from support.parties import CLIENT, HARDWARE, NETWORK, digest

MACHINE = Machine(HARDWARE, "0.1.0 fake")


def outcome(**changes: object) -> Outcome:
    facts = {
        "salt": digest("salt"), "prompt": (1, 2, 3), "output": (4, 5), "chain_head": digest("head"),
        "chunks": 2, "finish": FinishReason.STOP, "timing": TIMING, "before_us": 50,
        "energy_mj": 7, "batch_size_max": 3,
    }  # fmt: skip
    return Outcome(**(facts | changes))  # type: ignore[arg-type]


def test_it_belongs_to_its_job_and_breaks_no_rule() -> None:
    offer = Offers().make()
    terms = envelope.open(offer.message.job.terms, JobTerms, network=NETWORK)
    sealed = sign_attestation(SIGNER, offer.assignment, terms, MACHINE, outcome(), now_ms=START_MS)
    said = envelope.open(
        sealed, InferenceAttestation, network=NETWORK, audience=CLIENT.node_id, now_ms=START_MS
    )
    attestation = check_attestation(said, terms, offer.assignment)
    assert findings(attestation, Witness()) == ()
    assert attestation.prompt_digest == sealing.prompt_digest(digest("salt"), (1, 2, 3))
    assert attestation.output_digest == sealing.output_digest(digest("salt"), (4, 5))
    assert (attestation.prompt_tokens, attestation.completion_tokens) == (3, 2)
    assert (attestation.energy_mj, attestation.batch_size_max) == (7, 3)
    assert attestation.hardware == HARDWARE


@given(
    *[st.integers(0, 10**9)] * 4,
    st.booleans(),
)
def test_phases_begin_when_the_body_was_opened(
    queue: int, prefill: int, decode: int, before: int, spoke: bool
) -> None:
    timing = Timing(queue, prefill, decode, (queue + prefill) * spoke, queue + prefill + decode)
    made = measured(outcome(timing=timing, before_us=before, output=(1,) * spoke))
    assert made.queue_us + made.prefill_us + made.decode_us == made.total_us
    assert made.prefill_us <= made.ttft_us <= made.total_us


def test_energy_is_shared_by_who_was_at_work() -> None:
    shares = EnergyShares()
    shares.read(100)
    shares.begin("a")
    shares.read(160)
    shares.begin("b")
    shares.read(200)
    assert shares.end("a") == 60 + 20
    shares.read(230)
    assert shares.end("b") == 20 + 30


def test_without_a_counter_there_is_no_energy() -> None:
    shares = EnergyShares()
    shares.begin("a")
    shares.read(None)
    assert shares.end("a") == 0
    assert shares.end("unknown") == 0


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 8))
def test_shares_never_exceed_the_counter(steps: list[int], at_work: int) -> None:
    shares, counter = EnergyShares(), 0
    shares.read(0)
    for number in range(at_work):
        shares.begin(str(number))
    for step in steps:
        counter += step
        shares.read(counter)
    total = sum(shares.end(str(number)) for number in range(at_work))
    assert total == pytest.approx(counter, abs=at_work)
