"""What a client must still know of a job after a crash: its keys, terms and candidates.

Rules: a record is written before its job is submitted, mode 0600, since it holds the key of the
answer; it is removed when the job has ended, and forgotten when the pool keeps nothing of it any
more. Of a job that goes on with an answer it holds the parts before: what was received, and what
proves it. Where an answer broke off, it holds all parts so far, and waits for the next one. Prompts
are in no record, but what tells that one given again is the same. Older versions are read as well.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from novamesh.completion import Piece
from novamesh.private_file import read_private, write_private
from novamesh_proto import wire
from novamesh_proto.envelope import Verified, message_id
from novamesh_proto.envelope import open as open_envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX, TAIL_KEPT_MS
from novamesh_proto.messages import (
    ChunkBody,
    Envelope,
    JobId,
    JobTerms,
    NodeDescriptor,
    NodeId,
)
from novamesh_proto.receipt import Receipt, decode_receipt, encode_receipt

VERSION: Final = 3
_READABLE: Final = (1, 2, 3)  # 1 knew no parts, 2 none that wait for the next one
_BYTES_MAX: Final = 64 << 20  # a long answer with all its log probabilities
_KEPT_MS: Final = JOB_TIMEOUT_MS_MAX + TAIL_KEPT_MS


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job under way. `submitted_at_ms` is the wall clock when it was handed in.

    `earlier` are the proofs of the parts that its answer has already, and `received` what they
    brought, which is the job's forced prefix. `over`: the job itself has ended, and what it brought
    is among them. `stop` and `prompt_digest` are what another part needs; empty if not known.
    """

    model: str
    terms: Verified[JobTerms]
    response_key: bytes = field(repr=False)
    client_seed: bytes = field(repr=False)
    candidates: tuple[Verified[NodeDescriptor], ...]
    submitted_at_ms: int
    earlier: tuple[Receipt, ...] = field(default=(), repr=False)
    received: tuple[Piece, ...] = field(default=(), repr=False)
    over: bool = False
    stop: tuple[str, ...] = field(default=(), repr=False)
    prompt_digest: bytes = field(default=b"", repr=False)

    @property
    def job(self) -> JobId:
        """Its id."""
        return JobId(self.terms.id)

    @property
    def parts(self) -> tuple[JobId, ...]:
        """The jobs that brought its answer so far, and itself where it may bring more."""
        terms = (part.terms for part in self.earlier)
        earlier = tuple(JobId(message_id(sealed)) for sealed in terms if sealed is not None)
        return earlier if self.over else (*earlier, self.job)

    def candidate(self, node: NodeId) -> Verified[NodeDescriptor] | None:
        """The descriptor the body key was wrapped for, newest first."""
        found = (one for one in reversed(self.candidates) if one.issuer == node)
        return next(found, None)


