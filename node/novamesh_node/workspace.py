"""Where a model is made before it is on the shelf, and how it gets there and away in one step.

Both are folders of the shelf's own that no model's name can be: `.pull/NAME` holds a profile under
way, `.downloads/ORG--NAME@COMMIT` a checkpoint. Rules: one process at a time works in one of them;
a model is on the shelf whole or not at all, whenever a process ends; what a model came from is
noted beside it, in a file that its manifest does not name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Final

from novamesh_engine.files import parse_object, read_bytes
from novamesh_engine.quant.profile import ModelProfile, check_name, is_profile, read_profile
from novamesh_proto.errors import Code, NovaMeshError

PULLS: Final = ".pull"
DOWNLOADS: Final = ".downloads"
ORIGIN_FILE: Final = "origin.json"
MARGIN_BYTES: Final = 256 << 20  # left free for everybody else
LOCK_FILE: Final = "lock"
_ORIGIN_BYTES_MAX: Final = 1 << 16
_LOCK_TRIES: Final = 8
_GLANCE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Workspace:
    """The place where the model of one name is made."""

    shelf: Path
    name: str

    @classmethod
    def of(cls, shelf: Path, name: str) -> Workspace:
        """Raises: NovaMeshError (bad_request) if a model may not be called that."""
        check_name(name)
        return cls(shelf, name)

    @property
    def folder(self) -> Path:
        """Everything of this model that is not on the shelf."""
        return self.shelf / PULLS / self.name

    @property
    def profile(self) -> Path:
        """The profile under way."""
        return self.folder / "profile"

    @property
    def target(self) -> Path:
        """Where it will stand."""
        return self.shelf / self.name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the name to this process.

        Raises:
            NovaMeshError: CONFLICT if another process works on it, STORAGE.
        """
        with lock(self.folder, f"another command works on {self.name}"):
            self._recover()
            try:
                yield
            finally:
                if not (self.folder / ORIGIN_FILE).exists():
                    discard(self.folder)  # nothing was begun

    def begin(self, origin: Mapping[str, str]) -> None:
        """From here on there is something to go on with, or to remove.

        Raises:
            OSError: the shelf cannot be written.
        """
        (self.folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n")

    @contextlib.contextmanager
    def discarded_if_corrupt(self) -> Iterator[None]:
        """Keep nothing of what can never become a model, however often it is pulled again.

        For use while it is locked: what was not begun goes with the lock.
        """
        try:
            yield
        except NovaMeshError as error:
            if error.code is Code.CORRUPT:
                (self.folder / ORIGIN_FILE).unlink(missing_ok=True)
            raise

    def install(self) -> ModelProfile:
        """Put the finished profile on the shelf, in the place of an older one if there is one.

        Raises:
            OSError: the shelf cannot be written.
        """
        shutil.copyfile(self.folder / ORIGIN_FILE, self.profile / ORIGIN_FILE)
        if self.target.exists():
            self.target.rename(self._replaced)
        self.profile.rename(self.target)
        discard(self.folder)
        return read_profile(self.target)

    def remove(self) -> None:
        """Take the model off the shelf, and what is left of a pull of it.

        Raises:
            NovaMeshError: CONFLICT if another pull uses the same download.
            OSError: the shelf cannot be written.
        """
        downloads = self.downloads
        if downloads is not None and downloads.is_dir():
            with lock(downloads, f"another pull uses what was downloaded for {self.name}"):
                discard(downloads)
        if self.target.exists():
            self.target.rename(self._removed)
        discard(self.folder)

    @property
    def downloads(self) -> Path | None:
        """Where a pull that was cut off has downloaded to, if it was from a repository."""
        origin = read_origin(self.folder)
        if not {"repository", "commit"} <= set(origin):
            return None
        return download_folder(self.shelf, origin["repository"], origin["commit"])

    def taken_bytes(self) -> int:
        """What all of it takes of the disk."""
        folders = (self.target, self.folder, self.downloads)
        return sum(disk_bytes(folder) for folder in folders if folder is not None)

    @property
    def _replaced(self) -> Path:
        return self.folder / "replaced"

    @property
    def _removed(self) -> Path:
        return self.folder / "removed"

    def _recover(self) -> None:
        """Of a process that ended between two renames, the older model stays."""
        if self._replaced.exists() and not self.target.exists():
            self._replaced.rename(self.target)
        for leftover in (self._replaced, self._removed):
            shutil.rmtree(leftover, ignore_errors=True)


def download_folder(shelf: Path, repository: str, commit: str) -> Path:
    """Where a commit of org/name is downloaded to."""
    return shelf / DOWNLOADS / f"{repository.replace('/', '--')}@{commit}"


def discard(folder: Path) -> None:
    """Remove a folder, and the one that it is in if it was the last there.

    Its lock goes last: until then nobody else begins to write there.
    """
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK_FILE:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def read_origin(folder: Path) -> dict[str, str]:
    """What a model on the shelf came from; nothing if nobody noted it."""
    path = folder / ORIGIN_FILE
    try:
        found = parse_object(read_bytes(path, _ORIGIN_BYTES_MAX), path)
    except NovaMeshError:
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, str)}


