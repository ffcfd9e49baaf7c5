"""Which attestations belong to a job, and what each witness rule finds, at its boundary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto import envelope as envelopes
from novamesh_proto import wire
from novamesh_proto.attestation import (
    SLACK_US,
    Finding,
    Severity,
    Witness,
    burst_tokens,
    check_attestation,
    findings,
    roofline,
    witnessed_speed,
)
from novamesh_proto.errors import Code, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import (
    ClientReceipt,
    Envelope,
    FinishReason,
    Hardware,
    InferenceAttestation,
    JobAssignment,
    JobTerms,
    RelayReceipt,
    Timing,
)
from support.evidence_vectors import render
from support.parties import HARDWARE, MS, NETWORK, NODE, digest, nonce, party
from support.story import tell
from support.vectors import ROOT, Vector, golden

STORY = tell()
HONEST = STORY.attestation.message
ROOFLINE = roofline(HARDWARE, 2 * 10**9)
WITNESS = Witness(
    client=STORY.client_receipt.message,
    relay=STORY.relay_receipt.message,
    rtt_client_us=40 * MS,
    roofline_tokens_per_s=ROOFLINE,
    acks=(STORY.ack.message,),
    checkpoints=(STORY.checkpoint.message,),
)


def timed(**changes: int) -> InferenceAttestation:
    """The honest claim with other durations, in µs."""
    return replace(HONEST, timing=replace(HONEST.timing, **changes))


def rules(attestation: InferenceAttestation, witness: Witness = WITNESS) -> list[int]:
    return [finding.rule for finding in findings(attestation, witness)]


def test_an_attestation_that_belongs_is_given_back() -> None:
    assert check_attestation(STORY.attestation, STORY.terms, STORY.assignment) is HONEST


@pytest.mark.parametrize(
    ("changes", "code", "problem"),
    [
        ({"job": digest("another")}, Code.BAD_REQUEST, "speaks of another job"),
        ({"attempt": 2}, Code.STALE, "is of attempt 2, fence 7"),
        ({"fence": 6}, Code.STALE, "is of attempt 1, fence 6"),
        ({"in_reply_to": digest("x")}, Code.BAD_REQUEST, "does not answer this assignment"),
        ({"model_profile": digest("x")}, Code.BAD_REQUEST, "names another model"),
        ({"start_position": 1}, Code.BAD_REQUEST, "does not begin at position 0"),
        ({"completion_tokens": 201}, Code.BAD_REQUEST, "ends at position 201, the terms allow 200"),
        ({"finish": FinishReason.UNSPECIFIED}, Code.BAD_REQUEST, "why the answer ended"),
    ],
)
def test_an_attestation_of_something_else_is_refused(
    changes: dict[str, Any], code: Code, problem: str
) -> None:
    story = tell({"attestation": changes})
    with pytest.raises(PeerError, match=problem) as caught:
        check_attestation(story.attestation, story.terms, story.assignment)
    assert caught.value.code is code
    assert caught.value.peer == format_node_id(NODE.node_id)


def test_an_attestation_of_a_node_that_was_not_assigned_is_refused() -> None:
    story = tell(signers={"attestation": party("thief")})
    with pytest.raises(PeerError, match="was not assigned") as caught:
        check_attestation(story.attestation, story.terms, story.assignment)
    assert caught.value.code is Code.FORBIDDEN


def test_an_assignment_of_another_job_is_refused() -> None:
    other = tell({"terms": {"idempotency_key": "job-2"}})
    with pytest.raises(PeerError, match="speaks of another job"):
        check_attestation(STORY.attestation, STORY.terms, other.assignment)


def test_an_honest_attestation_has_no_findings() -> None:
    assert findings(HONEST, WITNESS) == ()


def test_without_witnesses_only_the_claim_itself_is_checked() -> None:
    assert rules(timed(total_us=10**12), Witness()) == []
    assert rules(timed(queue_us=10**12), Witness()) == [1]


def test_rule_1_phases_fit_into_the_total() -> None:
    total = HONEST.timing.total_us
    fitting = total + SLACK_US - 2_300 * MS  # queue beside 300 ms of prefill and 2 s of decode
    assert rules(timed(queue_us=fitting)) == []
    assert findings(timed(queue_us=fitting + 1), WITNESS) == (
        Finding(1, Severity.INCONSISTENT, "its phases add up to 2360 ms, its total is 2310 ms"),
    )


def test_rule_1_the_first_token_comes_after_prefill() -> None:
    assert rules(timed(ttft_us=300 * MS)) == []
    (finding,) = findings(timed(ttft_us=299 * MS), WITNESS)
    assert finding.message == "its first token came after 299 ms, prefill took 300 ms"


def test_rule_1_the_first_token_comes_before_the_last() -> None:
    claim = replace(HONEST, timing=Timing(0, 0, 0, ttft_us=100 * MS + SLACK_US, total_us=50 * MS))
    assert rules(claim, Witness()) == [1]


def test_rule_2_the_total_fits_the_clients() -> None:
    # 2360 ms at the client, 40 ms round trip, 50 ms slack; the relay is not asked.
    alone = replace(WITNESS, relay=None)
    assert rules(timed(total_us=2_370 * MS), alone) == []
    (finding,) = findings(timed(total_us=2_370 * MS + 1), alone)
    assert (finding.rule, finding.severity) == (2, Severity.INCONSISTENT)
    assert finding.message == "its total of 2370 ms does not fit the client's 2360 ms"


def test_rule_2_the_first_token_fits_the_clients() -> None:
    assert rules(timed(ttft_us=390 * MS)) == []
    assert rules(timed(ttft_us=390 * MS + 1)) == [2]


def test_slack_grows_with_long_durations() -> None:
    hundred_s = 100_000 * MS
    client = replace(STORY.client_receipt.message, total_us=hundred_s)
    witness = Witness(client=client)
    assert rules(timed(total_us=hundred_s + 2_000 * MS), witness) == []
    assert rules(timed(total_us=hundred_s + 2_000 * MS + 1), witness) == [2]


def test_rule_3_nobody_is_fast_behind_a_slow_network() -> None:
    # 2330 ms at the relay, 20 ms round trip, 50 ms slack.
    fast = {"decode_us": 1_900 * MS, "queue_us": 0}
    assert rules(timed(total_us=2_260 * MS, **fast)) == []
    (finding,) = findings(timed(total_us=2_260 * MS - 1, **fast), WITNESS)
    assert (finding.rule, finding.severity) == (3, Severity.INCONSISTENT)
    assert finding.message == "its total is 2260 ms, the relay saw 2330 ms"


def test_rule_3_nothing_took_longer_than_at_the_relay() -> None:
    relayed = replace(WITNESS, client=None)
    assert rules(timed(total_us=2_400 * MS), relayed) == []
    assert rules(timed(total_us=2_400 * MS + 1), relayed) == [3]


def test_rule_3_an_unmeasured_round_trip_accuses_nobody_of_being_fast() -> None:
    relay = replace(STORY.relay_receipt.message, rtt_us=0, last_us=9_000 * MS)
    assert rules(HONEST, replace(WITNESS, relay=relay)) == []


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 5)), max_size=30),
    total_us=st.integers(0, 3000),
)
def test_a_burst_is_the_fullest_tenth(arrivals: list[tuple[int, int]], total_us: int) -> None:
    arrivals.sort()
    window_us = total_us // 10
    expected = max(
        (sum(n for at, n in arrivals if start <= at <= start + window_us) for start, _ in arrivals),
        default=0,
    )
    assert burst_tokens(arrivals, total_us) == expected


def test_rule_4_a_burst_is_not_ranked() -> None:
    client = STORY.client_receipt.message
    half = replace(client, burst_tokens=50)
    more = replace(client, burst_tokens=51)
    assert rules(HONEST, replace(WITNESS, client=half)) == []
    (finding,) = findings(HONEST, replace(WITNESS, client=more))
    assert (finding.rule, finding.severity) == (4, Severity.NOTE)
    assert finding.message.startswith("51 of 100 tokens came within a tenth of the time")


@pytest.mark.parametrize(
    ("tokens", "total_ms", "expected"), [(32, 2_860, [4]), (31, 2_860, []), (100, 499, [])]
)
def test_rule_4_says_nothing_of_an_answer_that_is_over_at_once(
    tokens: int, total_ms: int, expected: list[int]
) -> None:
    # A pause of some milliseconds fills a tenth of so short a time: an honest node is not accused.
    client = replace(
        STORY.client_receipt.message,
        completion_tokens=tokens,
        burst_tokens=tokens,
        total_us=total_ms * MS,
    )
    found = findings(HONEST, Witness(client=client))
    assert [one.rule for one in found if one.rule == 4] == expected
    assert witnessed_speed(client) == 0.0  # and yet nobody takes it for a speed


def test_rule_5_no_faster_than_memory_can_be_read() -> None:
    # 360 GB/s over 2 GB a token are 180 tokens/s; 1.25 times that are 99 steps in 440 ms.
    assert ROOFLINE == 180.0
    assert rules(timed(decode_us=440 * MS)) == []
    (finding,) = findings(timed(decode_us=439 * MS), WITNESS)
    assert (finding.rule, finding.severity) == (5, Severity.IMPLAUSIBLE)
    assert finding.message == "it claims 226 tokens/s, its memory allows 180 tokens/s"


def test_rule_5_no_decode_time_at_all() -> None:
    (finding,) = findings(timed(decode_us=0), WITNESS)
    assert finding.message == "it claims no decode time, its memory allows 180 tokens/s"


def test_rule_5_one_token_has_no_speed() -> None:
    one = replace(timed(decode_us=0), completion_tokens=1)
    assert rules(one) == []


def point(position: int, challenge: str) -> Any:
    answer = nonce(challenge) if challenge else b""
    return replace(STORY.checkpoint.message, position=position, challenge=answer)


def ack(position: int, challenge: str) -> Any:
    return replace(STORY.ack.message, position=position, challenge=nonce(challenge))


def test_rule_6_a_live_node_answers_challenges_in_order() -> None:
    points = (point(32, ""), point(64, "a"), point(96, "a"), point(128, "b"))
    witness = Witness(acks=(ack(32, "a"), ack(64, "b")), checkpoints=points)
    assert rules(HONEST, witness) == []


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ((point(64, "made up"),), "checkpoint 1 answers a challenge that the client had not sent"),
        ((point(31, "a"),), "checkpoint 1 answers a challenge that the client had not sent"),
        ((point(64, "b"), point(96, "a")), "checkpoint 2 answers an older challenge"),
        ((point(64, "a"), point(96, "")), "checkpoint 2 answers an older challenge"),
    ],
    ids=["unknown", "from the future", "backwards", "forgotten"],
)
def test_rule_6_a_recorded_stream_does_not(points: tuple[Any, ...], problem: str) -> None:
    witness = Witness(acks=(ack(32, "a"), ack(64, "b")), checkpoints=points)
    (finding,) = findings(HONEST, witness)
    assert (finding.rule, finding.severity) == (6, Severity.INCONSISTENT)
    assert problem in finding.message


def test_speed_is_steps_between_first_and_last_chunk() -> None:
    assert witnessed_speed(STORY.client_receipt.message) == 50.0  # 99 steps in 1.98 s
    two = replace(STORY.client_receipt.message, completion_tokens=2, total_us=880 * MS)
    assert witnessed_speed(replace(two, burst_tokens=1)) == 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"completion_tokens": 1},
        {"completion_tokens": 0},
        {"ttft_us": 2_360 * MS},
        {"burst_tokens": 51},
    ],
)
def test_a_speed_that_cannot_be_told_is_zero(changes: dict[str, int]) -> None:
    assert witnessed_speed(replace(STORY.client_receipt.message, **changes)) == 0.0


def machine(kind: str, name: str, bandwidth: int) -> Hardware:
    return Hardware(kind, name, 8 * 2**30, bandwidth)


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (machine("cuda", "NVIDIA GeForce RTX 4070 Ti SUPER", 10**15), 672.0),
        (machine("cuda", "NVIDIA GeForce RTX 4070", 0), 504.0),
        (machine("cuda", "NVIDIA A100-SXM4-80GB", 0), 2039.0),
        (machine("cuda", "NVIDIA Unheard Of", 500 * 10**9), 500.0),
        (machine("cuda", "NVIDIA Unheard Of", 10**15), 8_000.0),
        (machine("cpu", "AMD EPYC", 200 * 10**9), 200.0),
        (machine("cpu", "AMD EPYC", 10**15), 1_000.0),
        (machine("cpu", "my RTX 4090", 20 * 10**9), 20.0),
        (machine("cpu", "AMD EPYC", 0), None),
    ],
)
def test_roofline_trusts_the_data_sheet_before_the_claim(
    hardware: Hardware, expected: float | None
) -> None:
    assert roofline(hardware, 10**9) == expected


def test_roofline_of_an_unknown_model_is_unknown() -> None:
    assert roofline(HARDWARE, 0) is None


micros = st.integers(0, 2**40)


@given(micros, micros, micros, micros)
def test_whoever_says_the_truth_is_not_accused(
    queue_us: int, prefill_us: int, decode_us: int, way_us: int
) -> None:
    total = queue_us + prefill_us + decode_us
    first = queue_us + prefill_us
    claim = timed(
        queue_us=queue_us,
        prefill_us=prefill_us,
        decode_us=decode_us,
        ttft_us=first,
        total_us=total,
    )
    client = replace(STORY.client_receipt.message, ttft_us=first + way_us, total_us=total + way_us)
    relay = replace(
        STORY.relay_receipt.message, first_us=first + way_us, last_us=total + way_us, rtt_us=way_us
    )
    assert findings(claim, Witness(client, relay, rtt_client_us=way_us)) == ()


@given(st.integers(SLACK_US + 1, 2**40))
def test_whoever_claims_more_than_the_client_saw_is_found(more_us: int) -> None:
    seen_us = STORY.client_receipt.message.total_us
    claim = timed(total_us=seen_us + more_us)
    assert 2 in rules(claim, Witness(client=STORY.client_receipt.message))


@golden("attestation/attestation")
def test_golden_attestations(vector: Vector) -> None:
    def opened(part: str, cls: Any) -> Any:
        return envelopes.open(wire.decode(Envelope, vector.data(part)), cls, network=NETWORK)

    claim = opened("attestation", InferenceAttestation)
    with vector.verdict():
        check_attestation(claim, opened("terms", JobTerms), opened("assignment", JobAssignment))
        witness = Witness(
            client=opened("client_receipt", ClientReceipt).message,
            relay=opened("relay_receipt", RelayReceipt).message,
            roofline_tokens_per_s=roofline(claim.message.hardware, vector["active_bytes"]),
        )
        assert rules(claim.message, witness) == vector["rules"]


def test_golden_attestations_are_made_the_same_again() -> None:
    table = "attestation/attestation"
    assert (ROOT / f"{table}.json").read_text() == render(table)
