"""What a node claims about a job, and the witness rules that bound the claim.

`check_attestation` decides whether an attestation belongs to a job at all, and raises. `findings`
holds its timing against those who watched, and only ever tells: timing changes ranking, never
settlement. Durations are monotonic, each on its owner's clock; the slack between two clocks is
SLACK_US or SLACK_SHARE, whichever is more. A node can always look slower than it is; the rules
keep it from looking faster.

    1  the phases fit into the total          4  a long answer did not come in one burst
    2  nothing took longer than at the client 5  no faster than the memory can be read
    3  the relay saw the same duration        6  checkpoints answer the client's challenges
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import CHECKPOINT_TOKENS
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    FinishReason,
    Hardware,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobTerms,
    RelayReceipt,
    StreamAck,
)

SLACK_US: Final = 50_000
SLACK_SHARE: Final = 0.02
BURST_RULE: Final = 4
BURST_SHARE: Final = 0.5  # of the tokens in a BURST_PARTth of the time: the speed cannot be told
BURST_PARTS: Final = 10
# A burst is told of nobody whose whole answer is short: then a scheduler's pause, or two chunks in
# one packet, fill a tenth of the time. So a tenth must outlast the slack that two clocks have, and
# the answer be as long as what a node signs a checkpoint for.
BURST_TOKENS_MIN: Final = CHECKPOINT_TOKENS
BURST_US_MIN: Final = BURST_PARTS * SLACK_US
ROOFLINE_FACTOR: Final = 1.25
SECOND_US: Final = 1_000_000
GB: Final = 10**9

# Memory bandwidth by the makers' data sheets, GB/s; the longest name that fits counts.
_CARDS: Final[dict[str, int]] = {
    "RTX 2060": 336,
    "RTX 2070": 448,
    "RTX 2080": 448,
    "RTX 2080 TI": 616,
    "RTX 3050": 224,
    "RTX 3060": 360,
    "RTX 3060 TI": 448,
    "RTX 3070": 448,
    "RTX 3070 TI": 608,
    "RTX 3080": 760,
    "RTX 3080 TI": 912,
    "RTX 3090": 936,
    "RTX 3090 TI": 1008,
    "RTX 4060": 272,
    "RTX 4060 TI": 288,
    "RTX 4070": 504,
    "RTX 4070 TI": 504,
    "RTX 4070 TI SUPER": 672,
    "RTX 4080": 717,
    "RTX 4080 SUPER": 736,
    "RTX 4090": 1008,
    "RTX 5060": 448,
    "RTX 5060 TI": 448,
    "RTX 5070": 672,
    "RTX 5070 TI": 896,
    "RTX 5080": 960,
    "RTX 5090": 1792,
    "RX 6800 XT": 512,
    "RX 7800 XT": 624,
    "RX 7900 XT": 800,
    "RX 7900 XTX": 960,
    "RX 9070 XT": 640,
    "A100": 2039,
    "H100": 3350,
    "H200": 4800,
    "L4": 300,
    "L40S": 864,
    "TESLA T4": 320,
}
# Above this no machine of the kind exists yet, GB/s.
_KIND_MAX: Final[dict[str, int]] = {"cpu": 1_000, "mps": 1_100}
_ANY_MAX: Final = 8_000


class Severity(IntEnum):
    """How much a finding says. None of them is a proof of fraud."""

    NOTE = 1  # the speed is not used for ranking
    INCONSISTENT = 2  # the claim contradicts itself or a witness
    IMPLAUSIBLE = 3  # the claim contradicts the machine it names


@dataclass(frozen=True, slots=True)
class Finding:
    """A witness rule that an attestation does not keep; `rule` is its number above."""

    rule: int
    severity: Severity
    message: str


@dataclass(frozen=True, slots=True)
class Witness:
    """What others know about an attempt; what is absent is not checked.

    `rtt_client_us` is the least round trip between client and node, 0 where nobody measured it;
    `acks` and `checkpoints` are of this attempt, in the order they were made.
    """

    client: ClientReceipt | None = None
    relay: RelayReceipt | None = None
    rtt_client_us: int = 0
    roofline_tokens_per_s: float | None = None
    acks: tuple[StreamAck, ...] = ()
    checkpoints: tuple[ChunkCheckpoint, ...] = ()


def check_attestation(
    attestation: Verified[InferenceAttestation],
    terms: Verified[JobTerms],
    assignment: Verified[JobAssignment],
) -> InferenceAttestation:
    """The attestation, if it speaks of exactly this attempt of this job.

    Raises:
        PeerError: FORBIDDEN if another node signed it, STALE for another attempt or an old fence,
            BAD_REQUEST if it speaks of another job, model or position, or of more completion tokens
            than the terms allow. Prompt tokens are not refused: a chat template may add some, and
            settlement bounds what is paid.
    """
    att, want, given = attestation.message, terms.message, assignment.message
    start, end = want.start_position, att.start_position + att.completion_tokens
    if attestation.issuer != given.node:
        raise _misfit(attestation, Code.FORBIDDEN, "was signed by a node that was not assigned")
    if not given.job == att.job == JobId(terms.id):
        raise _misfit(attestation, Code.BAD_REQUEST, "speaks of another job")
    if (att.attempt, att.fence) != (given.attempt, given.fence):
        raise _misfit(attestation, Code.STALE, f"is of attempt {att.attempt}, fence {att.fence}")
    if att.header.in_reply_to != assignment.id:
        raise _misfit(attestation, Code.BAD_REQUEST, "does not answer this assignment")
    if att.model_profile != want.model_profile:
        raise _misfit(attestation, Code.BAD_REQUEST, "names another model than the terms")
    if att.start_position != start:
        raise _misfit(attestation, Code.BAD_REQUEST, f"does not begin at position {start}")
    if end > want.sampling.max_tokens:
        problem = f"ends at position {end}, the terms allow {want.sampling.max_tokens}"
        raise _misfit(attestation, Code.BAD_REQUEST, problem)
    if att.finish is FinishReason.UNSPECIFIED:
        raise _misfit(attestation, Code.BAD_REQUEST, "does not say why the answer ended")
    return att


def findings(attestation: InferenceAttestation, witness: Witness) -> tuple[Finding, ...]:
    """Every rule that the attestation does not keep, in order. None found proves nothing."""
    return (
        *_phases(attestation),
        *_at_the_client(attestation, witness),
        *_at_the_relay(attestation, witness.relay),
        *_burst(witness.client),
        *_above_roofline(attestation, witness.roofline_tokens_per_s),
        *_challenges(witness.acks, witness.checkpoints),
    )


def burst_tokens(arrivals: Sequence[tuple[int, int]], total_us: int) -> int:
    """Most tokens that came within any tenth of the time; arrivals are (µs, tokens), in order."""
    window_us = total_us // BURST_PARTS
    most = inside = first = 0
    for at_us, tokens in arrivals:
        inside += tokens
        while arrivals[first][0] < at_us - window_us:
            inside -= arrivals[first][1]
            first += 1
        most = max(most, inside)
    return most


def is_burst(burst: int, tokens: int) -> bool:
    """Whether so many of an answer's tokens came at once that its speed cannot be told.

    Of answers however short: what nobody can tell is never ranked. Whether it says anything about
    the node is rule 4's business.
    """
    return tokens > 1 and burst > tokens * BURST_SHARE


def witnessed_speed(receipt: ClientReceipt) -> float:
    """Tokens a second between first and last chunk at the client; 0.0 where it cannot be told:
    of one token, and of a burst.

    The first token marks the start, so n tokens take n - 1 steps. Source: trust.md 2.2, rule 4.
    """
    tokens = receipt.completion_tokens
    steps, took_us = tokens - 1, receipt.total_us - receipt.ttft_us
    if steps <= 0 or took_us <= 0 or is_burst(receipt.burst_tokens, tokens):
        return 0.0
    return steps * SECOND_US / took_us


def roofline(hardware: Hardware, active_bytes: int) -> float | None:
    """Most tokens a second for one sequence: bandwidth by bytes to read for a token.

    A known card has the bandwidth of its data sheet, whatever the node says it measured; another
    machine what it claims, within what exists. None where nothing is known.
    """
    if active_bytes <= 0:
        return None
    name = hardware.name.upper()
    known = max((card for card in _CARDS if card in name), key=len, default=None)
    if known is not None and hardware.kind != "cpu":
        return _CARDS[known] * GB / active_bytes
    claimed = min(hardware.bandwidth_bytes_per_s, _KIND_MAX.get(hardware.kind, _ANY_MAX) * GB)
    return claimed / active_bytes if claimed > 0 else None


def _misfit(attestation: Verified[InferenceAttestation], code: Code, problem: str) -> PeerError:
    return PeerError(code, f"the attestation {problem}", format_node_id(attestation.issuer))


def _slack(duration_us: int) -> float:
    return max(SLACK_US, duration_us * SLACK_SHARE)


def _phases(attestation: InferenceAttestation) -> Iterator[Finding]:
    """Rule 1: queue + prefill + decode ≤ total, and prefill ≤ TTFT ≤ total."""
    t = attestation.timing
    phases = t.queue_us + t.prefill_us + t.decode_us
    if phases > t.total_us + _slack(t.total_us):
        message = f"its phases add up to {_ms(phases)}, its total is {_ms(t.total_us)}"
        yield Finding(1, Severity.INCONSISTENT, message)
    if t.ttft_us < t.prefill_us:
        message = f"its first token came after {_ms(t.ttft_us)}, prefill took {_ms(t.prefill_us)}"
        yield Finding(1, Severity.INCONSISTENT, message)
    if t.ttft_us > t.total_us + _slack(t.total_us):
        message = f"its first token came after {_ms(t.ttft_us)}, its total is {_ms(t.total_us)}"
        yield Finding(1, Severity.INCONSISTENT, message)


def _at_the_client(attestation: InferenceAttestation, witness: Witness) -> Iterator[Finding]:
    """Rule 2: the node's interval lies inside the client's, a round trip apart."""
    client, t = witness.client, attestation.timing
    if client is None:
        return
    pairs = (("total", t.total_us, client.total_us), ("TTFT", t.ttft_us, client.ttft_us))
    for name, claimed_us, seen_us in pairs:
        if claimed_us + witness.rtt_client_us > seen_us + _slack(seen_us):
            message = f"its {name} of {_ms(claimed_us)} does not fit the client's {_ms(seen_us)}"
            yield Finding(2, Severity.INCONSISTENT, message)


def _at_the_relay(
    attestation: InferenceAttestation, relay: RelayReceipt | None
) -> Iterator[Finding]:
    """Rule 3: |relay's interval - total| ≤ round trip; how much less it may be needs the latter."""
    if relay is None:
        return
    claimed_us = attestation.timing.total_us
    slack = _slack(relay.last_us) + relay.rtt_us
    too_long = claimed_us - relay.last_us > slack
    too_short = relay.rtt_us > 0 and relay.last_us - claimed_us > slack
    if too_long or too_short:
        message = f"its total is {_ms(claimed_us)}, the relay saw {_ms(relay.last_us)}"
        yield Finding(3, Severity.INCONSISTENT, message)


