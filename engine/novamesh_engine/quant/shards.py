"""The safetensors files of a profile: laid out before a byte is written, aligned for the kernels.

Kernels read packed weights with 64-byte loads straight from the mapped file. So the header is
padded with spaces, as the format allows, until the data begin at a multiple of 64, and tensors
whose size is one come first. Rules: the same plan gives the same bytes; a file has its last name
only once it is whole and on the disk.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh_engine.quant.tensors import ProfileTensor, Stored

ALIGNMENT: Final = 64
SHARD_BYTES: Final = 1 << 30

_WIDTH: Final = {"U8": 1, "F16": 2, "F32": 4}
_LENGTH_BYTES: Final = 8
_NO_RESERVING: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file to be: its tensors, its first bytes, and where in it each stored tensor begins."""

    name: str
    tensors: tuple[ProfileTensor, ...]
    header: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(plan: Iterable[ProfileTensor], shard_bytes: int = SHARD_BYTES) -> tuple[Shard, ...]:
    """Files of at most `shard_bytes` of tensors each, or of one tensor that is larger, in order."""
    groups: list[list[ProfileTensor]] = [[]]
    held = 0
    for tensor in plan:
        size = sum(stored.size for stored in tensor.stored)
        if groups[-1] and held + size > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(tensor)
        held += size
    if len(groups) == 1:
        return (_lay_out_one("model.safetensors", groups[0]),)
    return tuple(
        _lay_out_one(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    )


def _lay_out_one(name: str, tensors: Sequence[ProfileTensor]) -> Shard:
    stored = [each for tensor in tensors for each in tensor.stored]
    # What is no multiple of 64 ends the file, wide elements first, so that all stay aligned to
    # their own width.
    stored.sort(key=_place)
    spans, at = {}, 0
    for each in stored:
        spans[each.name] = (at, at + each.size)
        at += each.size
    header = _header(stored, spans)
    offsets = {key: len(header) + start for key, (start, _) in spans.items()}
    return Shard(name, tuple(tensors), header, offsets, len(header) + at)


def _place(stored: Stored) -> int:
    return 0 if stored.size % ALIGNMENT == 0 else 8 - _WIDTH[stored.dtype]


def _header(stored: Iterable[Stored], spans: Mapping[str, tuple[int, int]]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for each in stored:
        fields[each.name] = {
            "dtype": each.dtype, "shape": each.shape, "data_offsets": spans[each.name],
        }  # fmt: skip
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def index_bytes(shards: Iterable[Shard]) -> bytes:
    """The index of several files: which tensor is in which."""
    where = {name: shard.name for shard in shards for name in shard.offsets}
    return json.dumps({"weight_map": where}, indent=2, sort_keys=True).encode()


class ShardWriter:
    """One file under way, beside its last name; space for all of it is taken at once."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._draft = folder / f"{shard.name}.part"
        self._file = os.open(self._draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _reserve(self._file, shard.size)
            self._put(0, shard.header)
        except OSError:
            self.close()
            raise

    def write(self, name: str, at: int, data: memoryview | bytes) -> None:
        """Bytes of a stored tensor, from its byte `at` on."""
        self._put(self._shard.offsets[name] + at, data)

    def finish(self) -> str:
        """Make the file durable under its last name; its SHA-256 in hex, read back from it."""
        os.fsync(self._file)
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._draft.replace(self._path)
        sync_folder(self._path.parent)
        return digest

    def close(self) -> None:
        """Let go of the file, finished or not."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _put(self, at: int, data: memoryview | bytes) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self._file, rest, at)
            rest, at = rest[written:], at + written


def sync_folder(path: Path) -> None:
    """A new name in the folder survives a power cut too."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _reserve(file: int, size: int) -> None:
    """A full disk is met now, not after minutes; some file systems cannot, and are met later."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in _NO_RESERVING:
            raise
    os.ftruncate(file, size)
