"""Scenarios of tests/vectors/receipt: files that hold, files that are damaged or forged.

What each scenario must come to is written here by hand, never taken from the code under test.
`support.evidence_vectors` writes the file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from novamesh_proto.messages import (
    Envelope,
    FinishReason,
    JobState,
    ReceiptVerdict,
    Signature,
)
from novamesh_proto.receipt import Receipt, encode_receipt
from novamesh_proto.settlement import record, settle
from support.clock import START_MS
from support.parties import (
    CLIENT,
    COORDINATOR,
    DAY_MS,
    MS,
    NODE,
    digest,
    head,
    party,
    sign,
)
from support.story import Story, tell

Scenario = dict[str, Any]
THIEF = party("thief")
HONEST = tell()
CUT = {"chunks": 70, "chain_head": digest("chain 70"), "in_reply_to": b""}


def died() -> Receipt:
    """The node died after its checkpoint at position 64."""
    story = tell(
        {
            "relay_receipt": {"tokens": 70, **CUT},
            "client_receipt": {
                "completion_tokens": 70,
                "verdict": ReceiptVerdict.INCOMPLETE,
                **CUT,
            },
        }
    )
    work = replace(story.work, attestation=None, checkpoint=story.checkpoint.message)
    header = head(COORDINATOR, CLIENT, NODE, label="settlement")
    settled = record(header, work, settle(work), JobState.FAILED, (story.checkpoint.id,))
    signed = sign(settled, COORDINATOR).envelope
    return replace(story.receipt, attestation=None, settlement=signed)


def without(*parts: str) -> Receipt:
    return replace(HONEST.receipt, **dict.fromkeys(parts))


def told(part: str, **changes: Any) -> Receipt:
    return tell({part: changes}).receipt


CONTINUED = {
    "terms": {
        "parent_job": digest("parent"),
        "start_position": 40,
        "prefix_digest": digest("prefix"),
    }
}
MISSED = {"chunks": 90, "tokens": 90, "chain_head": digest("chain 90")}
FAST = replace(HONEST.attestation.message.timing, total_us=1_000 * MS, decode_us=300 * MS)


def entry(name: str, expect: str, comment: str, **fields: Any) -> Scenario:
    return {"name": name, "expect": expect, "comment": comment, **fields}


# Receipts that hold: name, comment, receipt, (prompt tokens, completion tokens, findings' rules).
GOOD: list[tuple[str, str, Receipt, tuple[int | None, int, list[int]]]] = [
    ("relayed job", "everything a client keeps", HONEST.receipt, (120, 100, [])),
    ("no checkpoint", "a short answer has none", without("checkpoint"), (120, 100, [])),
    ("not settled yet", "the node's word stands", without("settlement"), (120, 100, [])),
    ("direct path", "nobody relayed it", without("relay_receipt"), (120, 100, [])),
    ("kept by the node", "without the client's word", without("client_receipt"), (120, 100, [])),
    ("node died", "attested and settled up to its checkpoint", died(), (None, 64, [])),
    ("continued answer", "begins at position 40", tell(CONTINUED).receipt, (120, 100, [])),
    ("relay missed the end", "settled at 90", told("relay_receipt", **MISSED), (120, 100, [])),
    (
        "cancelled",
        "the client stopped it",
        tell(
            {
                "attestation": {"finish": FinishReason.CANCELLED},
                "settlement": {"outcome": JobState.CANCELLED},
            }
        ).receipt,
        (120, 100, []),
    ),
    (
        "timing that nobody saw",
        "rules 3 and 5 find it; the receipt holds",
        told("attestation", timing=FAST),
        (120, 100, [3, 5]),
    ),
    (
        "paid in part before",
        "positions up to 30 belong to an earlier job",
        told("settlement", start_position=30, completion_tokens=70),
        (120, 100, []),
    ),
]


def mixed(part: str, story: Story) -> Receipt:
    """The honest receipt with one part of another."""
    return replace(HONEST.receipt, **{part: getattr(story.receipt, part)})


def stolen(part: str, signatures: Callable[[Signature], tuple[Signature, ...]]) -> Receipt:
    """The honest receipt with other signatures on one part."""
    envelope: Envelope = getattr(HONEST.receipt, part)
    changed = replace(envelope, signatures=signatures(envelope.signatures[0]))
    return replace(HONEST.receipt, **{part: changed})


OTHER_JOB = tell({"terms": {"idempotency_key": "job-2"}})
OTHER_NODE = tell(node=party("another node"))
YESTERDAY = {"issued_at_ms": START_MS - 2 * DAY_MS, "expires_at_ms": START_MS - DAY_MS}
SMALL_ORDER = NODE.node_id[:6] + bytes([1]) + bytes(31)

# Receipts that are whole files, but not true: name, code, part that is wrong, receipt.
FORGED: list[tuple[str, str, str, Receipt]] = [
    ("no descriptor", "corrupt", "descriptor", without("descriptor")),
    ("no terms", "corrupt", "terms", without("terms")),
    ("no assignment", "corrupt", "assignment", without("assignment")),
    ("no word of the node", "corrupt", "attestation", without("attestation", "checkpoint")),
    ("terms of another job", "corrupt", "terms", mixed("terms", OTHER_JOB)),
    ("assignment of another job", "corrupt", "assignment", mixed("assignment", OTHER_JOB)),
    ("attestation of another job", "corrupt", "attestation", mixed("attestation", OTHER_JOB)),
    ("settlement of another job", "corrupt", "settlement", mixed("settlement", OTHER_JOB)),
    ("descriptor of another node", "corrupt", "descriptor", mixed("descriptor", OTHER_NODE)),
    ("descriptor of another day", "corrupt", "descriptor", told("descriptor", **YESTERDAY)),
    ("descriptor without the model", "corrupt", "descriptor", told("descriptor", models=())),
    (
        "attestation by another node",
        "corrupt",
        "attestation",
        tell(signers={"attestation": THIEF}).receipt,
    ),
    ("attestation of an old fence", "corrupt", "attestation", told("attestation", fence=6)),
    (
        "attestation of another model",
        "corrupt",
        "attestation",
        told("attestation", model_profile=digest("x")),
    ),
    (
        "attestation above the terms",
        "bad_request",
        "attestation",
        told("attestation", completion_tokens=201),
    ),
    (
        "relay receipt for another attestation",
        "corrupt",
        "relay-receipt",
        told("relay_receipt", in_reply_to=digest("x")),
    ),
    (
        "relay receipt of another chain",
        "corrupt",
        "relay-receipt",
        told("relay_receipt", chain_head=digest("x")),
    ),
    (
        "client receipt by another client",
        "corrupt",
        "client-receipt",
        tell(signers={"client_receipt": THIEF}).receipt,
    ),
    (
        "checkpoint beyond the answer",
        "corrupt",
        "checkpoint",
        told("checkpoint", chunks=101, position=101),
    ),
    ("settlement too high", "corrupt", "settlement", told("settlement", completion_tokens=101)),
    ("settlement too low", "corrupt", "settlement", told("settlement", completion_tokens=99)),
    ("settlement without evidence", "corrupt", "settlement", told("settlement", evidence=())),
    (
        "settlement by another coordinator",
        "corrupt",
        "settlement",
        tell(signers={"settlement": THIEF}).receipt,
    ),
    ("another pool", "corrupt", "relay-receipt", told("relay_receipt", network="another")),
    (
        "signature of another key",
        "bad_signature",
        "attestation",
        stolen("attestation", lambda one: (Signature(THIEF.node_id, one.sig),)),
    ),
    (
        "key of small order",
        "bad_key",
        "settlement",
        stolen("settlement", lambda one: (replace(one, keyid=SMALL_ORDER),)),
    ),
]

Text = Callable[[list[str]], list[str]]


def relabel(number: int, change: Callable[[str], str]) -> Text:
    """Change the text of one line."""
    return lambda lines: [*lines[:number], change(lines[number]), *lines[number + 1 :]]


def flip(number: int, at: int) -> Text:
    """Change one character of a line's base64url into the next letter."""

    def change(line: str) -> str:
        return line[:at] + ("B" if line[at] == "A" else "A") + line[at + 1 :]

    return relabel(number, change)


