"""Only what its issuer signed, for us, here and now, comes out of an envelope."""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novamesh_proto import envelope, identity, messages, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CONTROL_BYTES_MAX
from novamesh_proto.messages import Envelope, JobTerms, NodeDescriptor, Signature
from support import parties
from support.clock import START_MS
from support.message_values import SIGNED, values
from support.parties import CLIENT, COORDINATOR, NETWORK, NODE
from support.refusals import unless_refused
from support.vectors import Vector, golden

TERMS = parties.terms()
SEALED = envelope.seal(TERMS, CLIENT)
SEALED_BYTES = wire.encode(SEALED)


def as_plain(value: Any) -> Any:
    """A message as JSON holds it: bytes in hex, enum values by name."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, tuple):
        return [as_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


@golden("envelope/dsse")
def test_dsse(vector: Vector) -> None:
    assert envelope.pae(vector["type"], vector.data("payload")) == vector.data("pae")


@golden("envelope/envelope")
def test_golden_envelopes(vector: Vector) -> None:
    extra = {"bytes_max": vector["bytes_max"]} if "bytes_max" in vector.fields else {}
    with vector.verdict():
        sealed = wire.decode(Envelope, vector.data("envelope"))
        opened = envelope.open(
            sealed,
            getattr(messages, vector["as"]),
            network=vector["network"],
            audience=vector.data("audience") or None,
            now_ms=vector.fields.get("now_ms"),
            **extra,
        )
    if vector.ok:
        plain = as_plain(opened.message).items()
        # A field that was added later says nothing in what was signed before.
        assert {k: v for k, v in plain if v or k in vector["message"]} == vector["message"]
        assert opened.id == envelope.message_id(sealed) == vector.data("id")
        assert identity.format_node_id(opened.issuer) == vector["issuer"]
        signed = envelope.pae(sealed.payload_type, sealed.payload)
        signer = next(k for k in (CLIENT, NODE, COORDINATOR) if k.node_id == opened.issuer)
        assert signer.sign(signed) == sealed.signatures[0].sig


@pytest.mark.parametrize("cls", SIGNED, ids=lambda cls: cls.__name__)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_signed_message_comes_back(cls: Any, data: st.DataObject) -> None:
    drawn = data.draw(values(cls))
    message = dataclasses.replace(
        drawn, header=parties.head(CLIENT, COORDINATOR, in_reply_to=drawn.header.in_reply_to)
    )
    opened = envelope.open(
        envelope.seal(message, CLIENT),
        cls,
        network=NETWORK,
        audience=COORDINATOR.node_id,
        now_ms=START_MS,
    )
    assert opened.message == message
    assert opened.issuer == CLIENT.node_id


MUTATION_REFUSALS = (
    Code.BAD_KEY,
    Code.BAD_REQUEST,
    Code.BAD_SIGNATURE,
    Code.TOO_LARGE,
    Code.WRONG_TYPE,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_mutated_envelope_fails_or_says_the_same(data: st.DataObject) -> None:
    raw = bytearray(SEALED_BYTES)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]

    def run() -> envelope.Verified[JobTerms]:
        return envelope.open(wire.decode(Envelope, bytes(raw)), JobTerms, network=NETWORK)

    opened = unless_refused(run, *MUTATION_REFUSALS)
    if opened is not None:
        assert opened.message == TERMS
        assert opened.id == envelope.message_id(SEALED)


@settings(max_examples=100, deadline=None)
@given(payload=st.binary(max_size=120))
def test_signed_garbage_is_refused(payload: bytes) -> None:
    signed = envelope.pae(SEALED.payload_type, payload)
    forged = dataclasses.replace(
        SEALED, payload=payload, signatures=(Signature(CLIENT.node_id, CLIENT.sign(signed)),)
    )
    with pytest.raises(NovaMeshError) as caught:
        envelope.open(forged, JobTerms, network=NETWORK)
    assert caught.value.code in {Code.BAD_REQUEST, Code.TOO_LARGE}


def test_nothing_is_parsed_before_it_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[type] = []
    monkeypatch.setattr(wire, "decode", lambda cls, *_: parsed.append(cls))
    forged = dataclasses.replace(SEALED, payload=SEALED.payload + b"\0")
    with pytest.raises(NovaMeshError):
        envelope.open(forged, JobTerms, network=NETWORK)
    assert not parsed


@pytest.mark.parametrize("count", [0, 2])
def test_exactly_one_signature_is_taken(count: int) -> None:
    """Also of an envelope that never crossed the wire."""
    odd = dataclasses.replace(SEALED, signatures=SEALED.signatures * count)
    with pytest.raises(NovaMeshError) as caught:
        envelope.open(odd, JobTerms, network=NETWORK)
    assert caught.value.code is Code.BAD_SIGNATURE


def test_a_header_is_fresh_each_time() -> None:
    one, other = (
        envelope.header(CLIENT, NETWORK, [COORDINATOR.node_id], START_MS) for _ in range(2)
    )
    assert one.nonce != other.nonce
    assert one.issuer == CLIENT.node_id
    assert one.audience == (COORDINATOR.node_id,)
    assert one.expires_at_ms - one.issued_at_ms == 60_000
    assert envelope.header(CLIENT.node_id, NETWORK, (), START_MS).issuer == CLIENT.node_id


def refused_to_seal(code: Code, **changes: Any) -> None:
    with pytest.raises(NovaMeshError) as caught:
        envelope.seal(dataclasses.replace(TERMS, **changes), CLIENT)
    assert caught.value.code is code


def test_nothing_is_signed_that_others_would_refuse() -> None:
    refused_to_seal(Code.BAD_KEY, header=parties.head(NODE))
    refused_to_seal(Code.NOT_FRESH, header=parties.head(CLIENT, life_ms=600_001))
    refused_to_seal(Code.NOT_FRESH, header=parties.head(CLIENT, life_ms=-1))
    refused_to_seal(Code.BAD_REQUEST, body_digest=b"short")
    with pytest.raises(NovaMeshError) as caught:
        envelope.seal(TERMS, CLIENT, bytes_max=100)
    assert caught.value.code is Code.TOO_LARGE


def test_the_largest_descriptor_fits_a_control_message() -> None:
    offer = dataclasses.replace(parties.OFFER, name="n" * 64)
    largest = parties.descriptor(models=(offer,) * 64, engine_build="b" * 128)
    sealed = envelope.seal(largest, NODE)
    assert len(wire.encode(sealed)) < CONTROL_BYTES_MAX
    assert envelope.open(sealed, NodeDescriptor, network=NETWORK).message == largest


@pytest.mark.parametrize(
    ("now_ms", "offset"),
    [(START_MS - 3_600_000, "3600.0 s ahead"), (START_MS + 3_600_000, "3600.0 s ago")],
    ids=["clock behind", "clock ahead"],
)
def test_a_wrong_clock_is_told_the_offset_and_what_to_do(now_ms: int, offset: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        envelope.open(SEALED, JobTerms, network=NETWORK, now_ms=now_ms)
    assert caught.value.code is Code.NOT_FRESH
    assert offset in caught.value.message
    assert "set the clock" in caught.value.hint
