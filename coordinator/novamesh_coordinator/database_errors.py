"""What a database raises, as errors of ours: damage is CORRUPT, everything else STORAGE.

SQLite tells damage by its words, PostgreSQL by its SQLSTATE.

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
# Damaged data, damaged index, a table or a column that is gone.
_DAMAGED_STATES: Final = ("XX001", "XX002", "42P01", "42703")
_HINTS: Final = {
    False: "free space on the coordinator's disk, or mend it; it goes on by itself then",
    True: "is PostgreSQL running, and may this user use the database?  it goes on by itself then",
}


class storage:  # noqa: N801  reads as a statement: with storage("write the log")
    """Turn what the database raises into our errors."""

    def __init__(self, doing: str, *, server: bool = False) -> None:
        self._doing = doing
        self._server = server

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SQLAlchemyError | sqlite3.Error):
            cause = error.orig if isinstance(error, DBAPIError) else error
            said = " ".join(str(cause).split())
            state = getattr(cause, "sqlstate", None)
            words = () if self._server else _DAMAGED
            if state in _DAMAGED_STATES or any(sign in said for sign in words):
                raise corrupt(f"the database says: {said}") from error
            raise NovaMeshError(
                Code.STORAGE,
                f"cannot {self._doing}: {said}",
                _HINTS[self._server],
                retry_after_ms=2_000,
            ) from error
