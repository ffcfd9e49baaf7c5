"""What strangers' bytes go into: each target takes any bytes and may refuse them, and nothing else.

A target is fed by hypothesis; `samples` are bytes that it takes, to be damaged. Anything but a
NovaMeshError that comes out is a bug.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from novamesh_engine.catalogue import locate
from novamesh_engine.quant.profile import read_profile
from novamesh_engine.weights.store import TensorFile
from novamesh_proto import envelope, wire
from novamesh_proto.chunks import ChainFollower
from novamesh_proto.identity import format_node_id, parse_node_id, public_key_bytes
from novamesh_proto.join_code import format_join_code, parse_join_code
from novamesh_proto.messages import (
    AttachRequest,
    Envelope,
    JobTerms,
    JoinCode,
    NodeId,
    SealedJob,
    Signature,
    StreamChunk,
)
from novamesh_proto.receipt import encode_receipt, verify_receipt
from novamesh_proto.sealing import ChunkOpener, open_body
from novamesh_proto.transport_identity import check_certificate, make_certificate
from support.answers import send_answer
from support.fuzz.services import Services
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

Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One way in."""

    name: str
    feed: Feed
    samples: tuple[bytes, ...]


STORY = tell()
ANSWER = send_answer()
ADVERT = sign(descriptor(), NODE)
NODE_SAYS = wire.encode(AttachRequest(checkpoint=STORY.checkpoint.envelope))
CHUNKS = tuple(event.chunk for event in ANSWER.events if event.chunk is not None)


def _envelope(data: bytes) -> None:
    envelope.open(wire.decode(Envelope, data), JobTerms, network=NETWORK)


def _opened_by_its_signer(data: bytes) -> None:
    """The payload is hostile and the signature right: what a member can send."""
    envelope.open(_signed(data), JobTerms, network=NETWORK)


def _signed(payload: bytes) -> Envelope:
    honest = STORY.terms.envelope
    signed = envelope.pae(honest.payload_type, payload)
    signature = Signature(CLIENT.node_id, CLIENT.sign(signed))
    return Envelope(honest.payload_type, payload, (signature,))


def _sealed_job(data: bytes) -> None:
    job = wire.decode(SealedJob, data)
    terms = envelope.open(job.terms, JobTerms, network=NETWORK)
    open_body(job, terms, hpke_key("node"), NODE.node_id)


def _chunks(data: bytes) -> None:
    """Several chunks, each behind its length; by the relay, and by whoever has the key."""
    given = ANSWER.assignment.message
    ids = (given.job, given.attempt, given.fence, given.node)
    follower, opener = ChainFollower(*ids), ChunkOpener(ANSWER.record.response_key, *ids)
    for chunk in _split(data):
        received = wire.decode(StreamChunk, chunk)
        follower.follow(received)
        opener.open(received)


def _split(data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    while data and len(parts) < 64:
        size = int.from_bytes(data[:2], "big")
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


def _join(parts: list[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _file(name: str, read: Callable[[Path], object], data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        (Path(folder) / name).write_bytes(data)
        read(Path(folder))


def _text(parse: Callable[[str], object], data: bytes) -> None:
    parse(data.decode("utf-8", errors="replace"))


def _peer_id(data: bytes) -> None:
    public_key_bytes(NodeId(data))


def _small_tensors() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    return len(header).to_bytes(8, "little") + header + bytes(8)


def service_targets(services: Services) -> tuple[Target, ...]:
    """Every gRPC method."""
    return tuple(
        Target(method.rpartition("/")[2], partial(services.call, method), (sample,))
        for method, sample in services.samples().items()
    )


def targets() -> tuple[Target, ...]:
    """Everything that parses."""
    code = format_join_code(JoinCode("127.0.0.1:7700", COORDINATOR.node_id, NETWORK, bytes(48)))
    certificate = make_certificate(COORDINATOR, datetime.now(UTC)).certificate_pem
    manifest = (locate("nova-pico") / "novamesh.json").read_bytes()
    return (
        Target("envelope", _envelope, (wire.encode(STORY.terms.envelope),)),
        Target("signed payload", _opened_by_its_signer, (STORY.terms.envelope.payload,)),
        Target("node's message", partial(wire.decode, AttachRequest), (NODE_SAYS,)),
        Target("sealed job", _sealed_job, (wire.encode(sealed_job(ADVERT)[0]),)),
        Target("chunk stream", _chunks, (_join([wire.encode(chunk) for chunk in CHUNKS]),)),
        Target("receipt", verify_receipt, (encode_receipt(STORY.receipt),)),
        Target("certificate", lambda data: check_certificate(data, None), (certificate,)),
        Target("peer id", _peer_id, (COORDINATOR.node_id,)),
        Target(
            "peer id as text",
            partial(_text, parse_node_id),
            (format_node_id(COORDINATOR.node_id).encode(),),
        ),
        Target("join code", partial(_text, parse_join_code), (code.encode(),)),
        Target("model manifest", partial(_file, "novamesh.json", read_profile), (manifest,)),
        Target(
            "safetensors header",
            partial(_file, "model.safetensors", _map_tensors),
            (_small_tensors(),),
        ),
    )


def _map_tensors(folder: Path) -> Any:
    return TensorFile.map(folder / "model.safetensors")
