"""Everything that parses what strangers wrote, without anybody behind it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from novamesh_engine.catalogue import locate
from novamesh_engine.quant.profile import read_profile
from novamesh_engine.weights.store import TensorFile
from novamesh_proto import envelope, wire
from novamesh_proto.chunks import ChainFollower
from novamesh_proto.identity import format_node_id, parse_node_id, public_key_bytes
from novamesh_proto.join_code import format_join_code, parse_join_code
from novamesh_proto.messages import Envelope, JobTerms, JoinCode, NodeId, SealedJob, StreamChunk
from novamesh_proto.receipt import Receipt, encode_receipt, verify_receipt
from novamesh_proto.sealing import ChunkOpener, open_body
from novamesh_proto.transport_identity import LIBP2P_EXTENSION, check_certificate
from novamesh_proto.v1 import envelope_pb2, job_pb2
from support.answer_vectors import two
from support.fuzz import tree
from support.fuzz.least_values import MESSAGES, least, pb_class
from support.fuzz.sealing import blank, complete, repeatable
from support.fuzz.target import Target
from support.fuzz.to_clients import sent_answer
from support.fuzz.tree import JSON, frames, shape_of
from support.parties import (
    CLIENT,
    COORDINATOR,
    NETWORK,
    NODE,
    descriptor,
    hpke_key,
    sealed_job,
    sign,
)
from support.story import tell

NOVAMESH: Final = "novamesh.json"
MODEL: Final = "model.safetensors"
HEADERS: Final = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    b'{"__metadata__":{"format":"pt"},'
    b'"b":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]},'
    b'"c":{"dtype":"BF16","shape":[],"data_offsets":[6,8]}}',
)  # of eight bytes of tensors
KEYS: Final = {key.node_id: key for key in (CLIENT, NODE, COORDINATOR)}
ENVELOPE: Final = shape_of(envelope_pb2.Envelope.DESCRIPTOR)
SEALED_JOB: Final = shape_of(job_pb2.SealedJob.DESCRIPTOR)
CHUNKS: Final = frames("chunks", chunk=job_pb2.StreamChunk)
WIRE: Final = frames("messages", **{cls.__name__: pb_class(cls) for cls in MESSAGES})
NAMES: Final = [field.name for field in fields(Receipt) if field.name != "earlier"]
PARTS: Final = frames("parts of a receipt", **dict.fromkeys(NAMES, envelope_pb2.Envelope))
TLS_KEY: Final = ec.derive_private_key(0x6E6F7661, ec.SECP256R1())
SIGNED_KEY_START: Final = bytes.fromhex("3068042408011220")
SIGNATURE_START: Final = bytes.fromhex("0440")


def parser_targets() -> tuple[Target, ...]:
    """All of them."""
    story = tell()
    sealed = wire.encode(story.terms.envelope)
    with repeatable("job"):
        job = wire.encode(sealed_job(sign(descriptor(), NODE))[0])
    chunks = [event.chunk for event in sent_answer().events if event.chunk is not None]
    code = format_join_code(JoinCode("127.0.0.1:7700", COORDINATOR.node_id, NETWORK, bytes(48)))
    return (
        Target("envelope", _envelope, (blank(sealed, ENVELOPE), sealed), ENVELOPE),
        Target("wire messages", _messages, _least_messages(), WIRE),
        Target("sealed job", _sealed_job, (blank(job, SEALED_JOB), job), SEALED_JOB),
        Target("chunk stream", _chunks, (_stream(chunks),), CHUNKS),
        Target("receipt", verify_receipt, (encode_receipt(story.receipt), encode_receipt(two()))),
        Target("receipt parts", _receipt_parts, (_parts(story.receipt),), PARTS),
        Target("certificate", _certificate, _certificates()),
        Target("certificate extension", _extension, (_signed_key(),)),
        Target("peer id", _peer_id, (COORDINATOR.node_id,)),
        Target("peer id as text", partial(_text, parse_node_id), (_peer_id_text(),)),
        Target("join code", partial(_text, parse_join_code), (code.encode(),)),
        Target("model manifest", _manifest, ((locate("nova-pico") / NOVAMESH).read_bytes(),), JSON),
        Target("safetensors file", _tensors, tuple(map(_safetensors, HEADERS))),
        Target("safetensors header", _header, HEADERS, JSON),
    )


def _envelope(data: bytes) -> None:
    sealed = wire.decode(Envelope, complete(data, ENVELOPE, KEYS, {}))
    envelope.open(sealed, JobTerms, network=NETWORK, audience=COORDINATOR.node_id)


def _messages(data: bytes) -> None:
    """What is taken is written as it was read."""
    for number, part in tree.split(data, WIRE):
        if number <= len(MESSAGES):
            cls: Any = MESSAGES[number - 1]
            value = wire.decode(cls, part)
            assert wire.decode(cls, wire.encode(value)) == value


def _least_messages() -> tuple[bytes, ...]:
    values = [wire.encode(least(cls)) for cls in MESSAGES]
    return (tree.join(WIRE, enumerate(values, start=1)),)


def _sealed_job(data: bytes) -> None:
    job = wire.decode(SealedJob, complete(data, SEALED_JOB, KEYS, {}))
    terms = envelope.open(job.terms, JobTerms, network=NETWORK)
    open_body(job, terms, hpke_key("node"), NODE.node_id)


def _chunks(data: bytes) -> None:
    """By the relay, which sees that they are a chain, and by whoever has the key."""
    answer = sent_answer()
    given = answer.assignment.message
    ids = (given.job, given.attempt, given.fence, given.node)
    follower, opener = ChainFollower(*ids), ChunkOpener(answer.record.response_key, *ids)
    for _, part in tree.split(data, CHUNKS):
        received = wire.decode(StreamChunk, part)
        follower.follow(received)
        opener.open(received)


def _stream(chunks: list[StreamChunk]) -> bytes:
    return tree.join(CHUNKS, [(1, wire.encode(chunk)) for chunk in chunks])


def _receipt_parts(data: bytes) -> None:
    """The parts of a receipt, whatever they say, each signed by whoever it names."""
    found = {
        NAMES[number - 1]: wire.decode(Envelope, part)
        for number, part in tree.split(complete(data, PARTS, KEYS, {}), PARTS)
        if number <= len(NAMES)
    }
    verified = verify_receipt(encode_receipt(Receipt(**found)))
    assert verified.tokens_per_s is None or verified.tokens_per_s >= 0
    assert verified.findings is not None


def _parts(receipt: Receipt) -> bytes:
    parts = [getattr(receipt, name) for name in NAMES]
    return blank(tree.join(PARTS, enumerate(map(wire.encode, parts), start=1)), PARTS)


def _certificate(data: bytes) -> None:
    check_certificate(data, COORDINATOR.node_id)


def _certificates() -> tuple[bytes, ...]:
    made = _certified(_signed_key())
    return made.public_bytes(Encoding.DER), made.public_bytes(Encoding.PEM)


def _extension(data: bytes) -> None:
    """Whatever stands in it, the certificate around it is signed as it should be."""
    check_certificate(_certified(data).public_bytes(Encoding.DER), COORDINATOR.node_id)


def _certified(extension: bytes) -> x509.Certificate:
    peer, day = x509.Name([]), datetime(2027, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(peer)
        .issuer_name(peer)
        .public_key(TLS_KEY.public_key())
        .serial_number(1)
        .not_valid_before(day)
        .not_valid_after(day + timedelta(days=3650))
        .add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION, extension), critical=False)
        .sign(TLS_KEY, SHA256())
    )


def _signed_key() -> bytes:
    spki = TLS_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = COORDINATOR.sign(b"libp2p-tls-handshake:" + spki)
    key = public_key_bytes(COORDINATOR.node_id)
    return SIGNED_KEY_START + key + SIGNATURE_START + signature


def _peer_id(data: bytes) -> None:
    public_key_bytes(NodeId(data))


def _peer_id_text() -> bytes:
    return format_node_id(COORDINATOR.node_id).encode()


def _text(parse: Callable[[str], object], data: bytes) -> None:
    parse(data.decode("utf-8", errors="replace"))


def _manifest(data: bytes) -> None:
    _file(NOVAMESH, read_profile, data)


def _tensors(data: bytes) -> None:
    _file(MODEL, lambda folder: TensorFile.map(folder / MODEL), data)


def _file(name: str, read: Callable[[Path], object], data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        (Path(folder) / name).write_bytes(data)
        read(Path(folder))


def _header(data: bytes) -> None:
    """A header, whatever it says, as long as the file says."""
    _tensors(_safetensors(data))


def _safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(8)
