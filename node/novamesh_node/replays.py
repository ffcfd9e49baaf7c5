"""Which attempts were admitted, on disk: the journal behind admission's replay window.

One line an attempt, `expires-at id`, appended before the attempt is accepted. Rules: bounded, since
it is written anew without what has expired; a line torn by a crash is skipped. It survives the
process, not a power cut, and needs not: keys that open bodies live in memory only, so what was
sealed before a power cut cannot be opened after it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from novamesh.private_file import write_private
from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import MessageId

APPENDED_MAX: Final = 4096  # lines until the file is written anew
_BYTES_MAX: Final = 64 << 20
_HORIZON: Final = "-"  # in place of an id: everything up to here has been forgotten


class ReplayJournal:
    """The file of one node and the window that it restores."""

    def __init__(self, path: Path, now_ms: int) -> None:
        """Read the journal and write it anew.

        Raises:
            NovaMeshError: STORAGE.
        """
        self._path = path
        self._file = -1
        self._appended = 0
        self.window = ReplayWindow.restore(_read(path, now_ms))
        self._rewrite()

    def remember(self, attempt: MessageId, expires_at_ms: int) -> None:
        """Write down an attempt that the window has just admitted.

        Raises:
            NovaMeshError: STORAGE; the attempt must not run then.
        """
        if self._appended >= APPENDED_MAX:
            self._rewrite()
            return
        line = f"{expires_at_ms} {attempt.hex()}\n".encode()
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise _cannot(self._path, error.strerror) from error
        self._appended += 1
        if written != len(line):
            self._appended = APPENDED_MAX  # the next one writes the file anew
            raise _cannot(self._path, "the disk is full")

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _rewrite(self) -> None:
        lines = [f"{at} {name.hex() or _HORIZON}\n" for at, name in self.window.snapshot()]
        write_private(self._path, "".join(lines).encode())
        self.close()
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot(self._path, error.strerror) from error
        self._appended = 0


def _read(path: Path, now_ms: int) -> list[tuple[int, MessageId]]:
    """A snapshot: the horizon first, then what still counts."""
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MAX).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise _cannot(path, error.strerror) from error
    horizon_ms, entries = -1, {}
    for line in text.split("\n")[:-1]:  # what follows the last line end is torn or empty
        parts = line.split(" ")
        if len(parts) != 2 or not parts[0].removeprefix("-").isdecimal():
            continue
        at_ms = int(parts[0])
        if parts[1] == _HORIZON or at_ms + CLOCK_SKEW_MS < now_ms:
            horizon_ms = max(horizon_ms, at_ms)
        elif len(parts[1]) == 64 and set(parts[1]) <= set("0123456789abcdef"):
            entries[MessageId(bytes.fromhex(parts[1]))] = at_ms
    return [(horizon_ms, MessageId(b"")), *sorted((at, name) for name, at in entries.items())]


def _cannot(path: Path, why: str | None) -> NovaMeshError:
    return NovaMeshError(
        Code.STORAGE, f"cannot write {path}: {why or 'failed'}", "free some space on its disk"
    )
