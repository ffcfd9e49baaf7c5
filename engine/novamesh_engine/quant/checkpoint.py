"""Where a conversion reads from: a checkpoint whose files are here, or come when asked for.

A conversion asks for one file after the other and says when it will not ask for one again; what
that means (a download, a removal, nothing) is the checkpoint's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from novamesh_engine.weights.store import TensorFile, TensorStore


class Checkpoint(Protocol):
    """A plain checkpoint whose files may still be on their way."""

    @property
    def folder(self) -> Path:
        """Where config.json and the companions are."""
        ...

    @property
    def identity(self) -> str:
        """Text that differs if any byte of the weights does."""
        ...

    @property
    def where(self) -> Mapping[str, str]:
        """The file that each tensor is in."""
        ...

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None if there is no such tensor; its file need not be here."""
        ...

    def open(self, name: str) -> TensorFile:
        """A file, once all of it is here."""
        ...

    def release(self, name: str) -> None:
        """Nothing more will be read of a file."""
        ...


@dataclass(frozen=True, slots=True)
class FolderCheckpoint:
    """A checkpoint in a folder that somebody else keeps: nothing of it is changed or removed."""

    folder: Path
    where: Mapping[str, str]
    files: Mapping[str, TensorFile]

    @classmethod
    def at(cls, folder: Path) -> FolderCheckpoint:
        """Raises: NovaMeshError (model_not_found, not_found, corrupt, unsupported)."""
        found = TensorStore.open(folder).files
        where = {name: file.path.name for name, file in found.items()}
        return cls(folder, where, {file.path.name: file for file in found.values()})

    @property
    def identity(self) -> str:
        """Names, sizes and times of the files: hashing tens of gigabytes twice helps nobody."""
        marks = [
            (name, file.path.stat().st_size, file.path.stat().st_mtime_ns)
            for name, file in sorted(self.files.items())
        ]
        return json.dumps([str(self.folder.resolve()), marks])

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None if there is no such tensor."""
        file = self.where.get(tensor)
        return None if file is None else self.files[file].entries[tensor].shape

    def open(self, name: str) -> TensorFile:
        """One of the folder's files."""
        return self.files[name]

    def release(self, name: str) -> None:
        """Nothing: the folder is not ours."""
