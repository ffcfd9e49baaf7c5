"""What an envelope is refused for, in which words, and where exactly each bound lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from novamesh_proto import envelope, identity, wire
from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS, CONTROL_LIFE_MS
from novamesh_proto.messages import Envelope, Header, JobTerms, MatchQuery, MessageId, Signature
from support import parties
from support.clock import START_MS
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE, PROFILE
from support.refusals import refused

TERMS = parties.terms()
SEALED = envelope.seal(TERMS, CLIENT)
SIZE = len(SEALED.payload) + len(SEALED.payload_type) + 38 + 64
CLOCK_HINT = (
    "set the clock of the machine that is wrong (timedatectl set-ntp true), then send it again"
)


def take(sealed: Envelope = SEALED, cls: Any = JobTerms, **options: Any) -> Any:
    return envelope.open(sealed, cls, **{"network": NETWORK, **options})


def query(life_ms: int) -> MatchQuery:
    made = envelope.header(CLIENT, NETWORK, (COORDINATOR.node_id,), START_MS, life_ms)
    return MatchQuery(made, PROFILE, prompt_bytes=1, max_tokens=1)


def query_of(sealed: Envelope) -> MatchQuery:
    return wire.decode(MatchQuery, sealed.payload)


def test_a_header_says_who_to_whom_and_how_long() -> None:
    audience = [COORDINATOR.node_id, NODE.node_id]
    made = envelope.header(
        CLIENT, "here", iter(audience), 5, in_reply_to=b"i" * 32, nonce=b"n" * 16
    )
    assert made == Header(
        network="here",
        nonce=b"n" * 16,
        issuer=CLIENT.node_id,
        audience=tuple(audience),
        issued_at_ms=5,
        expires_at_ms=60_005,
        in_reply_to=b"i" * 32,
    )
    plain = envelope.header(NODE.node_id, "here", (), 5, 7)
    assert (plain.issuer, plain.expires_at_ms, plain.in_reply_to) == (NODE.node_id, 12, b"")
    assert len(plain.nonce) == 16
    assert plain.nonce != envelope.header(NODE.node_id, "here", (), 5, 7).nonce


def test_nothing_is_signed_that_would_be_refused() -> None:
    with refused(Code.BAD_KEY, "a message is signed by the issuer its header names"):
        envelope.seal(TERMS, NODE)
    envelope.seal(query(CONTROL_LIFE_MS), CLIENT)
    most = CONTROL_LIFE_MS // 1000
    with refused(
        Code.NOT_FRESH,
        f"MatchQuery is valid for {most + 1}.0 s, allowed is 0 to {most} s",
    ):
        envelope.seal(query(CONTROL_LIFE_MS + 1_000), CLIENT)
    envelope.seal(query(0), CLIENT)
    with refused(Code.NOT_FRESH, f"MatchQuery is valid for -0.5 s, allowed is 0 to {most} s"):
        envelope.seal(query(-500), CLIENT)
    with pytest.raises(NovaMeshError):
        envelope.seal(query(-1), CLIENT)


def test_size_is_bounded_to_the_byte_on_both_sides() -> None:
    words = f"this envelope has {SIZE} bytes, at most {SIZE - 1} are taken"
    assert envelope.seal(TERMS, CLIENT, bytes_max=SIZE) == SEALED
    assert take(bytes_max=SIZE).message == TERMS
    with refused(Code.TOO_LARGE, words):
        envelope.seal(TERMS, CLIENT, bytes_max=SIZE - 1)
    with refused(Code.TOO_LARGE, words):
        take(bytes_max=SIZE - 1)


def test_one_signature_by_the_issuer_and_of_one_kind() -> None:
    for signatures in ((), SEALED.signatures * 2):
        with refused(
            Code.BAD_SIGNATURE,
            f"an envelope has exactly one signature, this has {len(signatures)}",
        ):
            take(replace(SEALED, signatures=signatures))
    kind = "application/vnd.novamesh.match-query.v1+protobuf"
    with refused(Code.WRONG_TYPE, f"expected {kind}, got another kind of message"):
        take(cls=MatchQuery)
    forged = Signature(NODE.node_id, NODE.sign(envelope.pae(SEALED.payload_type, SEALED.payload)))
    with refused(Code.BAD_KEY, "the header names another issuer than the key that signed it"):
        take(replace(SEALED, signatures=(forged,)))


def test_a_message_for_others_says_for_whom_it_is() -> None:
    with refused(
        Code.WRONG_NETWORK,
        f"this message is for pool {NETWORK!r}, here is 'else'",
        "join this pool first, or use the configuration of the other one",
    ):
        take(network="else")
    assert take(network=None).message == TERMS
    with refused(
        Code.WRONG_AUDIENCE, f"this message is not addressed to {identity.short(NODE.node_id)}"
    ):
        take(audience=NODE.node_id)
    assert take(audience=COORDINATOR.node_id).issuer == CLIENT.node_id


def test_a_signed_life_that_is_too_long_is_refused_when_it_comes() -> None:
    """Somebody who signs with other code than ours."""
    kind = "application/vnd.novamesh.match-query.v1+protobuf"
    for life_ms, code in ((CONTROL_LIFE_MS, None), (CONTROL_LIFE_MS + 1, Code.NOT_FRESH)):
        payload = wire.encode(query(life_ms))
        signature = Signature(CLIENT.node_id, CLIENT.sign(envelope.pae(kind, payload)))
        sealed = Envelope(kind, payload, (signature,))
        if code is None:
            assert take(sealed, MatchQuery).message == query_of(sealed)
            continue
        with pytest.raises(NovaMeshError) as caught:
            take(sealed, MatchQuery)
        assert caught.value.code is code


@pytest.mark.parametrize(
    ("now_ms", "problem"),
    [
        (START_MS - CLOCK_SKEW_MS, ""),
        (START_MS - CLOCK_SKEW_MS - 100, "was issued {ahead} s ahead of this clock"),
        (START_MS + 60_000 + CLOCK_SKEW_MS, ""),
        (
            START_MS + 60_000 + CLOCK_SKEW_MS + 100,
            "was issued {ago} s ago and expired {late} s ago",
        ),
    ],
)
def test_clocks_may_differ_by_so_much_and_the_offset_is_named(now_ms: int, problem: str) -> None:
    skew = CLOCK_SKEW_MS / 1000
    if not problem:
        assert take(now_ms=now_ms).message == TERMS
        return
    said = problem.format(
        ahead=f"{skew + 0.1:.1f}", ago=f"{60 + skew + 0.1:.1f}", late=f"{skew + 0.1:.1f}"
    )
    with refused(Code.NOT_FRESH, f"this message {said}, allowed are {skew:.0f} s", CLOCK_HINT):
        take(now_ms=now_ms)


def an_id(number: int) -> MessageId:
    return MessageId(bytes([number]) * 32)


def test_a_replay_window_says_why_a_message_has_to_wait_or_to_go() -> None:
    window = ReplayWindow(entries_max=1)
    window.admit(an_id(1), START_MS, START_MS)
    with refused(Code.REPLAYED, "this message was already acted upon"):
        window.admit(an_id(1), START_MS, START_MS)
    with refused(Code.BUSY, "too many messages in a short time", "try again"):
        window.admit(an_id(2), START_MS, START_MS)
    with pytest.raises(NovaMeshError) as caught:
        window.admit(an_id(2), START_MS, START_MS)
    assert caught.value.retry_after_ms == 1_000
    last_ms = START_MS + CLOCK_SKEW_MS
    window.forget(last_ms)
    assert (len(window), window.forgotten_ms) == (1, -1)
    window.forget(last_ms + 1)
    assert (len(window), window.forgotten_ms) == (0, START_MS)
    with refused(Code.NOT_FRESH, "this message has expired", "sign a new one"):
        window.admit(an_id(3), START_MS, START_MS)
    window.admit(an_id(3), START_MS + 1, START_MS)
    assert len(window) == 1


def test_a_replay_window_survives_its_snapshot() -> None:
    window = ReplayWindow()
    for number in (3, 1, 2):
        window.admit(an_id(number), START_MS + number, START_MS)
    window.forget(START_MS + CLOCK_SKEW_MS + 2)
    told = window.snapshot()
    assert told == (
        (START_MS + 1, MessageId(b"")),
        (START_MS + 2, an_id(2)),
        (START_MS + 3, an_id(3)),
    )
    again = ReplayWindow.restore(told, entries_max=2)
    assert (again.snapshot(), len(again), again.forgotten_ms) == (told, 2, START_MS + 1)
    with refused(Code.REPLAYED, "this message was already acted upon"):
        again.admit(an_id(3), START_MS + 3, START_MS)
    with pytest.raises(NovaMeshError) as caught:
        again.admit(an_id(4), START_MS + 9, START_MS)
    assert caught.value.code is Code.BUSY
    assert ReplayWindow.restore(told)._entries_max == envelope.REPLAYS_MAX
    again.forget(START_MS + CLOCK_SKEW_MS + 3)
    assert [name for _, name in again.snapshot()[1:]] == [an_id(3)]
