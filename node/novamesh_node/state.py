"""The node's own folder: what must survive a restart, and the lock that keeps it to one process.

Files: `lock`, `sequence` of the newest descriptor, `pause` the owner asked for, `speeds` and
`bandwidths` measured.
Rules: written whole or not at all, mode 0600; a damaged file costs what it held and never the
start, since each can be made again; nothing about a job's content is ever written. Which attempts
were admitted is in `replays`.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Final

import structlog

from novamesh.private_file import write_private
from novamesh_proto.errors import Code, NovaMeshError

_FILE_BYTES_MAX: Final = 1 << 20
SPEEDS_MAX: Final = 128  # models, builds, devices and settings that were measured

_log = structlog.get_logger()


class NodeState:
    """One node's folder. `lock` it before anything else is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep the folder to this process; the system lets go of it however the process ends.

        Raises:
            NovaMeshError: CONFLICT if another process has it, STORAGE.
        """
        path = self.folder / "lock"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._lock, 0)
            os.write(self._lock, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            pid = path.read_text(errors="replace")[:16].strip()
            raise NovaMeshError(
                Code.CONFLICT, f"a node already runs in {self.folder} (process {pid})",
                "look at it:  novamesh node status    or end it:  novamesh node stop",
            ) from None  # fmt: skip
        except OSError as error:
            raise _cannot("use", path, error) from error

    def unlock(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def next_sequence(self, least: int) -> int:
        """A descriptor sequence that was never used, at least `least`; it is stored.

        Raises:
            NovaMeshError: STORAGE.
        """
        stored = self._read("sequence").get("sequence")
        sequence = max(least, stored + 1 if isinstance(stored, int) else 1)
        self._write("sequence", {"sequence": sequence})
        return sequence

    def pause(self) -> tuple[bool, int]:
        """Whether the owner paused the node, and until when (wall ms, 0: until resumed)."""
        found = self._read("pause")
        until = found.get("until_ms")
        return bool(found), until if isinstance(until, int) else 0

    def save_pause(self, paused: bool, until_ms: int = 0) -> None:
        """Remember what the owner asked for. Raises STORAGE."""
        if paused:
            self._write("pause", {"until_ms": until_ms})
        else:
            (self.folder / "pause").unlink(missing_ok=True)

    def speed(self, name: str) -> tuple[float, float] | None:
        """Prefill and decode tokens a second measured before under that name."""
        found = self._read("speeds").get(name)
        if not isinstance(found, list) or len(found) != 2:
            return None
        prefill, decode = found
        numbers = isinstance(prefill, int | float) and isinstance(decode, int | float)
        return (float(prefill), float(decode)) if numbers else None

    def save_speed(self, name: str, prefill: float, decode: float) -> None:
        """Remember a measurement; the oldest ones go. Raises STORAGE."""
        speeds = self._read("speeds")
        speeds.pop(name, None)
        kept = dict(list(speeds.items())[-(SPEEDS_MAX - 1) :])
        self._write("speeds", kept | {name: [prefill, decode]})

    def best_bandwidth(self, name: str, measured: int) -> int:
        """The highest bandwidth ever measured under that name, bytes a second; it is stored.

        Raises:
            NovaMeshError: STORAGE.
        """
        known = self._read("bandwidths")
        before = known.get(name)
        if isinstance(before, int) and before >= measured:
            return before
        known.pop(name, None)
        self._write("bandwidths", dict(list(known.items())[-SPEEDS_MAX:]) | {name: measured})
        return measured

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            if path.stat().st_size > _FILE_BYTES_MAX:
                raise ValueError
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            _log.warning("a damaged file is ignored", file=str(path))
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, value: dict[str, Any]) -> None:
        write_private(self.folder / name, json.dumps(value).encode())


def _cannot(what: str, path: Path, error: OSError) -> NovaMeshError:
    hint = "check the folder's owner and the free space of its disk"
    return NovaMeshError(Code.STORAGE, f"cannot {what} {path}: {error.strerror}", hint)
