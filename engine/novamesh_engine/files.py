"""Reads the files of a model folder: regular ones only, the small ones whole and within a bound.

Rules: a pipe or a device is never opened, as reading it might not end; links are followed, because
Hugging Face's cache is made of them; an error names the file. It does not know what files say.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from novamesh_proto.errors import Code, NovaMeshError

AGAIN: Final = "get the model's files again"


def corrupt(path: Path, what: str) -> NovaMeshError:
    """The error for a file that is not what it should be."""
    return NovaMeshError(Code.CORRUPT, f"{path}: {what}", AGAIN)


def open_file(path: Path) -> BufferedReader:
    """Open a regular file. Raises: OSError, also for what is no regular file."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
    return path.open("rb")


def read_bytes(path: Path, bytes_max: int, hint: str = AGAIN) -> bytes:
    """A whole file.

    Raises: NovaMeshError (model_not_found) with the hint if it cannot be read, (corrupt) if it is
    larger than `bytes_max`.
    """
    try:
        with open_file(path) as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise NovaMeshError(Code.MODEL_NOT_FOUND, f"{path}: cannot be read", hint) from error
    if len(data) > bytes_max:
        raise corrupt(path, f"is larger than {bytes_max} bytes")
    return data


def parse_object(data: bytes | str, path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises: NovaMeshError (corrupt)."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, "is not JSON") from error
    if not isinstance(value, dict):
        raise corrupt(path, "is not a JSON object")
    return value
