"""Files that are nobody else's business: written whole, durable, readable by their owner only.

Rules: a file is complete or not there at all, also after a crash; it has mode 0600 from its first
byte on and its folder 0700; a key that others could read is refused, not used quietly. What is in a
file is the business of the caller.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from novamesh_proto.errors import Code, NovaMeshError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file of mode 0600 atomically and durably; missing folders are made with 0700.

    Raises:
        NovaMeshError: CONFLICT if it exists and may not be replaced, STORAGE if it cannot be
            written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_whole(draft, data)
            if replace:
                draft.replace(path)
            else:
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError as error:
        if not path.exists():  # a file stands where a folder should be
            raise _unwritable(path, error) from error
        raise NovaMeshError(
            Code.CONFLICT, f"{path} is already there", "move it away first"
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from error


def read_private(path: Path, bytes_max: int) -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        NovaMeshError: NOT_FOUND, BAD_KEY if others could read it, TOO_LARGE, STORAGE.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & OTHERS:
                raise NovaMeshError(
                    Code.BAD_KEY,
                    f"{path} can be read by others (mode {mode:03o})",
                    f"chmod 600 {path}",
                )
            data = file.read(bytes_max + 1)
    except FileNotFoundError:
        raise NovaMeshError(Code.NOT_FOUND, f"there is no {path}") from None
    except OSError as error:
        raise NovaMeshError(Code.STORAGE, f"cannot read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise NovaMeshError(Code.TOO_LARGE, f"{path} has more than {bytes_max} bytes")
    return data


def _unwritable(path: Path, error: OSError) -> NovaMeshError:
    return NovaMeshError(
        Code.STORAGE,
        f"cannot write {path}: {error.strerror}",
        "check the folder's owner and the free space of its disk",
    )


def _write_whole(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """The new name survives a power cut too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
