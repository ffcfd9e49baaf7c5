"""Scenarios of tests/vectors/receipt/answer: answers of several parts that hold, and that do not.

What each scenario must come to is written here by hand, never taken from the code under test.
`support.evidence_vectors` writes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from novamesh_proto.messages import FinishReason, JobState
from novamesh_proto.receipt import Receipt, encode_receipt
from novamesh_proto.settlement import record, settle
from support.parties import CLIENT, COORDINATOR, NODE, digest, head, party, sign, terms
from support.story import Changes, Story, tell

Scenario = dict[str, Any]
OTHER = party("another node")
THIRD = party("third node")
SAMPLING = terms().sampling


def part(
    before: Story | None, start: int, node: Any = NODE, changes: Changes | None = None, **more: Any
) -> Story:
    """A job that goes on after `start` tokens with the answer that another one gave until then."""
    asked: dict[str, Any] = {"idempotency_key": f"from {start}"}
    if before is not None:
        asked |= {
            "parent_job": before.terms.id,
            "start_position": start,
            "prefix_digest": digest("prefix"),
        }
    given = dict(changes or {})
    made: dict[str, Any] = {
        **given,
        "terms": asked | dict(given.get("terms", {})),
        "checkpoint": {"position": start + 64} | dict(given.get("checkpoint", {})),
    }
    return tell(made, node=node, **more)


def lost(story: Story) -> Receipt:
    """Its node died after its checkpoint; the coordinator settled up to that."""
    relay = replace(
        story.relay_receipt.message, chunks=70, tokens=70, chain_head=digest("chain 70")
    )
    seen = sign(relay, COORDINATOR)
    work = replace(
        story.work, attestation=None, checkpoint=story.checkpoint.message, relay_receipt=relay
    )
    header = head(COORDINATOR, CLIENT, NODE, label="settlement")
    paid = record(header, work, settle(work), JobState.FAILED, (story.checkpoint.id,))
    return replace(
        story.receipt,
        attestation=None,
        client_receipt=None,
        relay_receipt=seen.envelope,
        settlement=sign(paid, COORDINATOR).envelope,
    )


def silent(story: Story) -> Receipt:
    """Its node died before it signed anything."""
    return Receipt(story.receipt.descriptor, story.receipt.terms, story.receipt.assignment)


HANDED_BACK: Changes = {
    "attestation": {
        "finish": FinishReason.CANCELLED,
        "completion_tokens": 20,
        "chunks": 20,
        "chain_head": digest("chain 20"),
    },
    "client_receipt": {"completion_tokens": 20},
    "settlement": {"outcome": JobState.FAILED},
}
FIRST = part(None, 0)
SECOND = part(FIRST, 70, OTHER)
BACK = part(FIRST, 70, OTHER, HANDED_BACK)
THIRD_PART = part(BACK, 90, THIRD)


def two(second: Story = SECOND, first: Receipt | None = None) -> Receipt:
    """An answer of two parts: 70 tokens, of which 64 were signed for, then 100."""
    return replace(second.receipt, earlier=(first or lost(FIRST),))


def three() -> Receipt:
    """The second node handed its 20 tokens back; the third gave the rest."""
    handed = replace(BACK.receipt, checkpoint=None)
    return replace(THIRD_PART.receipt, earlier=(lost(FIRST), handed))


def changed(**terms_: Any) -> Receipt:
    """The honest answer, but the terms of its second part say something else."""
    return two(part(FIRST, 70, OTHER, {"terms": terms_}))


def paid_again() -> Receipt:
    """Nobody relayed the second part, and it is settled from the first position on."""
    again = part(FIRST, 70, OTHER, {"settlement": {"start_position": 0}})
    return replace(two(again), relay_receipt=None)


# Answers that hold: name, comment, receipt, ((start, signed, end) of each part).
GOOD: list[tuple[str, str, Receipt, list[tuple[int, int, int]]]] = [
    (
        "node lost",
        "its last six tokens were witnessed and attested by nobody",
        two(),
        [(0, 64, 70), (70, 170, 170)],
    ),
    (
        "node lost before it signed",
        "all of its tokens are unattested",
        replace(part(FIRST, 9, OTHER).receipt, earlier=(silent(FIRST),)),
        [(0, 0, 9), (9, 109, 109)],
    ),
    (
        "work handed back",
        "three nodes, the second one attests its part",
        three(),
        [(0, 64, 70), (70, 90, 90), (90, 190, 190)],
    ),
    (
        "same node again",
        "it came back, and nobody else was there",
        two(part(FIRST, 70, NODE)),
        [(0, 64, 70), (70, 170, 170)],
    ),
]

# Whole files that are not true: name, code, section and part that are wrong, receipt.
FORGED: list[tuple[str, str, int, str, Receipt]] = [
    ("another parent", "corrupt", 2, "terms", changed(parent_job=digest("x"))),
    ("another sampling", "corrupt", 2, "terms", changed(sampling=replace(SAMPLING, top_k=7))),
    (
        "another seed",
        "corrupt",
        2,
        "terms",
        changed(sampling=replace(SAMPLING, seed_commitment=digest("x"))),
    ),
    ("a gap behind", "corrupt", 2, "terms", two(part(FIRST, 63, OTHER))),
    ("no prefix", "corrupt", 2, "terms", changed(prefix_digest=b"")),
    (
        "another client",
        "corrupt",
        2,
        "terms",
        two(part(FIRST, 70, OTHER, client=party("another client"))),
    ),
    (
        "no beginning",
        "corrupt",
        2,
        "terms",
        replace(three(), earlier=three().earlier[1:]),
    ),
    (
        "sections changed places",
        "corrupt",
        2,
        "terms",
        replace(FIRST.receipt, earlier=(silent(SECOND),)),
    ),
    (
        "end without an attestation",
        "corrupt",
        2,
        "attestation",
        replace(lost(SECOND), earlier=(lost(FIRST),)),
    ),
    (
        "first section without terms",
        "corrupt",
        1,
        "terms",
        two(first=replace(lost(FIRST), terms=None)),
    ),
    (
        "first section of another node",
        "corrupt",
        1,
        "descriptor",
        two(first=replace(lost(FIRST), descriptor=SECOND.receipt.descriptor)),
    ),
    ("positions paid twice", "corrupt", 2, "settlement", paid_again()),
]

Text = Callable[[list[str]], list[str]]


def heading(number: int, text: str) -> Text:
    """Another heading in the place of a section's."""
    at = 1 + 9 * (number - 1)
    return lambda lines: [*lines[:at], text, *lines[at + 1 :]]


