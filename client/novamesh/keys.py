"""Key files of a client or a node: 64 hexadecimal digits and a newline, mode 0600.

Rules: a key is never printed, never replaced and never read from a file that others can read. Where
the files are is `config.Places`; what a key can do is `novamesh_proto.identity`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from novamesh.private_file import read_private, write_private
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import KEY_BYTES, PrivateKey

_FILE_BYTES_MAX: Final = 256


def create_key(path: Path) -> PrivateKey:
    """Make a new key and its file.

    Raises:
        NovaMeshError: CONFLICT if there is a file already, STORAGE if it cannot be written.
    """
    key = PrivateKey.generate()
    write_private(path, key.to_bytes().hex().encode() + b"\n", replace=False)
    return key


def load_key(path: Path) -> PrivateKey:
    """The key of a file.

    Raises:
        NovaMeshError: NOT_FOUND, BAD_KEY if others can read the file or it holds no key, STORAGE.
    """
    text = read_private(path, _FILE_BYTES_MAX).strip()
    try:
        seed = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise NovaMeshError(
            Code.BAD_KEY,
            f"{path} holds no key: 64 hexadecimal digits are expected",
            "restore it from your copy, or move it away to get a new key",
        )
    return PrivateKey.from_bytes(seed)


def load_or_create_key(path: Path) -> PrivateKey:
    """The key of a file, which is made on first use.

    Raises:
        NovaMeshError: as `load_key` and `create_key`.
    """
    if not path.exists():
        try:
            return create_key(path)
        except NovaMeshError as error:
            # Another process was faster: its key is ours too.
            if error.code is not Code.CONFLICT:
                raise
    return load_key(path)
