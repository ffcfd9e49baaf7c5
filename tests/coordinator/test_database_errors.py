"""Damage is told from what may heal."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import InvalidRequestError, OperationalError

from novamesh_coordinator.database_errors import storage
from novamesh_proto.errors import Code, NovaMeshError


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("database disk image is malformed", Code.CORRUPT),
        ("file is not a database", Code.CORRUPT),
        ("Could not decode to UTF-8 column 'kind'", Code.CORRUPT),
        ("no such table: events", Code.CORRUPT),
        ("database or disk is full", Code.STORAGE),
        ("disk I/O error", Code.STORAGE),
        ("database is locked", Code.STORAGE),
    ],
)
def test_what_sqlite_says_has_a_code(said: str, code: Code) -> None:
    sign = said.split(":")[0].split("'")[0]
    with pytest.raises(NovaMeshError, match=sign) as raised, storage("write"):
        raise OperationalError("insert", {}, sqlite3.OperationalError(said))
    assert raised.value.code is code
    assert raised.value.hint


def test_other_errors_of_the_database_may_heal() -> None:
    with pytest.raises(NovaMeshError) as raised, storage("write"):
        raise InvalidRequestError("closed")
    assert raised.value.code is Code.STORAGE


def test_bugs_stay_bugs() -> None:
    with pytest.raises(ZeroDivisionError), storage("write"):
        raise ZeroDivisionError
