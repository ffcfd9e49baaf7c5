"""A model profile: a folder, and a manifest that names every byte of it; its digest is its name.

`novamesh.json` is written in one canonical form (sorted keys, two spaces, ASCII, no floats, one
newline at the end) and refused in any other, so that `sha256sum novamesh.json` is the model's name
on the wire. Rules: paths are plain names inside the folder; sizes and counts are bounded. Reading a
manifest hashes no weights (`verify` does) and needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from novamesh_engine.files import AGAIN, corrupt, open_file, read_bytes
from novamesh_engine.models.config import CONFIG_FILE, ModelConfig
from novamesh_proto.errors import Code, NovaMeshError

MANIFEST_FILE: Final = "novamesh.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
FORMAT: Final = 1
FILES_MAX: Final = 4096
SIZE_MAX: Final = 1 << 50
HASHERS: Final = 4  # files that are hashed at once: more would only wait for the disk
QUANTS: Final = ("nf4", "none")

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = {
    "active_parameters", "files", "format", "max_context", "model_type", "name", "parameters",
    "quant",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """One file of a profile: a plain name, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a manifest says. `digest` is 32 bytes, `max_context` is in tokens."""

    name: str
    digest: bytes
    path: Path
    model_type: str
    quant: str
    parameters: int
    active_parameters: int
    max_context: int
    files: tuple[ProfileFile, ...]

    @property
    def digest_text(self) -> str:
        """The name on the wire as people see it: sha256:hex."""
        return f"sha256:{self.digest.hex()}"

    @property
    def digest_short(self) -> str:
        """The first 12 hex digits of the digest."""
        return self.digest.hex()[:12]

    @property
    def file_names(self) -> frozenset[str]:
        """The files that belong to it; nothing else in the folder counts."""
        return frozenset(file.path for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def is_profile(path: Path) -> bool:
    """Whether a folder has a manifest."""
    return (path / MANIFEST_FILE).is_file()


def read_profile(path: Path) -> ModelProfile:
    """Read and check the manifest of a profile folder; no other file is opened.

    Raises: NovaMeshError (model_not_found, corrupt, unsupported) naming the manifest.
    """
    manifest = path / MANIFEST_FILE
    hint = f"name a folder that holds {MANIFEST_FILE}"
    data = read_bytes(manifest, MANIFEST_BYTES_MAX, hint)
    return _parse(manifest, data)


def _parse(manifest: Path, data: bytes) -> ModelProfile:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict) or _canonical(raw) != data:
        raise corrupt(manifest, "is not a manifest in canonical form")
    if raw.get("format") != FORMAT:
        hint = "install a newer novamesh, or get a profile made for this one"
        what = f"{manifest}: format {str(raw.get('format'))[:20]} is not {FORMAT}"
        raise NovaMeshError(Code.UNSUPPORTED, what, hint)
    if set(raw) != _FIELDS:
        raise corrupt(manifest, f"has not exactly the fields {', '.join(sorted(_FIELDS))}")
    if not isinstance(raw["name"], str) or not _NAME.fullmatch(raw["name"]):
        raise corrupt(manifest, "its name is not like nova-pico")
    if raw["quant"] not in QUANTS or not isinstance(raw["model_type"], str):
        raise corrupt(manifest, "its quant or model_type is unknown")
    numbers = {key: raw[key] for key in ("parameters", "active_parameters", "max_context")}
    if not all(type(value) is int and 0 < value < SIZE_MAX for value in numbers.values()):
        raise corrupt(manifest, "its counts are not whole numbers")
    return ModelProfile(
        name=raw["name"], digest=hashlib.sha256(data).digest(), path=manifest.parent,
        model_type=raw["model_type"], quant=raw["quant"],
        files=_parse_files(manifest, raw["files"]), **numbers,
    )  # fmt: skip


def _parse_files(manifest: Path, raw: Any) -> tuple[ProfileFile, ...]:
    if not isinstance(raw, list) or not 0 < len(raw) <= FILES_MAX:
        raise corrupt(manifest, "its list of files is damaged")
    files = tuple(_parse_file(manifest, item) for item in raw)
    names = [file.path for file in files]
    if names != sorted(set(names)) or CONFIG_FILE not in names:
        raise corrupt(manifest, f"its files are not sorted, or {CONFIG_FILE} is not among them")
    return files


def _parse_file(manifest: Path, raw: Any) -> ProfileFile:
    if not isinstance(raw, dict) or set(raw) != {"path", "sha256", "size"}:
        raise corrupt(manifest, "its list of files is damaged")
    path, size, sha256 = raw["path"], raw["size"], raw["sha256"]
    if not isinstance(path, str) or not _FILE_NAME.fullmatch(path) or path == MANIFEST_FILE:
        raise corrupt(manifest, "names a file that is not a plain name inside the folder")
    if type(size) is not int or not 0 <= size < SIZE_MAX:
        raise corrupt(manifest, f"the size of {path} is damaged")
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        raise corrupt(manifest, f"the digest of {path} is damaged")
    return ProfileFile(path, size, sha256)


def verify(profile: ModelProfile) -> ModelProfile:
    """Hash every file of a profile and return it if all are what the manifest says.

    Raises: NovaMeshError (not_found, corrupt) naming the first file that is not.
    """
    with ThreadPoolExecutor(HASHERS) as pool:  # hashing releases the interpreter's lock
        for _ in pool.map(partial(verify_file, profile), profile.files):
            pass
    return profile


def verify_file(profile: ModelProfile, file: ProfileFile) -> None:
    """Hash one file of a profile.

    Raises: NovaMeshError (not_found, corrupt) naming it if it is not what the manifest says.
    """
    path = profile.path / file.path
    try:
        found = path.stat().st_size
        if found != file.size:
            raise corrupt(path, f"is {found} bytes long, not {file.size}")
        if hash_file(path) != file.sha256:
            raise corrupt(path, "is not the file that the manifest names (its digest differs)")
    except OSError as error:
        raise NovaMeshError(Code.NOT_FOUND, f"{path}: cannot be read", AGAIN) from error


def check_name(name: str) -> None:
    """Whether a model may be called that. Raises: NovaMeshError (bad_request)."""
    if not _NAME.fullmatch(name):
        hint = "use small letters, digits, dots, dashes: nova-pico"
        raise NovaMeshError(Code.BAD_REQUEST, f"{name[:80]!r} is not a model name", hint)


def write_profile(
    path: Path, name: str, quant: str, files: Iterable[str], digests: Mapping[str, str] = _NONE
) -> ModelProfile:
    """Hash files of a folder and write its manifest last, in one step, so that it is whole.

    `digests` are SHA-256 of files, in hex, by name, that the caller has just found out.

    Raises: NovaMeshError (bad_request) for a bad name, and as `read_profile`.
    """
    check_name(name)
    config = ModelConfig.from_file(path / CONFIG_FILE)
    entries = [
        {
            "path": file,
            "size": (path / file).stat().st_size,
            "sha256": digests.get(file) or hash_file(path / file),
        }
        for file in sorted(files)
    ]
    data = _canonical({
        "format": FORMAT, "name": name, "quant": quant, "model_type": config.model_type,
        "parameters": config.parameters, "active_parameters": config.active_parameters,
        "max_context": config.max_context, "files": entries,
    })  # fmt: skip
    profile = _parse(path / MANIFEST_FILE, data)
    draft = path / f"{MANIFEST_FILE}.tmp"
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path / MANIFEST_FILE)
    return profile


def _canonical(raw: dict[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file, in hex. Raises: OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
