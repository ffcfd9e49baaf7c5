"""How far the log had come when it was last acknowledged: beside a file, or in memory.

SQLite takes a damaged end of its write-ahead log for one that was never finished, and forgets it
without a word. Whoever was told that a write is durable was told so after it was, so a log that
ends before this mark has lost what was promised. Rules: written after each commit, without waiting
for the disk: the commit was waited for, so the mark is never ahead of it; one line of fixed length.

A PostgreSQL has no such file: coordinators on several machines share it, and what one of them wrote
beside itself says nothing of what another acknowledged. There the database itself is the truth of
what was acknowledged, with its own checks and copies; each process remembers what it acknowledged,
and refuses a database that has lost that, such as a copy that took over and lagged behind.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from novamesh_coordinator.log_chain import Mark
from novamesh_proto.errors import Code, NovaMeshError

_WITHOUT: Final = "without it a log that lost its end is not noticed"
_LINE: Final = re.compile(rb"([0-9]{20}) ([0-9a-f]{64})\n")


class HighWater:
    """The file of one open database."""

    def __init__(self, path: Path, *, look_only: bool = False) -> None:
        """Open it; create it where there is none, unless somebody only looks.

        Raises:
            NovaMeshError: STORAGE.
        """
        self._path = path
        mode = os.O_RDONLY if look_only else os.O_RDWR | os.O_CREAT
        if look_only and not path.exists():
            path = Path(os.devnull)  # reads as one in which nothing was acknowledged yet
        try:
            self._file = os.open(path, mode | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NovaMeshError(
                Code.STORAGE, f"cannot write {path}: {error.strerror}", "check owner and free space"
            ) from error

    def read(self) -> Mark:
        """The last place that was acknowledged; the log's beginning where none was yet.

        Raises:
            NovaMeshError: CORRUPT if the file is not as it was written, STORAGE.
        """
        try:
            line = os.pread(self._file, 256, 0)
        except OSError as error:
            raise NovaMeshError(
                Code.STORAGE, f"cannot read {self._path}: {error.strerror}", "mend the disk"
            ) from error
        if not line:
            return Mark()
        found = _LINE.fullmatch(line)
        if found is None:
            raise NovaMeshError(
                Code.CORRUPT,
                f"{self._path} is damaged; it says how far the log must go",
                f"remove it, then: novamesh coordinator check    ({_WITHOUT})",
            )
        return Mark(int(found[1]), bytes.fromhex(found[2].decode()))

    def write(self, mark: Mark) -> None:
        """Everything up to here was acknowledged."""
        # The commit stands whatever happens here; an older mark only finds less.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, b"%020d %b\n" % (mark.seq, mark.digest.hex().encode()), 0)

    def ahead(self, log: Mark) -> NovaMeshError:
        """The error for a log that ends before this mark."""
        return NovaMeshError(
            Code.CORRUPT,
            f"the log ends at event {log.seq}, and event {self.read().seq} was acknowledged",
            "nothing was repaired. Restore the whole folder from a backup that was made while the "
            f"coordinator did not run; to go on without those events remove {self._path} "
            f"({_WITHOUT})",
        )

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class Remembered:
    """The same of a database on a server: known for as long as this process lives."""

    def __init__(self) -> None:
        self._mark = Mark()

    def read(self) -> Mark:
        """The last place that this process acknowledged or read; the beginning before that."""
        return self._mark

    def write(self, mark: Mark) -> None:
        """Everything up to here was acknowledged."""
        self._mark = mark

    def ahead(self, log: Mark) -> NovaMeshError:
        """The error for a log that ends before this mark."""
        return NovaMeshError(
            Code.CORRUPT,
            f"the log ends at event {log.seq}, and event {self._mark.seq} was acknowledged",
            "nothing was repaired. Has a copy of the database that lagged behind taken over? Let "
            "the one that has all events serve; to go on without them start the coordinator again",
        )

    def close(self) -> None:
        """There is nothing to let go of."""
