"""Golden vectors: tests/vectors/<family>/<table>.json, one scenario an entry.

An entry has `name`, `expect` ("ok" or the error code it must be refused with), `comment`, and the
fields of its table, bytes as hex. Tests take them as parameters: `@golden("tls/libp2p")`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from novamesh_proto.errors import NovaMeshError

ROOT = Path(__file__).parent.parent / "vectors"
OK = "ok"


@dataclass(frozen=True, slots=True)
class Vector:
    """One scenario of a table."""

    name: str
    expect: str
    comment: str
    fields: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it must pass."""
        return self.expect == OK

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    def data(self, field: str) -> bytes:
        """A field of bytes; empty where the scenario does not have it."""
        return bytes.fromhex(self.fields.get(field, ""))

    @contextmanager
    def verdict(self) -> Iterator[None]:
        """What runs inside must pass, or be refused with the code that is expected."""
        if self.ok:
            yield
            return
        with pytest.raises(NovaMeshError) as caught:
            yield
        assert caught.value.code.value == self.expect, caught.value.message


def load(table: str) -> tuple[Vector, ...]:
    """All scenarios of a table, such as "identity/keys"."""
    entries = json.loads((ROOT / f"{table}.json").read_text())["scenarios"]
    return tuple(
        Vector(entry.pop("name"), entry.pop("expect"), entry.pop("comment"), entry)
        for entry in entries
    )


def golden(*tables: str) -> pytest.MarkDecorator:
    """Run a test once for each scenario of some tables, as its parameter `vector`."""
    vectors = [vector for table in tables for vector in load(table)]
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector.name)
