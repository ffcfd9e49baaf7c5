"""Parts that are all signed, but do not belong together: which of them is blamed, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from novamesh_proto.attestation import witnessed_speed
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt, check_evidence
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import JobState, ReceiptVerdict
from novamesh_proto.settlement import record, settle
from support.clock import START_MS
from support.parties import (
    COORDINATOR,
    DAY_MS,
    HARDWARE,
    MS,
    NODE,
    OFFER,
    digest,
    head,
    party,
    sign,
)
from support.story import Story, tell

BLAMED = {"relay_receipt": "relay-receipt", "client_receipt": "client-receipt"}


def evidence(story: Story, **parts: Any) -> VerifiedReceipt:
    """A story's messages without its ack; `parts` replaces some of them."""
    made = VerifiedReceipt(
        story.descriptor,
        story.terms,
        story.assignment,
        story.checkpoint,
        story.attestation,
        story.relay_receipt,
        story.client_receipt,
        story.settlement,
    )
    return replace(made, **parts)


def refusal(
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    signers: Mapping[str, PrivateKey] | None = None,
    **parts: Any,
) -> NovaMeshError:
    story = tell(changes, signers)
    with pytest.raises(NovaMeshError) as caught:
        check_evidence(evidence(story, **parts))
    return caught.value


HONEST = tell()


def test_an_honest_story_holds() -> None:
    check_evidence(evidence(HONEST))


def test_what_it_says_of_parties_and_model() -> None:
    told = evidence(HONEST)
    assert (told.client, told.node, told.coordinator) == (
        HONEST.terms.issuer,
        HONEST.descriptor.issuer,
        HONEST.assignment.issuer,
    )
    assert told.offer == OFFER
    assert told.model_profile == OFFER.model_profile
    assert dict(told.signatures)["relay-receipt"] == told.coordinator


ATTEMPTED = ["assignment", "checkpoint", "attestation", "relay_receipt", "client_receipt"]


@pytest.mark.parametrize("part", [*ATTEMPTED[1:], "settlement"])
@pytest.mark.parametrize(
    ("field", "what"),
    [({"job": digest("x")}, "job"), ({"attempt": 2}, "attempt"), ({"fence": 6}, "attempt")],
    ids=["job", "attempt", "fence"],
)
def test_a_part_of_another_attempt_is_blamed(part: str, field: dict[str, Any], what: str) -> None:
    error = refusal({part: field})
    blamed = BLAMED.get(part, part)
    assert error.message == f"receipt part {blamed}: it names another {what} than the other parts"


@pytest.mark.parametrize("part", ["descriptor", "terms", *ATTEMPTED, "settlement"])
def test_a_part_of_another_pool_is_blamed(part: str) -> None:
    error = refusal({part: {"network": "another"}})
    assert f"receipt part {BLAMED.get(part, part)}: it names another pool" in error.message


@pytest.mark.parametrize(
    ("part", "role"),
    [
        ("descriptor", "node"),
        ("checkpoint", "node"),
        ("attestation", "node"),
        ("client_receipt", "client"),
        ("relay_receipt", "coordinator"),
        ("settlement", "coordinator"),
    ],
)
def test_a_part_by_somebody_else_is_blamed(part: str, role: str) -> None:
    error = refusal(signers={part: party("thief")})
    assert f"receipt part {BLAMED.get(part, part)}: it names another {role}" in error.message


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ({"client": party("thief").node_id}, "client"),
        ({"node": party("thief").node_id}, "node"),
        ({"model_profile": digest("x")}, "model"),
    ],
)
def test_a_settlement_for_somebody_else_is_blamed(field: dict[str, Any], what: str) -> None:
    error = refusal({"settlement": field})
    assert f"receipt part settlement: it names another {what}" in error.message


def test_a_coordinator_that_the_client_did_not_ask_is_refused() -> None:
    error = refusal({"terms": {"audience": (party("other coordinator").node_id,)}})
    assert error.message == "receipt part assignment: the terms are not addressed to its issuer"


def test_a_node_that_did_not_offer_the_model_is_refused() -> None:
    error = refusal({"descriptor": {"models": (replace(OFFER, model_profile=digest("x")),)}})
    assert error.message == "receipt part descriptor: it does not offer the model of the terms"


@pytest.mark.parametrize("shift_ms", [-2 * DAY_MS, DAY_MS])
def test_a_descriptor_of_another_day_is_refused(shift_ms: int) -> None:
    issued = START_MS + shift_ms
    error = refusal({"descriptor": {"issued_at_ms": issued, "expires_at_ms": issued + DAY_MS}})
    assert error.message.startswith("receipt part descriptor: it was not in force")


@pytest.mark.parametrize("part", ["relay_receipt", "client_receipt"])
def test_a_receipt_for_another_attestation_is_blamed(part: str) -> None:
    error = refusal({part: {"in_reply_to": digest("x")}})
    blamed = BLAMED[part]
    assert error.message.startswith(f"receipt part {blamed}: it names another attestation")


