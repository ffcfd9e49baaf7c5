"""A TLS certificate proves whose it is, or it is refused."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_proto import identity, names, transport_identity
from novamesh_proto.errors import Code, NovaMeshError
from support.parties import COORDINATOR, NODE
from support.refusals import unless_refused
from support.vectors import Vector, golden, load

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
REFUSALS = (Code.BAD_KEY, Code.BAD_SIGNATURE)


@golden("tls/libp2p")
def test_golden_certificates(vector: Vector) -> None:
    pin = vector.fields.get("expected")
    with vector.verdict():
        peer = transport_identity.check_certificate(
            vector.data("certificate"), identity.parse_node_id(pin) if pin else None
        )
    if vector.ok:
        assert identity.format_node_id(peer.node_id) == vector["peer"]
        assert peer.key_digest == vector.data("key_digest")


def test_a_certificate_names_its_maker() -> None:
    made = transport_identity.make_certificate(COORDINATOR, NOW)
    peer = transport_identity.check_certificate(made.certificate_pem, COORDINATOR.node_id)
    assert peer.node_id == COORDINATOR.node_id
    assert peer.key_digest == made.key_digest
    assert "PRIVATE KEY" not in repr(made)


def test_every_start_has_another_key_and_the_same_identity() -> None:
    one, other = (transport_identity.make_certificate(COORDINATOR, NOW) for _ in range(2))
    assert one.key_digest != other.key_digest
    for made in (one, other):
        transport_identity.check_certificate(made.certificate_pem, COORDINATOR.node_id)


def test_another_identity_is_a_pin_mismatch_that_names_both() -> None:
    made = transport_identity.make_certificate(NODE, NOW)
    with pytest.raises(NovaMeshError) as caught:
        transport_identity.check_certificate(made.certificate_pem, COORDINATOR.node_id)
    assert caught.value.code is Code.PIN_MISMATCH
    for party in (NODE, COORDINATOR):
        assert identity.format_node_id(party.node_id) in caught.value.message
    assert "join code" in caught.value.hint


@pytest.mark.parametrize("second", ["another certificate", "its key"])
def test_a_pem_with_more_than_one_block_is_refused(second: str) -> None:
    """Whoever trusts the file as a root would trust the part that nobody checked."""
    made = transport_identity.make_certificate(COORDINATOR, NOW)
    other = transport_identity.make_certificate(NODE, NOW)
    added = other.certificate_pem if second == "another certificate" else made.private_key_pem
    with pytest.raises(NovaMeshError, match="2 blocks") as caught:
        transport_identity.check_certificate(made.certificate_pem + added, COORDINATOR.node_id)
    assert caught.value.code is Code.BAD_KEY
    assert caught.value.hint


def test_a_parser_that_knows_the_extension_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    made = transport_identity.make_certificate(COORDINATOR, NOW)
    known = x509.SubjectAlternativeName.oid
    monkeypatch.setattr(transport_identity, "LIBP2P_EXTENSION", known)
    with pytest.raises(NovaMeshError, match="names no peer") as caught:
        transport_identity.check_certificate(made.certificate_pem, COORDINATOR.node_id)
    assert caught.value.code is Code.BAD_KEY


def test_a_wrong_clock_does_not_break_tls() -> None:
    """It must get as far as a signed message, which names the offset."""
    made = transport_identity.make_certificate(COORDINATOR, NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    assert certificate.not_valid_before_utc.year <= NOW.year - 9
    assert certificate.not_valid_after_utc.year >= NOW.year + 9


def test_a_pinned_handshake_succeeds_and_another_pin_fails(tmp_path: Path) -> None:
    made, other = (transport_identity.make_certificate(COORDINATOR, NOW) for _ in range(2))
    assert shake_hands(tmp_path, made, made.certificate_pem) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, made, other.certificate_pem)


def shake_hands(
    folder: Path, server: transport_identity.ServerCertificate, root_pem: bytes
) -> str | None:
    """TLS in memory, the client trusting one certificate alone; the version agreed upon."""
    (folder / "chain.pem").write_bytes(server.certificate_pem + server.private_key_pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "chain.pem")
    dialing = ssl.create_default_context(cadata=root_pem.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = dialing.wrap_bio(to_client, to_server, server_hostname=names.TLS_SERVER_NAME)
    listener = serving.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, listener):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_certificate_never_changes_hands(data: st.DataObject) -> None:
    good = next(v for v in load("tls/libp2p") if v.name == "ours").data("certificate")
    raw = bytearray(good)
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    peer = unless_refused(lambda: transport_identity.check_certificate(bytes(raw), None), *REFUSALS)
    if peer is not None:
        assert peer.node_id == COORDINATOR.node_id


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(NovaMeshError) as caught:
        transport_identity.check_certificate(data, None)
    assert caught.value.code is Code.BAD_KEY
