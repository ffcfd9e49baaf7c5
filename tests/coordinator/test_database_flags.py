"""The flags about the database are settings of the coordinator, and unset where not given."""

from __future__ import annotations

from dataclasses import fields

from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.database_flags import USUAL, DatabaseFlags


def test_each_flag_is_a_setting() -> None:
    assert set(USUAL.flags()) <= {one.name for one in fields(CoordinatorConfig)}
    assert set(USUAL.flags().values()) == {None}


def test_what_was_given_is_passed_on() -> None:
    given = DatabaseFlags("postgresql+psycopg://h/d", "secret")
    assert given.flags() == {
        "database": "postgresql+psycopg://h/d",
        "database_password_file": "secret",
    }
