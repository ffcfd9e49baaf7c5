"""Work done while the coordinator was away, on disk until it has logged it.

Rules: nothing is paid for it, so nothing but honour is lost with it: DONATIONS_MAX are kept, the
oldest goes first; each is one file by its job's id, which the coordinator takes once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from novamesh.private_file import read_private, write_private
from novamesh_proto import envelope, wire
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.limits import MESSAGE_BYTES_MAX
from novamesh_proto.messages import Donation, JobId

DONATIONS_MAX: Final = 256

_log = structlog.get_logger()


class Donations:
    """The donations in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, donation: Donation) -> None:
        """Keep one more. Raises STORAGE."""
        job = envelope.message_id(donation.terms)
        write_private(self._folder / job.hex(), wire.encode(donation))
        for path in self._paths()[:-DONATIONS_MAX]:
            path.unlink(missing_ok=True)

    def drop(self, job: JobId) -> None:
        """The coordinator has logged it, or never will."""
        (self._folder / job.hex()).unlink(missing_ok=True)

    def pending(self) -> tuple[Donation, ...]:
        """What the coordinator has not logged yet, oldest first; a damaged file is put aside."""
        found = []
        for path in self._paths():
            try:
                found.append(wire.decode(Donation, read_private(path, MESSAGE_BYTES_MAX)))
            except NovaMeshError as error:
                _log.warning("a donation cannot be read", file=path.name, error=error.message)
                path.unlink(missing_ok=True)
        return tuple(found)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted(self._folder.iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name))