def test_a_second_attestation_for_the_same_attempt_is_blamed() -> None:
    second = tell({"attestation": {"energy_mj": 1}}).attestation
    error = refusal(attestation=second)
    assert error.message.startswith("receipt part attestation: it names another attestation")


def test_what_the_attestation_itself_breaks_is_its_fault() -> None:
    error = refusal({"attestation": {"in_reply_to": digest("x")}})
    assert error.message == (
        "receipt part attestation: the attestation does not answer this assignment"
    )


@pytest.mark.parametrize("part", ["relay_receipt", "client_receipt"])
def test_another_chain_is_blamed(part: str) -> None:
    error = refusal({part: {"chain_head": digest("x")}})
    assert error.message.startswith(f"receipt part {BLAMED[part]}: it names another chain")


def test_a_chain_that_only_the_node_knows_is_its_fault() -> None:
    honest = {"chain_head": HONEST.attestation.message.chain_head}
    changes = {
        "attestation": {"chain_head": digest("x")},
        "relay_receipt": honest,
        "client_receipt": honest,
    }
    assert refusal(changes).message.startswith("receipt part attestation: it names another chain")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("checkpoint", {"chunks": 101, "position": 101}),
        ("relay_receipt", {"chunks": 101, "chain_head": digest("x")}),
        ("client_receipt", {"chunks": 99, "chain_head": digest("x")}),
    ],
)
def test_chunks_that_the_attestation_does_not_count_are_refused(
    part: str, field: dict[str, Any]
) -> None:
    error = refusal({part: field})
    assert f"receipt part {BLAMED.get(part, part)}: it counts {field['chunks']}" in error.message


def test_more_tokens_in_fewer_chunks_are_refused() -> None:
    error = refusal({"checkpoint": {"position": 101}})
    assert error.message == "receipt part checkpoint: it counts 101 tokens, the attestation 100"


def test_a_checkpoint_counts_positions_of_the_whole_answer() -> None:
    last = {"chunks": 100, "position": 140, "chain_head": HONEST.attestation.message.chain_head}
    story = tell({"terms": {"start_position": 40}, "checkpoint": last})
    check_evidence(evidence(story))


def test_a_client_may_say_that_its_answer_was_incomplete() -> None:
    story = tell(
        {
            "client_receipt": {
                "verdict": ReceiptVerdict.INCOMPLETE,
                "chunks": 90,
                "completion_tokens": 90,
                "chain_head": digest("chain 90"),
            }
        }
    )
    check_evidence(evidence(story))


def test_a_relay_that_missed_the_end_bounds_the_settlement() -> None:
    missed = {"chunks": 90, "tokens": 90, "chain_head": digest("chain 90")}
    told = evidence(tell({"relay_receipt": missed}))
    check_evidence(told)
    assert told.settlement is not None
    assert told.settlement.message.completion_tokens == 90


@pytest.mark.parametrize(
    "field",
    [
        {"completion_tokens": 101},
        {"completion_tokens": 99},
        {"prompt_tokens": 121},
        {"prompt_tokens": 0},
    ],
)
def test_a_settlement_that_is_not_what_the_rule_gives_is_refused(field: dict[str, int]) -> None:
    error = refusal({"settlement": field})
    assert error.message.startswith("receipt part settlement: it pays ")
    assert error.message.endswith("the evidence bears 120 and 100 from 0")


def test_a_settlement_may_begin_where_an_earlier_one_ended() -> None:
    check_evidence(evidence(tell({"settlement": {"start_position": 30, "completion_tokens": 70}})))
    assert refusal({"settlement": {"start_position": 30}}).message == (
        "receipt part settlement: it pays 120 prompt and 100 completion tokens from position 30, "
        "the evidence bears 120 and 70 from 30"
    )


def test_a_settlement_without_the_evidence_is_refused() -> None:
    error = refusal({"settlement": {"evidence": ()}})
    assert "receipt part settlement: it names another attestation" in error.message


def test_a_direct_path_is_settled_up_to_what_the_client_signed() -> None:
    check_evidence(evidence(HONEST, relay_receipt=None))
    fewer = tell({"settlement": {"completion_tokens": 64}})
    check_evidence(evidence(fewer, relay_receipt=None))
    more = {"settlement": {"completion_tokens": 101}}
    assert "receipt part settlement: it pays" in refusal(more, relay_receipt=None).message


def died() -> VerifiedReceipt:
    """The node died after its checkpoint at position 64; the relay saw 70 tokens."""
    relay = {"chunks": 70, "tokens": 70, "in_reply_to": b"", "chain_head": digest("chain 70")}
    client = {
        "chunks": 70,
        "completion_tokens": 70,
        "in_reply_to": b"",
        "chain_head": digest("chain 70"),
        "verdict": ReceiptVerdict.INCOMPLETE,
    }
    story = tell({"relay_receipt": relay, "client_receipt": client})
    work = replace(story.work, attestation=None, checkpoint=story.checkpoint.message)
    settled = record(head(COORDINATOR), work, settle(work), JobState.FAILED, (story.checkpoint.id,))
    return evidence(story, attestation=None, settlement=sign(settled, COORDINATOR))