def _burst(client: ClientReceipt | None) -> Iterator[Finding]:
    """Rule 4: more than half of a long answer's tokens in a tenth of the time."""
    if client is None or client.total_us < BURST_US_MIN:
        return
    burst, tokens = client.burst_tokens, client.completion_tokens
    if tokens >= BURST_TOKENS_MIN and is_burst(burst, tokens):
        message = (
            f"{burst} of {tokens} tokens came within a tenth of the time, "
            f"so its speed cannot be told"
        )
        yield Finding(BURST_RULE, Severity.NOTE, message)


def _above_roofline(attestation: InferenceAttestation, limit: float | None) -> Iterator[Finding]:
    """Rule 5: claimed decode speed ≤ 1.25 times the roofline; the first token is prefill."""
    steps, decode_us = attestation.completion_tokens - 1, attestation.timing.decode_us
    if limit is None or steps <= 0:
        return
    if steps * SECOND_US > ROOFLINE_FACTOR * limit * decode_us:
        speed = f"{steps * SECOND_US / decode_us:.0f} tokens/s" if decode_us else "no decode time"
        message = f"it claims {speed}, its memory allows {limit:.0f} tokens/s"
        yield Finding(5, Severity.IMPLAUSIBLE, message)


def _challenges(
    acks: tuple[StreamAck, ...], checkpoints: tuple[ChunkCheckpoint, ...]
) -> Iterator[Finding]:
    """Rule 6: a checkpoint answers an ack the client had made by then, and never an older one.

    How soon it must answer is not judged here: that needs the time between two checkpoints.
    """
    order = {ack.challenge: number for number, ack in enumerate(acks)}
    answered = -1
    for number, point in enumerate(checkpoints, start=1):
        if not point.challenge and answered < 0:
            continue
        index = order.get(point.challenge, -1)
        if point.challenge and (index < 0 or acks[index].position > point.position):
            message = f"checkpoint {number} answers a challenge that the client had not sent"
            yield Finding(6, Severity.INCONSISTENT, message)
        elif index < answered:
            message = f"checkpoint {number} answers an older challenge than the one before"
            yield Finding(6, Severity.INCONSISTENT, message)
        answered = max(answered, index)


def _ms(duration_us: int) -> str:
    return f"{duration_us / 1000:.0f} ms"
