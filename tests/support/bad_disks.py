"""Three ways to make the disk of one real coordinator fail while it runs, and to mend it again.

`Shim` stands before its system calls (disk_shim.c, preloaded) and needs a C compiler, no rights;
`Traced` lets the kernel's own calls fail under strace; `SmallDisk` is a tmpfs that gets full.
Each says what it lacks on this machine, or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

SOURCE: Final = Path(__file__).with_name("disk_shim.c")
KINDS: Final = ("write", "grow", "sync", "read")  # in the order of disk_shim.c
SIZE: Final = "1m"
_FAULT: Final = struct.Struct("=iiii")
_CALLS: Final = {"write": "write,pwrite64", "sync": "fsync,fdatasync", "read": "read,pread64"}
_PROBE_S: Final = 20


@dataclass(frozen=True)
class Fault:
    """What goes wrong: calls of some kinds fail with an errno, or take longer."""

    name: str
    kinds: tuple[str, ...]
    error: int = 0
    delay_ms: int = 0


FULL: Final = Fault("full", ("grow",), errno.ENOSPC)
WRITE_EIO: Final = Fault("write EIO", ("write",), errno.EIO)
SYNC_EIO: Final = Fault("fsync EIO", ("sync",), errno.EIO)
DEAD: Final = Fault("all EIO", ("write", "sync", "read"), errno.EIO)
SLOW: Final = Fault("fsync 2 s", ("sync",), delay_ms=2_000)


class BadDisk(Protocol):
    """A disk below one folder; `command` starts a process on it, `place` is where we see it."""

    command: tuple[str, ...]
    environment: dict[str, str]
    place: Path

    async def spoil(self, fault: Fault, pid: int) -> None:
        """From now on, for that process."""
        ...

    async def mend(self) -> int:
        """It is well again; how many calls had failed or waited, as far as that is known."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Shim:
    """System calls fail before they reach the kernel."""

    faults = (FULL, WRITE_EIO, SYNC_EIO, DEAD, SLOW)

    def __init__(self, root: Path, place: Path) -> None:
        self.command: tuple[str, ...] = ()
        self.place = place
        switch, library = root / "switch", root / "disk_shim.so"
        switch.write_bytes(bytes(_FAULT.size * len(KINDS)))
        build = ["-U_FORTIFY_SOURCE", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(["gcc", *build], check=True, timeout=_PROBE_S * 3)
        with switch.open("r+b") as file:
            self._switch = mmap.mmap(file.fileno(), 0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "DISK_SWITCH": str(switch),
            "DISK_FOLDER": str(place),
        }

    @staticmethod
    def lacks() -> str:
        """What this machine does not have."""
        return "" if shutil.which("gcc") else "gcc"

    async def spoil(self, fault: Fault, pid: int) -> None:
        """Throw the switch."""
        del pid
        for kind in fault.kinds:
            at = KINDS.index(kind) * _FAULT.size
            _FAULT.pack_into(self._switch, at, fault.error, fault.delay_ms, 0, 0)

    async def mend(self) -> int:
        """Throw it back."""
        hits = sum(hit for _, _, hit, _ in _FAULT.iter_unpack(self._switch[:]))
        self._switch[:] = bytes(len(self._switch))
        return hits

    def close(self) -> None:
        """Forget the switch."""
        self._switch.close()


class Traced:
    """strace makes the kernel's calls fail."""

    faults = (WRITE_EIO, SYNC_EIO, SLOW)

    def __init__(self, root: Path, place: Path) -> None:
        self.command: tuple[str, ...] = ()
        self.environment: dict[str, str] = {}
        self.place = place
        self._log = root / "strace.log"
        self._strace: asyncio.subprocess.Process | None = None

    @staticmethod
    def lacks() -> str:
        """What this machine does not have."""
        if not shutil.which("strace"):
            return "strace"
        seen = subprocess.run(
            ["strace", "-o", os.devnull, "true"], capture_output=True, check=False, timeout=_PROBE_S
        )
        return "the right to trace a process" if seen.returncode else ""

    async def spoil(self, fault: Fault, pid: int) -> None:
        """Attach; it works when this returns."""
        calls = ",".join(_CALLS[kind] for kind in fault.kinds)
        name = errno.errorcode.get(fault.error)
        what = f"error={name}" if name else f"delay_enter={fault.delay_ms * 1000}"
        files = [self.place / f"coordinator.db{end}" for end in ("", "-wal", ".mark")]
        paths = [part for path in files for part in ("-P", str(path))]
        options = ["-f", "-p", str(pid), "-o", str(self._log)]
        self._strace = await asyncio.create_subprocess_exec(
            "strace", *options, "-e", f"trace={calls}", "-e", f"inject={calls}:{what}", *paths,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._strace.stderr is not None
        said = await self._strace.stderr.readline()
        if b"attached" not in said:
            raise AssertionError(f"strace says: {said.decode()}")

    async def mend(self) -> int:
        """Detach."""
        self.close()
        if self._strace is not None:
            await self._strace.wait()
            self._strace = None
        return self._log.read_text().count("INJECTED") + self._log.read_text().count("DELAYED")

    def close(self) -> None:
        """Detach, without waiting."""
        if self._strace is not None and self._strace.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._strace.send_signal(signal.SIGINT)


class SmallDisk:
    """A file system of its own, in a namespace of its own, that something else fills."""

    faults = (FULL,)

    def __init__(self, root: Path, place: Path) -> None:
        del root
        mount = f'mount -t tmpfs -o size={SIZE} tmpfs "$1" && echo mounted && exec sleep 600'
        place.mkdir(parents=True, exist_ok=True)
        self._holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", mount, "sh", place], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            raise AssertionError(f"nothing could be mounted: {self._holder.wait(_PROBE_S)}")
        holder = str(self._holder.pid)
        self.command = ("nsenter", "-t", holder, "-U", "-m", "--preserve-credentials", "--")
        self.environment: dict[str, str] = {}
        self.place = Path(f"/proc/{holder}/root{place}")

    @staticmethod
    def lacks() -> str:
        """What this machine does not have."""
        if not (shutil.which("unshare") and shutil.which("nsenter")):
            return "unshare and nsenter"
        tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        seen = subprocess.run(tried, capture_output=True, check=False, timeout=_PROBE_S)
        return "the right to mount in a namespace of one's own" if seen.returncode else ""

    async def spoil(self, fault: Fault, pid: int) -> None:
        """Fill it to the last byte."""
        del fault, pid
        with (self.place / "ballast").open("ab", buffering=0) as ballast:
            for size in (4096, 1):
                with contextlib.suppress(OSError):
                    while ballast.write(bytes(size)):
                        pass

    async def mend(self) -> int:
        """Somebody frees space."""
        (self.place / "ballast").unlink(missing_ok=True)
        return 0

    def close(self) -> None:
        """The file system goes with its namespace."""
        self._holder.kill()
        self._holder.communicate()


@contextlib.contextmanager
def opened(kind: type[Shim] | type[Traced] | type[SmallDisk], root: Path) -> Iterator[BadDisk]:
    """Such a disk, at `root`/coordinator."""
    disk = kind(root, root / "coordinator")
    try:
        yield disk
    finally:
        disk.close()
