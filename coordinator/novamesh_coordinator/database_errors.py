"""What a database raises, as errors of ours: damage is CORRUPT, everything else STORAGE.

Whatever may heal by itself, such as a full disk, is STORAGE and asked again; damage never heals.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from novamesh_coordinator.log_chain import corrupt
from novamesh_proto.errors import Code, NovaMeshError

# What SQLite says of a file that is not as it was written; whatever else it says may heal.
_DAMAGED: Final = (
    "malformed", "not a database", "already exists", "no such", "unsupported file",
    "Could not decode",
)  # fmt: skip


class storage:  # noqa: N801  reads as a statement: with storage("write the log")
    """Turn what the database raises into our errors."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SQLAlchemyError | sqlite3.Error):
            said = str(error.orig if isinstance(error, DBAPIError) else error)
            if any(sign in said for sign in _DAMAGED):
                raise corrupt(f"the database says: {said}") from error
            raise NovaMeshError(
                Code.STORAGE,
                f"cannot {self._doing}: {said}",
                "free space on the coordinator's disk, or mend it; it goes on by itself then",
                retry_after_ms=2_000,
            ) from error
