"""Which TLS certificate belongs to which PeerId: the libp2p TLS extension.

gRPC cannot use Ed25519 certificates. So a server shows an ephemeral, self-signed P-256 certificate
whose extension 1.3.6.1.4.1.53594.1.1 carries its Ed25519 key and that key's signature over
"libp2p-tls-handshake:" | SubjectPublicKeyInfo (https://github.com/libp2p/specs, tls/tls.md).

Rules: only Ed25519 peers; the name in a certificate means nothing, the PeerId is the pin; whoever
dials checks the certificate here and then uses exactly that one as its only root. This module
opens no connection; dates are left to the TLS stack.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtensionOID, NameOID

from novamesh_proto import identity, names
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import NodeId

LIBP2P_EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
CERTIFICATE_BYTES_MAX: Final = 16_384

_PEM_BLOCK: Final = b"-----BEGIN"
_SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"
# DER has one form of SignedKey { publicKey OCTET STRING, signature OCTET STRING } for Ed25519, so
# three constants parse it: SEQUENCE and OCTET STRING of 36, PublicKey header, OCTET STRING of 64.
_SIGNED_KEY_START: Final = bytes.fromhex("3068042408011220")
_SIGNATURE_START: Final = bytes.fromhex("0440")
_KEY_END: Final = len(_SIGNED_KEY_START) + identity.KEY_BYTES
_SIGNED_KEY_BYTES: Final = _KEY_END + len(_SIGNATURE_START) + identity.SIGNATURE_BYTES
_UNDERSTOOD: Final = {
    LIBP2P_EXTENSION,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}
# Wide on purpose: a wrong clock must be told by a signed message that names the offset, and not
# by a TLS handshake that names nothing.
_VALID: Final = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """What a TLS server needs, and the SHA-256 of its SubjectPublicKeyInfo."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)
    key_digest: bytes


@dataclass(frozen=True, slots=True)
class CertifiedPeer:
    """Whose certificate it is, and the SHA-256 of its SubjectPublicKeyInfo."""

    node_id: NodeId
    key_digest: bytes


def make_certificate(key: PrivateKey, now: datetime) -> ServerCertificate:
    """A fresh P-256 key and its certificate, tied to an identity. `now` has a time zone."""
    tls_key = ec.generate_private_key(ec.SECP256R1())
    spki = tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    peer = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, identity.format_node_id(key.node_id))]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(peer)
        .issuer_name(peer)
        .public_key(tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(names.TLS_SERVER_NAME)]), False)
        # Not critical: BoringSSL refuses critical extensions that it does not know.
        .add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION, _sign_key(key, spki)), False)
        .sign(tls_key, SHA256())
    )
    return ServerCertificate(
        certificate.public_bytes(Encoding.PEM),
        tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        hashlib.sha256(spki).digest(),
    )


def check_certificate(data: bytes, expected: NodeId | None) -> CertifiedPeer:
    """Whose certificate this is (PEM or DER).

    Args:
        data: The certificate that a server showed, at most CERTIFICATE_BYTES_MAX; nothing else.
        expected: Who it must be; None only where any peer is welcome.

    Raises:
        NovaMeshError: BAD_KEY if it is no certificate of an Ed25519 peer, BAD_SIGNATURE if its
            own or its peer's signature does not fit, PIN_MISMATCH if it is somebody else's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            peer = _read_peer(data)
    except Warning:  # what the parser frowns upon today, it will refuse tomorrow
        raise NovaMeshError(Code.BAD_KEY, "this certificate breaks RFC 5280") from None
    if expected is not None and peer.node_id != expected:
        raise NovaMeshError(
            Code.PIN_MISMATCH,
            f"the server is {identity.format_node_id(peer.node_id)}, "
            f"expected was {identity.format_node_id(expected)}",
            "check the address; if the pool has a new key, ask its owner for a new join code",
        )
    return peer


def _read_peer(data: bytes) -> CertifiedPeer:
    certificate = _parse(data)
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    node_id = _check_signed_key(_signed_key(certificate), spki)
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        raise NovaMeshError(
            Code.BAD_SIGNATURE, "this certificate is not signed with its own key"
        ) from None
    return CertifiedPeer(node_id, hashlib.sha256(spki).digest())


def _sign_key(key: PrivateKey, spki: bytes) -> bytes:
    signature = key.sign(_SIGNED_PREFIX + spki)
    return _SIGNED_KEY_START + identity.public_key_bytes(key.node_id) + _SIGNATURE_START + signature


def _check_signed_key(signed_key: bytes, spki: bytes) -> NodeId:
    fits = (
        len(signed_key) == _SIGNED_KEY_BYTES
        and signed_key.startswith(_SIGNED_KEY_START)
        and signed_key.startswith(_SIGNATURE_START, _KEY_END)
    )
    if not fits:
        raise NovaMeshError(Code.BAD_KEY, "this certificate names no Ed25519 peer")
    node_id = identity.node_id_of(signed_key[len(_SIGNED_KEY_START) : _KEY_END])
    signature = signed_key[_KEY_END + len(_SIGNATURE_START) :]
    identity.verify(node_id, signature, _SIGNED_PREFIX + spki)
    return node_id


def _parse(data: bytes) -> x509.Certificate:
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise NovaMeshError(Code.BAD_KEY, f"this certificate has {len(data)} bytes")
    try:
        if data.lstrip().startswith(_PEM_BLOCK):
            _check_one_block(data)
            certificate = x509.load_pem_x509_certificate(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
        tls_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise NovaMeshError(Code.BAD_KEY, "this is not a certificate that we can read") from None
    if not isinstance(tls_key, ec.EllipticCurvePublicKey) or tls_key.curve.name != "secp256r1":
        raise NovaMeshError(Code.BAD_KEY, "this certificate's key is not P-256")
    return certificate


def _check_one_block(pem: bytes) -> None:
    """Only the first block would be checked, but whoever takes the PEM for a root trusts all."""
    blocks = pem.count(_PEM_BLOCK)
    if blocks != 1:
        raise NovaMeshError(
            Code.BAD_KEY,
            f"this PEM has {blocks} blocks, and must be one certificate",
            "pass the server's certificate alone, without a chain and without its key",
        )


def _signed_key(certificate: x509.Certificate) -> bytes:
    """The content of the libp2p extension; a critical extension we do not know refuses all."""
    try:
        extensions = certificate.extensions
        unknown = [one for one in extensions if one.critical and one.oid not in _UNDERSTOOD]
        found = extensions.get_extension_for_oid(LIBP2P_EXTENSION).value
    except (ValueError, x509.DuplicateExtension, x509.ExtensionNotFound):
        raise _no_peer() from None
    if unknown:
        raise NovaMeshError(
            Code.BAD_KEY, "this certificate has a critical extension that nobody here knows"
        )
    if not isinstance(found, x509.UnrecognizedExtension):  # a parser that came to know it
        raise _no_peer()
    return found.value


def _no_peer() -> NovaMeshError:
    return NovaMeshError(
        Code.BAD_KEY,
        "this certificate names no peer",
        "is this the address of a novamesh coordinator?",
    )
