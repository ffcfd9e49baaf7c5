"""Makes tests/vectors/{receipt,attestation,settlement}; the same bytes on every run.

What each scenario must come to is written here by hand, never taken from the code under test.
Write the files again after a change of the protocol:
`cd tests && python -m support.evidence_vectors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from novamesh_proto import wire
from novamesh_proto.envelope import Verified
from novamesh_proto.messages import FinishReason
from support.answer_vectors import answers
from support.parties import MS, OFFER, digest, nonce
from support.receipt_vectors import (
    CONTINUED,
    HONEST,
    MISSED,
    THIEF,
    Scenario,
    entry,
    receipts,
)
from support.story import Story, tell
from support.vectors import ROOT

SOURCE = 'ours; keys are SHA-256("party client"), "party node", "party coordinator" as seeds'


def packed(**parts: Verified[Any] | None) -> dict[str, str]:
    """Envelopes as hex, absent ones left out."""
    return {k: wire.encode(v.envelope).hex() for k, v in parts.items() if v is not None}


# Attestations: name, comment, what is told differently, rules that find something.
Changes = dict[str, dict[str, Any]]


def timing(**changes: int) -> Changes:
    return {"attestation": {"timing": replace(HONEST.attestation.message.timing, **changes)}}


WITNESSED: list[tuple[str, str, Changes, list[int]]] = [
    ("honest", "every rule holds", {}, []),
    ("phases above the total", "rule 1", timing(queue_us=61 * MS), [1]),
    ("first token before prefill ended", "rule 1", timing(ttft_us=299 * MS), [1]),
    ("total above the client's", "rules 2 and 3", timing(total_us=2_411 * MS), [2, 3]),
    ("first token after the client's", "rule 2", timing(ttft_us=431 * MS), [2]),
    (
        "fast behind a slow network",
        "rule 3",
        timing(queue_us=0, decode_us=1_900 * MS, total_us=2_259 * MS),
        [3],
    ),
    ("burst", "rule 4: 51 of 100 tokens at once", {"client_receipt": {"burst_tokens": 51}}, [4]),
    ("no burst", "rule 4: half of them at once", {"client_receipt": {"burst_tokens": 50}}, []),
    ("faster than memory", "rule 5: 226 tokens/s, 180 fit", timing(decode_us=439 * MS), [5]),
    ("as fast as memory", "rule 5: exactly 1.25 times", timing(decode_us=440 * MS), []),
]
MISFITS: list[tuple[str, str, dict[str, Any]]] = [
    ("another job", "bad_request", {"job": digest("x")}),
    ("another attempt", "stale", {"attempt": 2}),
    ("an old fence", "stale", {"fence": 6}),
    ("a newer fence", "stale", {"fence": 8}),
    ("another assignment", "bad_request", {"in_reply_to": digest("x")}),
    ("no assignment", "bad_request", {"in_reply_to": b""}),
    ("another model", "bad_request", {"model_profile": digest("x")}),
    ("another position", "bad_request", {"start_position": 40}),
    ("more tokens than wanted", "bad_request", {"completion_tokens": 201}),
    ("no reason for the end", "bad_request", {"finish": FinishReason.UNSPECIFIED}),
]


def attestations() -> list[Scenario]:
    """Table attestation/attestation: does it belong, and which rules find something."""
    made: list[Scenario] = []
    for name, comment, changes, rules in WITNESSED:
        story = tell(changes)
        made.append(entry(name, "ok", comment, **claimed(story), rules=rules))
    for name, code, change in MISFITS:
        story = tell({"attestation": change})
        made.append(entry(name, code, "it does not belong to the assignment", **claimed(story)))
    story = tell(signers={"attestation": THIEF})
    return [*made, entry("another node", "forbidden", "it was not assigned", **claimed(story))]


def claimed(story: Story) -> dict[str, Any]:
    return {
        **packed(
            terms=story.terms,
            assignment=story.assignment,
            attestation=story.attestation,
            relay_receipt=story.relay_receipt,
            client_receipt=story.client_receipt,
        ),
        "active_bytes": OFFER.active_bytes,
    }


ACKED = {"ack": {"challenge": nonce("challenge 64")}}

# Settlements: name, changes, parts left out, (fence, paid_until), (start, prompt, completion).
PAID: list[tuple[str, Changes, set[str], tuple[int, int], tuple[int, int, int]]] = [
    ("in full", {}, set(), (7, 0), (0, 120, 100)),
    ("up to the relay", {"relay_receipt": MISSED}, set(), (7, 0), (0, 120, 90)),
    ("up to the terms", {"attestation": {"completion_tokens": 250}}, set(), (7, 0), (0, 120, 200)),
    ("up to the body", {"attestation": {"prompt_tokens": 5_000}}, set(), (7, 0), (0, 1040, 100)),
    ("nothing for an old fence", {}, set(), (8, 0), (0, 0, 0)),
    (
        "nothing for another chain",
        {"relay_receipt": {"chain_head": digest("x")}},
        set(),
        (7, 0),
        (0, 0, 0),
    ),
    ("nothing for another attempt", {"attestation": {"attempt": 2}}, set(), (7, 0), (0, 0, 0)),
    ("nothing without the node", {}, {"attestation", "checkpoint"}, (7, 0), (0, 0, 0)),
    (
        "prompt only without a witness",
        {},
        {"relay_receipt", "ack", "client_receipt"},
        (7, 0),
        (0, 120, 0),
    ),
    ("up to the checkpoint", {}, {"attestation"}, (7, 0), (0, 0, 64)),
    ("up to the ack", {}, {"relay_receipt", "client_receipt"}, (7, 0), (0, 120, 64)),
    ("up to the client receipt", {}, {"relay_receipt", "ack"}, (7, 0), (0, 120, 100)),
    ("continued", CONTINUED, set(), (7, 40), (40, 120, 100)),
    ("continued and paid before", CONTINUED, set(), (7, 64), (64, 120, 76)),
    ("continued with a gap", CONTINUED, set(), (7, 30), (40, 120, 100)),
    ("all paid before", {}, set(), (7, 150), (150, 120, 0)),
]


def settlements() -> list[Scenario]:
    """Table settlement/settlement: what is paid for which evidence."""
    made: list[Scenario] = []
    names = ("attestation", "checkpoint", "relay_receipt", "ack", "client_receipt")
    for name, changes, left_out, (fence, paid_until), (start, prompt, completion) in PAID:
        story = tell({**ACKED, **changes})
        parts = {part: getattr(story, part) for part in names if part not in left_out}
        fields: dict[str, Any] = {
            **packed(terms=story.terms, assignment=story.assignment, **parts),
            "fence": fence,
            "paid_until": paid_until,
            "start_position": start,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }
        made.append(entry(name, "ok", f"{completion} tokens from {start}", **fields))
    return made


TABLES: dict[str, Callable[[], list[Scenario]]] = {
    "receipt/receipt": receipts,
    "receipt/answer": answers,
    "attestation/attestation": attestations,
    "settlement/settlement": settlements,
}


def render(table: str) -> str:
    """The text of a table's file."""
    content = {"table": table, "source": SOURCE, "scenarios": TABLES[table]()}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all tables."""
    for table in TABLES:
        path = ROOT / f"{table}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(table))


if __name__ == "__main__":
    main()
