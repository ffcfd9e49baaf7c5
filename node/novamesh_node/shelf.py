"""The models on this machine: those that come with novamesh, and profile folders on the shelf.

Rules: a model is what its manifest says, and its name is the manifest's digest; a folder with a
damaged manifest is shown with its fault and never hides the others. Nothing is downloaded here; no
weights are read but by `find_damage`, which hashes every file; a model that a running node serves
stays.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh_engine.catalogue import BUILTINS, find_path, locate
from novamesh_engine.files import AGAIN, corrupt
from novamesh_engine.quant.profile import ModelProfile, is_profile, read_profile, verify_file
from novamesh_node.workspace import (
    PULLS,
    Workspace,
    cannot_write,
    find_worker,
    gigabytes,
    unfinished,
)
from novamesh_proto.errors import Code, NovaMeshError

ENTRIES_MAX: Final = 1000
_SEE: Final = "see what there is:  novamesh models ls    or name a profile folder"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model on the shelf: its profile, or why it has none."""

    name: str
    path: Path
    built_in: bool
    profile: ModelProfile | None
    fault: str = ""


def list_models(shelf: Path) -> tuple[Entry, ...]:
    """Every model of this machine, built-in ones first, then by folder name."""
    entries = [_read_builtin(name) for name in BUILTINS]
    if shelf.is_dir():
        folders = sorted(
            path for path in shelf.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        entries += [_read(path.name, path, built_in=False) for path in folders[:ENTRIES_MAX]]
    for name, size in unfinished(shelf).items():
        folder, so_far = shelf / PULLS / name, f"{gigabytes(size)} so far"
        worker = find_worker(folder)
        fault = f"unfinished, {so_far}; pull it again to go on"
        if worker:
            fault = f"under way by {worker}, {so_far}"
        entries.append(Entry(name, folder, False, None, fault))
    return tuple(entries)


def find_model(name: str, shelf: Path) -> ModelProfile:
    """The model that a name or a path means: built-in, then shelf, then a folder anywhere.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND, CORRUPT, UNSUPPORTED.
    """
    if name in BUILTINS:
        return read_profile(locate(name))
    plain = os.sep not in name
    for path in ([shelf / name] * plain + [Path(name)]) if name else []:
        folder = find_path(path, _SEE)
        if is_profile(folder):
            return read_profile(folder)
        if (folder / "config.json").is_file():
            raise NovaMeshError(
                Code.MODEL_NOT_FOUND,
                f"{folder} is a model, but not a profile: it has no novamesh.json",
                f"make one:  novamesh models pull {shlex.quote(str(folder))}",
            )
    raise NovaMeshError(
        Code.MODEL_NOT_FOUND,
        f"there is no model {name!r} on this machine",
        _SEE,
    )


def remove_model(name: str, shelf: Path, served: Collection[str]) -> int:
    """Take a model, or what is left of a pull of it, off the shelf; the bytes that it took.

    Raises:
        NovaMeshError: as `find_removable`, CONFLICT if it is being pulled, STORAGE.
    """
    work = find_removable(name, shelf, served)
    with work.locked():
        size = work.taken_bytes()
        try:
            work.remove()
        except OSError as error:
            raise cannot_write(shelf, error) from error
    return size


def find_removable(name: str, shelf: Path, served: Collection[str]) -> Workspace:
    """What may be taken off the shelf.

    `served` are the digests, sha256:hex, of the models that a node of this machine serves now.

    Raises:
        NovaMeshError: POLICY for a built-in model, MODEL_NOT_FOUND, CONFLICT if it is served,
            BAD_REQUEST.
    """
    if name in BUILTINS:
        raise NovaMeshError(
            Code.POLICY, f"{name} is built in: it stays as long as novamesh does",
            "see what else there is:  novamesh models ls",
        )  # fmt: skip
    work = Workspace.of(shelf, name)
    if not work.target.exists() and not work.folder.exists():
        raise NovaMeshError(
            Code.MODEL_NOT_FOUND, f"there is no model {name!r} on the shelf {shelf}", _SEE
        )
    entry = _read(name, work.target, built_in=False)
    if entry.profile is not None and entry.profile.digest_text in served:
        raise NovaMeshError(
            Code.CONFLICT, f"a node of this machine serves {name}",
            "stop it first:  novamesh node stop",
        )  # fmt: skip
    return work


def find_damage(profile: ModelProfile) -> dict[str, NovaMeshError]:
    """The files that are not what the manifest says, by name, each with what is wrong."""
    damage = {}
    for file in profile.files:
        try:
            verify_file(profile, file)
        except NovaMeshError as error:
            damage[file.path] = error
    return damage


def find_missing(profile: ModelProfile) -> dict[str, NovaMeshError]:
    """As `find_damage`, but only by name and size: nothing is read."""
    damage = {}
    for file in profile.files:
        path = profile.path / file.path
        try:
            size = path.stat().st_size
        except OSError:
            damage[file.path] = NovaMeshError(Code.NOT_FOUND, f"{path}: is missing", AGAIN)
            continue
        if size != file.size:
            damage[file.path] = corrupt(path, f"is {size} bytes long, not {file.size}")
    return damage


def active_bytes(profile: ModelProfile) -> int:
    """Weight bytes that one token reads: the active share of the weight files, in bytes."""
    weights = sum(file.size for file in profile.files if file.path.endswith(".safetensors"))
    return weights * profile.active_parameters // max(1, profile.parameters)


def _read_builtin(name: str) -> Entry:
    try:
        path = locate(name)
    except NovaMeshError as error:
        return Entry(name, Path(), True, None, error.message)
    return _read(name, path, built_in=True)


def _read(name: str, path: Path, *, built_in: bool) -> Entry:
    try:
        profile = read_profile(path)
    except NovaMeshError as error:
        return Entry(name, path, built_in, None, error.message)
    return Entry(profile.name if built_in else name, path, built_in, profile)
