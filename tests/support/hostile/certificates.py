"""TLS certificates that somebody who is not the coordinator could show, and a server that does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from novamesh_proto.identity import NODE_ID_PREFIX, PrivateKey
from novamesh_proto.names import TLS_SERVER_NAME
from novamesh_proto.transport_identity import LIBP2P_EXTENSION

SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"
GROUP_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
TlsKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def malleate(signature: bytes) -> bytes:
    """The other signature that satisfies the same equation: S + L."""
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    return signature[:32] + scalar.to_bytes(32, "little")


def spki_of(key: TlsKey) -> bytes:
    """What the peer's key signs."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed_key(public_key: bytes, signature: bytes) -> bytes:
    """The libp2p extension's content for an Ed25519 key, whatever the key and the signature."""
    peer = NODE_ID_PREFIX[2:] + public_key
    return b"\x30\x68\x04\x24" + peer + b"\x04\x40" + signature


def vouch(key: PrivateKey, tls_key: TlsKey) -> bytes:
    """The right content: this key says that the TLS key is its own."""
    public_key = key.node_id[len(NODE_ID_PREFIX) :]
    return signed_key(public_key, key.sign(SIGNED_PREFIX + spki_of(tls_key)))


def show(folder: Path, tls_key: TlsKey, extension: bytes | None) -> Path:
    """A self-signed certificate and its key, as a file for a TLS server."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_SERVER_NAME)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_SERVER_NAME)]), critical=False)
    )
    if extension is not None:
        unknown = x509.UnrecognizedExtension(LIBP2P_EXTENSION, extension)
        builder = builder.add_extension(unknown, critical=False)
    digest = None if isinstance(tls_key, ed25519.Ed25519PrivateKey) else SHA256()
    certificate = builder.sign(tls_key, digest)
    pem = tls_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / "shown.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + pem)
    return path


@contextlib.asynccontextmanager
async def stand_in(pem: Path) -> AsyncIterator[str]:
    """A TLS server that shows it; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.read(65_536):
                pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