def unfinished(shelf: Path) -> dict[str, int]:
    """Names of models whose pull was cut off or is under way, and the bytes that are there."""
    folder = shelf / PULLS
    if not folder.is_dir():
        return {}
    begun = sorted(path.name for path in folder.iterdir() if (path / ORIGIN_FILE).is_file())
    return {
        name: Workspace(shelf, name).taken_bytes() for name in begun if not is_profile(shelf / name)
    }


@contextlib.contextmanager
def lock(folder: Path, taken: str) -> Iterator[None]:
    """Keep a folder to this process; the system lets go of it however the process ends.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE.
    """
    path = folder / LOCK_FILE
    for _ in range(_LOCK_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # whoever had the folder removes it at this moment
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            if _take(file, path, taken):
                yield
                return
        finally:
            os.close(file)
    raise NovaMeshError(Code.CONFLICT, taken, "do it again")


def find_worker(folder: Path) -> str:
    """The process that keeps a folder to itself, as `process N`; nothing if none does."""
    path = folder / LOCK_FILE
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _worker(path)
    finally:
        os.close(file)  # and with it the lock
    return ""


def _worker(path: Path) -> str:
    """Who wrote a lock that is held."""
    with contextlib.suppress(OSError):
        pid = path.read_text(errors="replace")[:16].strip()
        return f"process {pid}" if pid else "a process that begins just now"
    return "a process that ended just now"


def _take(file: int, path: Path, taken: str) -> bool:
    """False if whoever had the folder has removed it since it was opened here."""
    try:
        _flock(file)
    except BlockingIOError:
        raise NovaMeshError(
            Code.CONFLICT, f"{taken} ({_worker(path)})", "wait until it is done, or stop it"
        ) from None
    try:
        if not os.path.samestat(os.fstat(file), path.stat()):
            return False
    except FileNotFoundError:
        return False
    os.truncate(file, 0)
    os.write(file, f"{os.getpid()}\n".encode())
    return True


def _flock(file: int) -> None:
    """Twice, as somebody who only looks has it for a moment. Raises: BlockingIOError."""
    how = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        sleep(_GLANCE_S)
        fcntl.flock(file, how)


def disk_bytes(folder: Path) -> int:
    """What the files below a folder take of the disk."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.stat(follow_symlinks=False).st_blocks * 512
    return found


def check_space(folder: Path, wanted: int, what: str) -> None:
    """Whether a disk has room for so many bytes more.

    Raises:
        NovaMeshError: STORAGE saying how much is missing, and where.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free - MARGIN_BYTES
    if wanted > free:
        missing = f"{gigabytes(wanted)} are needed, {gigabytes(max(0, free))} can be had"
        raise NovaMeshError(
            Code.STORAGE, f"{what} does not fit on the disk of {existing}: {missing}",
            f"free {gigabytes(wanted - free)} there, or set NOVAMESH_HOME to a larger disk",
        )  # fmt: skip


def cannot_write(folder: Path, error: OSError) -> NovaMeshError:
    """The error for a disk that refuses."""
    return NovaMeshError(
        Code.STORAGE, f"cannot write {folder}: {error.strerror or error}",
        "check the folder's owner and the free space of its disk, then do it again",
    )  # fmt: skip


def gigabytes(count: int) -> str:
    """Bytes for people: 4.3 GB, or 120 MB below one, or 12 kB."""
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 10**6 else f"{count / 1e3:.0f} kB"
