"""Reading one field at a time: ranges, defaults, and errors that name file and field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from novamesh_engine.models.fields import Fields
from novamesh_proto.errors import Code, NovaMeshError


def fields(**raw: Any) -> Fields:
    return Fields(raw, "config.json", "novamesh runs some models")


def test_what_is_there_is_read_and_null_is_absent() -> None:
    found = fields(a=3, b=None, c=[1, 2.5], d=True, e={"f": 0.5}, g=7)
    assert found.whole(("b", "a"), 1, 5) == 3
    assert found.whole(("b",), 1, 5, default=4) == 4
    assert found.numbers("c", 2) == (1.0, 2.5)
    assert found.flag("d", False)
    assert found.flag("b", True)
    assert found.indices("g", 8) == {7}
    assert found.token_ids("b", 8) == ()
    inner = found.inside("e")
    assert inner is not None
    assert inner.share("f", 0.0) == inner.number("f", 0, 1) == 0.5
    assert found.inside("b") is None
    assert not found.has("b")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda f: f.whole(("a",), 1, 5), "a is true, not a whole number from 1 to 5"),
        (lambda f: f.number("z", 0, 1), "z is missing, not a number above 0, at most 1"),
        (lambda f: f.share("b", 0.0), "b is 1.5, not a number from 0 to 1"),
        (lambda f: f.numbers("c", 4), 'c is [1, "x"], not a list of numbers'),
        (lambda f: f.numbers("c", 1), "c is"),
        (lambda f: f.indices("b", 4), "b is 1.5, not whole numbers from 0, below 4"),
        (lambda f: f.inside("b"), "b is 1.5, not an object"),
    ],
)
def test_a_wrong_value_is_named(read: Callable[[Fields], Any], words: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        read(fields(a=True, b=1.5, c=[1, "x"]))
    assert caught.value.code is Code.CORRUPT
    assert caught.value.message.startswith(f"config.json: {words}")


def test_what_is_not_known_is_refused() -> None:
    known = fields(a=1)
    known.only(frozenset({"a", "b"}))
    with pytest.raises(NovaMeshError, match="a is 1, not absent") as caught:
        known.only(frozenset({"b"}))
    assert caught.value.code is Code.UNSUPPORTED
    assert caught.value.hint == "novamesh runs some models"
