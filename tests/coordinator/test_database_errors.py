"""Damage is told from what may heal."""

from __future__ import annotations

import sqlite3

import psycopg
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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (psycopg.errors.DataCorrupted("invalid page in block 7"), Code.CORRUPT),
        (psycopg.errors.UndefinedTable('relation "events" does not exist'), Code.CORRUPT),
        (psycopg.errors.UniqueViolation("Key (seq)=(5) already exists."), Code.STORAGE),
        (psycopg.errors.DiskFull("could not extend file"), Code.STORAGE),
        (psycopg.OperationalError("the server closed the connection"), Code.STORAGE),
    ],
)
def test_what_postgresql_says_has_a_code(error: psycopg.Error, code: Code) -> None:
    with pytest.raises(NovaMeshError) as raised, storage("write", server=True):
        raise OperationalError("insert", {}, error)
    assert raised.value.code is code
    assert raised.value.hint