# Damaged files: name, code, section (0: none) and part that are wrong, what happened to the lines.
DAMAGED: list[tuple[str, str, int, str, Text]] = [
    ("version 1 with sections", "corrupt", 0, "descriptor", lambda ls: [ls[0][:-1] + "1", *ls[1:]]),
    (
        "one section",
        "corrupt",
        0,
        "format",
        lambda ls: [ls[0], "section 1 of 1", *ls[2:10], ls[-1]],
    ),
    ("seventeen sections", "corrupt", 0, "format", heading(1, "section 1 of 17")),
    ("another count", "corrupt", 0, "format", heading(2, "section 2 of 3")),
    ("a section is missing", "corrupt", 0, "format", lambda ls: [*ls[:10], ls[-1]]),
    ("a line is missing", "corrupt", 1, "checkpoint", lambda ls: ls[:5] + ls[6:]),
    ("a section too many", "corrupt", 0, "end", lambda ls: [*ls[:-1], *ls[10:]]),
    ("flipped checksum", "corrupt", 0, "end", lambda ls: [*ls[:-1], ls[-1][:-1] + "x"]),
]


def lines_of(receipt: Receipt) -> list[str]:
    return encode_receipt(receipt).decode().splitlines()


def answers() -> list[Scenario]:
    """Table receipt/answer: `lines` end with a newline each."""
    made: list[Scenario] = []
    for name, comment, receipt, spans in GOOD:
        made.append(
            {"name": name, "expect": "ok", "comment": comment, "lines": lines_of(receipt),
             "spans": spans}
        )  # fmt: skip
    for name, code, section, wrong, receipt in FORGED:
        made.append(_refused(name, code, section, wrong, lines_of(receipt)))
    for name, code, section, wrong, change in DAMAGED:
        lines = change(lines_of(two()))
        if wrong != "end":
            body = "".join(line + "\n" for line in lines[:-1])
            lines[-1] = "end " + hashlib.sha256(body.encode()).hexdigest()
        made.append(_refused(name, code, section, wrong, lines))
    return made


def _refused(name: str, code: str, section: int, wrong: str, lines: list[str]) -> Scenario:
    comment = f"{wrong} is wrong" + f" in section {section}" * bool(section)
    return {
        "name": name, "expect": code, "comment": comment, "lines": lines, "section": section,
        "part": wrong,
    }  # fmt: skip
