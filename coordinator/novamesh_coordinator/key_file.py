"""The coordinator's own files: its key, readable by its owner only, and its address.

Rules: a key file is 64 hexadecimal digits and a newline, mode 0600, written whole or not at all and
never replaced; one that others could read is refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import KEY_BYTES, PrivateKey

_BYTES_MAX: Final = 256


def create_key(path: Path) -> PrivateKey:
    """Make the coordinator's key.

    Raises:
        NovaMeshError: CONFLICT if there is one already, STORAGE.
    """
    key = PrivateKey.generate()
    if path.exists():
        raise NovaMeshError(
            Code.CONFLICT,
            f"there is a coordinator in {path.parent} already",
            "serve it with: novamesh coordinator serve, or choose another --home",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, key.to_bytes().hex() + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    return key


def load_key(path: Path) -> PrivateKey:
    """The coordinator's key.

    Raises:
        NovaMeshError: NOT_FOUND, BAD_KEY if others can read it or it is none, STORAGE.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(_BYTES_MAX)
    except FileNotFoundError:
        raise NovaMeshError(
            Code.NOT_FOUND,
            f"there is no coordinator in {path.parent}",
            "make one with: novamesh coordinator init --name NAME",
        ) from None
    except OSError as error:
        raise NovaMeshError(Code.STORAGE, f"cannot read {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise NovaMeshError(
            Code.BAD_KEY, f"{path} can be read by others (mode {mode:03o})", f"chmod 600 {path}"
        )
    try:
        seed = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise NovaMeshError(
            Code.BAD_KEY,
            f"{path} holds no key: 64 hexadecimal digits are expected",
            "restore it from your copy; without it nobody recognises this pool",
        )
    return PrivateKey.from_bytes(seed)


def write_text(path: Path, text: str) -> None:
    """Replace a small file of ours, whole.

    Raises:
        NovaMeshError: STORAGE.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        _write_new(draft, text)
        draft.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> NovaMeshError:
    return NovaMeshError(
        Code.STORAGE, f"cannot write {path}: {error.strerror}", "check owner and free space"
    )
