"""Tensors of a model folder: safetensors files, mapped into memory, their headers checked by us.

Rules: a damaged, truncated, pickled or missing file is refused with an error that names it, and the
tensor where there is one; no name leads out of the folder (a link in it may: Hugging Face's cache
is made of links); no pickle, no code from a file.
Tensors are copy-on-write views of the file: nothing is read before it is used, or written back.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor

from novamesh_engine.files import AGAIN, corrupt, open_file, parse_object, read_bytes
from novamesh_proto.errors import Code, NovaMeshError

INDEX_FILE: Final = "model.safetensors.index.json"
HEADER_BYTES_MAX: Final = 64 << 20
INDEX_BYTES_MAX: Final = 64 << 20
FILES_MAX: Final = 4096
DIMENSIONS_MAX: Final = 8

_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT: Final = "novamesh reads safetensors only: save the model in that format first"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: element type, shape, and its bytes [start, stop) in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """One mapped safetensors file whose header has been checked against its size."""

    path: Path
    mapped: mmap.mmap
    entries: Mapping[str, Entry]

    @classmethod
    def map(cls, path: Path) -> TensorFile:
        """Map a file and check its header.

        Raises: NovaMeshError (not_found, corrupt, unsupported) naming the file.
        """
        try:
            with open_file(path) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError as error:
            raise NovaMeshError(Code.NOT_FOUND, f"{path}: is missing", AGAIN) from error
        except (OSError, ValueError) as error:
            raise corrupt(path, f"cannot be mapped ({error})") from error
        return cls(path, mapped, _read_header(path, mapped))

    def tensor(self, name: str) -> Tensor:
        """A view of one tensor's bytes; it keeps the mapping alive."""
        entry = self.entries[name]
        count = (entry.stop - entry.start) // entry.dtype.itemsize
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        flat = torch.frombuffer(self.mapped, dtype=torch.uint8, offset=entry.start,
                                count=entry.stop - entry.start)  # fmt: skip
        if entry.start % entry.dtype.itemsize:
            flat = flat.clone()  # a file whose tensors are not aligned is legal, a view is not
        return flat.view(entry.dtype).view(entry.shape)

    def let_go(self, name: str) -> None:
        """Take the pages of a tensor that nobody wrote to off this process; a use maps them anew.

        An embedding is looked at as a whole once, and then a row for each token.
        """
        entry, page = self.entries[name], mmap.PAGESIZE
        first, last = -(-entry.start // page) * page, entry.stop // page * page
        if first < last:
            self.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _read_header(path: Path, mapped: mmap.mmap) -> dict[str, Entry]:
    length = int.from_bytes(mapped[:8], "little")
    start = 8 + length
    if len(mapped) < 8 or length > HEADER_BYTES_MAX or start > len(mapped):
        raise _no_header(path, mapped[:4], "its header is damaged or cut off")
    try:
        header = json.loads(mapped[8:start].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _no_header(path, mapped[:4], "its header is damaged") from error
    if not isinstance(header, dict):
        raise corrupt(path, "its header is damaged")
    header.pop("__metadata__", None)
    entries = {name: _read_entry(path, name, raw, start) for name, raw in header.items()}
    _check_cover(path, entries, start, len(mapped))
    return entries


def _no_header(path: Path, start: bytes, what: str) -> NovaMeshError:
    """Why there is no header. A header of 640 bytes begins as a pickle does, so this comes last."""
    if start == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return NovaMeshError(Code.UNSUPPORTED, f"{path}: is a pickled checkpoint", _CONVERT)
    return corrupt(path, what)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _read_entry(path: Path, name: str, raw: object, base: int) -> Entry:
    """One header entry; sizes are whole numbers, so that none of them can wrap."""
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    kind, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        what = f"{path}: tensor {name} has element type {str(kind)[:40]}"
        raise NovaMeshError(Code.UNSUPPORTED, what, AGAIN)
    if not (_is_sizes(shape, DIMENSIONS_MAX) and _is_sizes(span, 2) and len(span) == 2):
        raise corrupt(path, f"the header of tensor {name} is damaged")
    if span[1] - span[0] != math.prod(shape) * dtype.itemsize:
        raise corrupt(path, f"tensor {name} has the wrong number of bytes for its shape")
    return Entry(dtype, tuple(shape), base + span[0], base + span[1])


def _is_sizes(value: Any, count_max: int) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= count_max
        and all(type(item) is int and item >= 0 for item in value)
    )


def _check_cover(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors must tile the data exactly: no gap to hide in, no overlap, nothing cut off."""
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != start:
            raise corrupt(path, "its tensors overlap or leave a gap")
        start = entry.stop
    if start > size:
        raise corrupt(path, f"is cut off: {size} bytes of {start}")
    if start < size:
        raise corrupt(path, f"has {size - start} bytes too many")


@dataclass(frozen=True, slots=True)
class TensorStore:
    """All tensors of a folder by name."""

    path: Path
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, path: Path, only: frozenset[str] | None = None) -> TensorStore:
        """Map every safetensors file that a model folder's index names, or all that it holds.

        `only` are the file names that count, if not all do: a profile's.

        Raises: NovaMeshError (model_not_found, not_found, corrupt, unsupported) naming the file.
        """
        index = path / INDEX_FILE
        indexed = index.is_file() and (only is None or INDEX_FILE in only)
        where = _read_index(index) if indexed else {}
        names = sorted(set(where.values())) or _list_files(path, only)
        for name in names:
            if only is not None and name not in only:
                raise corrupt(index, f"names {name}, which the manifest does not")
        files = {name: TensorFile.map(path / name) for name in names}
        if not where:
            return cls(path, _by_tensor(files.values()))
        for tensor, name in where.items():
            if tensor not in files[name].entries:
                raise corrupt(files[name].path, f"tensor {tensor} is missing")
        return cls(path, {tensor: files[name] for tensor, name in where.items()})

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None if there is no such tensor; nothing is read."""
        file = self.files.get(name)
        return None if file is None else file.entries[name].shape

    def take(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """One tensor, a view of the file, of the shape and one of the element types wanted.

        Raises: NovaMeshError (corrupt) naming file and tensor.
        """
        file = self.files.get(name)
        if file is None:
            raise corrupt(self.path, f"tensor {name} is missing")
        entry = file.entries[name]
        if entry.shape != shape:
            raise corrupt(file.path, f"tensor {name} has shape {entry.shape}, not {shape}")
        if entry.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            found = str(entry.dtype).removeprefix("torch.")
            raise corrupt(file.path, f"tensor {name} is {found}, not {wanted}")
        return file.tensor(name)

    def take_finite(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """As `take`, and every value is a number: reads the whole tensor, and lets its pages go.

        Raises: NovaMeshError (corrupt) naming file and tensor.
        """
        tensor, file = self.take(name, shape, *dtypes), self.files[name]
        if not bool(torch.isfinite(tensor).all()):
            raise corrupt(file.path, f"tensor {name} holds values that are no numbers")
        file.let_go(name)
        return tensor


def _by_tensor(files: Iterable[TensorFile]) -> dict[str, TensorFile]:
    found: dict[str, TensorFile] = {}
    for file in files:
        for name in file.entries:
            if name in found:
                raise corrupt(file.path, f"tensor {name} is also in {found[name].path.name}")
            found[name] = file
    return found


def _list_files(path: Path, only: frozenset[str] | None) -> list[str]:
    """The safetensors files of a folder without an index."""
    try:
        names = sorted(only) if only is not None else sorted(item.name for item in path.iterdir())
    except OSError as error:
        hint = "name a folder that holds config.json and *.safetensors"
        raise NovaMeshError(Code.MODEL_NOT_FOUND, f"{path}: no such folder", hint) from error
    found = [name for name in names if name.endswith(".safetensors")]
    if found and len(found) <= FILES_MAX:
        return found
    for name in names:
        if name.endswith(_PICKLE_SUFFIXES):
            what = f"{path / name}: is a pickled checkpoint, which can run code"
            raise NovaMeshError(Code.UNSUPPORTED, what, _CONVERT)
    raise NovaMeshError(Code.NOT_FOUND, f"{path}: holds no usable *.safetensors file", AGAIN)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name; a file name is one plain name, so that it stays in the folder."""
    where = parse_object(read_bytes(path, INDEX_BYTES_MAX), path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise corrupt(path, "has no readable weight_map")
    for name in where.values():
        if not isinstance(name, str):
            raise corrupt(path, "its weight_map is damaged")
        if name.endswith(_PICKLE_SUFFIXES):
            raise NovaMeshError(Code.UNSUPPORTED, f"{path.parent / name}: is pickled", _CONVERT)
        if not name.endswith(".safetensors") or "/" in name or "\\" in name or "\0" in name:
            raise corrupt(path, f"names the file {name[:80]!r}, which is not a plain name")
    if len(set(where.values())) > FILES_MAX:
        raise corrupt(path, f"names more than {FILES_MAX} files")
    return where
