"""The models on this machine: those that come with novamesh, and profile folders on the shelf.

Rules: a model is what its manifest says, and its name is the manifest's digest; a folder with a
damaged manifest is shown with its fault and never hides the others. Nothing is downloaded here; no
weights are read but by `find_damage`, which hashes every file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh_engine.catalogue import BUILTINS, locate
from novamesh_engine.quant.profile import ModelProfile, is_profile, read_profile, verify_file
from novamesh_proto.errors import Code, NovaMeshError

ENTRIES_MAX: Final = 1000


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
        folders = sorted(path for path in shelf.iterdir() if path.is_dir())
        entries += [_read(path.name, path, built_in=False) for path in folders[:ENTRIES_MAX]]
    return tuple(entries)


def find_model(name: str, shelf: Path) -> ModelProfile:
    """The model that a name or a path means: built-in, then shelf, then a folder anywhere.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND, CORRUPT, UNSUPPORTED.
    """
    if name in BUILTINS:
        return read_profile(locate(name))
    plain = os.sep not in name
    for folder in [shelf / name] * plain + [Path(name).expanduser()]:
        if is_profile(folder):
            return read_profile(folder)
        if (folder / "config.json").is_file():
            raise NovaMeshError(
                Code.MODEL_NOT_FOUND,
                f"{folder} is a model, but not a profile: it has no novamesh.json",
                "make one:  novamesh recipe quantize --help",
            )
    raise NovaMeshError(
        Code.MODEL_NOT_FOUND,
        f"there is no model {name!r} on this machine",
        "see what there is:  novamesh models ls    or name a profile folder",
    )


def find_damage(profile: ModelProfile) -> dict[str, NovaMeshError]:
    """The files that are not what the manifest says, by name, each with what is wrong."""
    damage = {}
    for file in profile.files:
        try:
            verify_file(profile, file)
        except NovaMeshError as error:
            damage[file.path] = error
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