def append_field(line: str) -> str:
    label, text = line.split(" ")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) + b"\x78\x01"
    return f"{label} {base64.urlsafe_b64encode(data).decode().rstrip('=')}"


# Damaged files: name, code, part that is wrong, what happened to the lines, checksum made again.
DAMAGED: list[tuple[str, str, str, Text, bool]] = [
    ("flipped byte in a payload", "bad_signature", "terms", flip(2, 140), False),
    ("flipped byte in a signature", "bad_signature", "attestation", flip(5, -10), False),
    ("flipped byte, new checksum", "bad_signature", "relay-receipt", flip(6, -10), True),
    ("flipped checksum", "corrupt", "end", flip(9, 5), False),
    ("cut off", "corrupt", "attestation", lambda lines: [*lines[:5], lines[5][:40]], False),
    ("no end", "corrupt", "end", lambda lines: lines[:9], False),
    ("line after the end", "corrupt", "end", lambda lines: [*lines, ""], False),
    ("missing line", "corrupt", "checkpoint", lambda lines: lines[:4] + lines[5:], True),
    (
        "lines changed places",
        "corrupt",
        "terms",
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        True,
    ),
    ("another version", "corrupt", "format", relabel(0, lambda line: line[:-1] + "2"), True),
    ("windows line ends", "corrupt", "format", lambda ls: [line + "\r" for line in ls], False),
    ("base64 padding", "corrupt", "terms", relabel(2, lambda line: line + "="), True),
    ("unknown field", "corrupt", "client-receipt", relabel(7, append_field), True),
    ("capital label", "corrupt", "settlement", relabel(8, lambda line: "S" + line[1:]), True),
]


def lines_of(receipt: Receipt) -> list[str]:
    return encode_receipt(receipt).decode().splitlines()


def receipts() -> list[Scenario]:
    """Table receipt/receipt: `lines` end with a newline each, but for a file that is cut off."""
    made: list[Scenario] = []
    for name, comment, receipt, (prompt, completion, rules) in GOOD:
        fields: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "rules": rules,
        }
        made.append(entry(name, "ok", comment, lines=lines_of(receipt), **fields))
    for name, code, part, receipt in FORGED:
        made.append(entry(name, code, f"{part} is wrong", lines=lines_of(receipt), part=part))
    for name, code, part, change, again in DAMAGED:
        lines = change(lines_of(HONEST.receipt))
        if again:
            body = "".join(line + "\n" for line in lines[:-1])
            lines[-1] = "end " + hashlib.sha256(body.encode()).hexdigest()
        fields = {"cut": name == "cut off", "part": part}
        made.append(entry(name, code, f"{part} is wrong", lines=lines, **fields))
    return made