def test_a_node_that_died_is_settled_up_to_its_checkpoint() -> None:
    told = died()
    check_evidence(told)
    assert (told.prompt_tokens, told.completion_tokens, told.findings) == (None, 64, ())
    assert told.settlement is not None
    assert told.settlement.message.completion_tokens == 64


def test_a_settlement_of_another_checkpoint_is_refused() -> None:
    other = tell({"checkpoint": {"position": 63}}).checkpoint
    with pytest.raises(NovaMeshError, match="part settlement: it does not rest on") as caught:
        check_evidence(replace(died(), checkpoint=other))
    assert caught.value.code is Code.CORRUPT


def test_without_the_clients_word_there_is_no_witnessed_speed() -> None:
    told = evidence(HONEST, client_receipt=None)
    assert (told.ttft_us, told.tokens_per_s) == (None, None)


def test_findings_are_told_and_change_nothing() -> None:
    fast = replace(HONEST.attestation.message.timing, decode_us=400 * MS)
    story = tell({"attestation": {"timing": fast, "hardware": HARDWARE}})
    told = evidence(story)
    check_evidence(told)
    assert [finding.rule for finding in told.findings] == [5]
    assert told.settlement is not None
    assert told.settlement.message.completion_tokens == 100


def test_what_is_not_there_is_not_vouched_for() -> None:
    told = evidence(HONEST)
    claim = HONEST.attestation.message
    assert (told.prompt_tokens, told.completion_tokens) == (
        claim.prompt_tokens,
        claim.completion_tokens,
    )
    assert told.ttft_us == HONEST.client_receipt.message.ttft_us
    assert told.tokens_per_s == witnessed_speed(HONEST.client_receipt.message) > 0
    instant = tell({"client_receipt": {"burst_tokens": 10**6}}).client_receipt
    assert evidence(HONEST, client_receipt=instant).tokens_per_s is None
    dead = evidence(HONEST, attestation=None, relay_receipt=None, client_receipt=None)
    point = HONEST.checkpoint.message
    assert (dead.prompt_tokens, dead.completion_tokens) == (None, point.position)
    assert (dead.ttft_us, dead.tokens_per_s, dead.findings) == (None, None, ())
    assert evidence(HONEST, attestation=None, checkpoint=None).completion_tokens == 0
    assert [part for part, _ in dead.signatures] == [
        "descriptor",
        "terms",
        "assignment",
        "checkpoint",
        "settlement",
    ]


OPTIONAL = ("checkpoint", "relay_receipt", "client_receipt", "settlement")


@pytest.mark.parametrize("absent", [(part,) for part in OPTIONAL] + [OPTIONAL])
def test_parts_may_be_absent(absent: tuple[str, ...]) -> None:
    missing: dict[str, Any] = dict.fromkeys(absent)
    if "relay_receipt" in absent or "client_receipt" in absent:
        missing["settlement"] = None  # it would rest on what is not here
    check_evidence(evidence(HONEST, **missing))


def test_a_node_that_died_needs_no_other_word() -> None:
    missing = ("attestation", "relay_receipt", "client_receipt", "settlement")
    check_evidence(evidence(HONEST, **dict.fromkeys(missing)))


def test_every_refusal_says_that_the_copy_proves_nothing() -> None:
    error = refusal(client_receipt=tell({"client_receipt": {"fence": 9}}).client_receipt)
    assert (error.code, error.hint) == (
        Code.CORRUPT,
        "this copy proves nothing: use an unchanged one",
    )


@pytest.mark.parametrize(
    ("issued_ms", "life_ms", "fits"),
    [
        (CLOCK_SKEW_MS, DAY_MS, True),
        (CLOCK_SKEW_MS + 1, DAY_MS, False),
        (-DAY_MS, DAY_MS - CLOCK_SKEW_MS, True),
        (-DAY_MS, DAY_MS - CLOCK_SKEW_MS - 1, False),
    ],
)
def test_a_descriptor_is_in_force_give_or_take_the_clocks(
    issued_ms: int, life_ms: int, fits: bool
) -> None:
    header = replace(
        HONEST.descriptor.message.header,
        issued_at_ms=START_MS + issued_ms,
        expires_at_ms=START_MS + issued_ms + life_ms,
    )
    shifted = sign(replace(HONEST.descriptor.message, header=header), NODE)
    if fits:
        check_evidence(evidence(HONEST, descriptor=shifted))
        return
    with pytest.raises(NovaMeshError) as caught:
        check_evidence(evidence(HONEST, descriptor=shifted))
    assert "it was not in force when the terms were signed" in caught.value.message