class JobRecords:
    """The records of one client, a file a job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, record: JobRecord) -> None:
        """Write it durably. Raises STORAGE."""
        document = {
            "version": VERSION,
            "model": record.model,
            "network": record.terms.message.header.network,
            "submitted_at_ms": record.submitted_at_ms,
            "response_key": record.response_key.hex(),
            "client_seed": record.client_seed.hex(),
            "terms": _to_text(record.terms.envelope),
            "candidates": [_to_text(one.envelope) for one in record.candidates],
            "earlier": [encode_receipt(part).decode() for part in record.earlier],
            "received": [_piece_to_text(piece) for piece in record.received],
            "over": record.over,
            "stop": list(record.stop),
            "prompt_digest": record.prompt_digest.hex(),
        }
        write_private(self._path(record.job), json.dumps(document, indent=1).encode() + b"\n")

    def load(self, job: JobId) -> JobRecord:
        """The record of a job.

        Raises:
            NovaMeshError: NOT_FOUND, CORRUPT if it is damaged, BAD_KEY if others can read it.
        """
        path = self._path(job)
        try:
            data = read_private(path, _BYTES_MAX)
        except NovaMeshError as error:
            if error.code is Code.NOT_FOUND:
                raise NovaMeshError(
                    Code.NOT_FOUND,
                    f"this machine holds no keys of job {job.hex()[:12]}",
                    "only the client that submitted a job can read its answer",
                ) from None
            raise
        try:
            return _read(json.loads(data))
        except (ValueError, KeyError, TypeError, NovaMeshError) as error:
            raise NovaMeshError(Code.CORRUPT, f"{path} is damaged: {error}") from None

    def find(self, job: JobId) -> JobRecord:
        """The record of a job, else the newest one of whose answer it is a part. As `load`."""
        try:
            return self.load(job)
        except NovaMeshError as error:
            if error.code is not Code.NOT_FOUND or not (found := self.jobs(job.hex())):
                raise
        return self.load(found[-1])

    def remove(self, job: JobId) -> None:
        """Forget a job that has ended."""
        self._path(job).unlink(missing_ok=True)

    def jobs(self, beginning: str = "") -> tuple[JobId, ...]:
        """Jobs that have a record, oldest first; those of whose parts one's id begins so."""
        files = [path for _, path in self._files()]
        jobs = [JobId(bytes.fromhex(path.stem)) for path in files if len(path.stem) == 64]
        return tuple(job for job in jobs if self._belongs(job, beginning))

    def prune(self, now_ms: int) -> int:
        """Remove records whose job the pool has forgotten; how many."""
        removed = 0
        for written_ns, path in self._files():
            if written_ns // 1_000_000 + _KEPT_MS < now_ms:
                with contextlib.suppress(OSError):  # it is tried again, and keeps nobody waiting
                    path.unlink()
                    removed += 1
        return removed

    def _files(self) -> list[tuple[int, Path]]:
        """When each was written, in ns, oldest first; not those that are removed meanwhile."""
        found: list[tuple[int, Path]] = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        return sorted(found)

    def _belongs(self, job: JobId, beginning: str) -> bool:
        if job.hex().startswith(beginning):
            return True
        with contextlib.suppress(NovaMeshError):
            return any(part.hex().startswith(beginning) for part in self.load(job).parts)
        return False

    def _path(self, job: JobId) -> Path:
        return self._folder / f"{job.hex()}.json"


def _read(document: dict[str, Any]) -> JobRecord:
    if document["version"] not in _READABLE:
        raise ValueError("it was written by another version")
    network = document["network"]
    terms = open_envelope(_from_text(document["terms"]), JobTerms, network=network)
    candidates = tuple(
        open_envelope(_from_text(text), NodeDescriptor, network=network)
        for text in document["candidates"]
    )
    return JobRecord(
        model=str(document["model"]),
        terms=terms,
        response_key=bytes.fromhex(document["response_key"]),
        client_seed=bytes.fromhex(document["client_seed"]),
        candidates=candidates,
        submitted_at_ms=int(document["submitted_at_ms"]),
        earlier=tuple(decode_receipt(text.encode()) for text in document.get("earlier", ())),
        received=tuple(_piece_from_text(text) for text in document.get("received", ())),
        over=bool(document.get("over", False)),
        stop=tuple(str(text) for text in document.get("stop", ())),
        prompt_digest=bytes.fromhex(document.get("prompt_digest", "")),
    )


def _to_text(envelope: Envelope) -> str:
    return base64.b64encode(wire.encode(envelope)).decode()


def _piece_to_text(piece: Piece) -> str:
    body = ChunkBody(piece.token_ids, piece.text, piece.logprobs, piece.finish)
    return base64.b64encode(wire.encode(body)).decode()


def _piece_from_text(text: str) -> Piece:
    try:
        body = wire.decode(ChunkBody, base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError("a piece is not base64") from None
    return Piece(body.text, body.token_ids, body.logprobs, body.finish)


def _from_text(text: str) -> Envelope:
    try:
        return wire.decode(Envelope, base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError("an envelope is not base64") from None
