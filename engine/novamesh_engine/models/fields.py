"""Checked reading of a raw config: every field by name, type and range, every refusal with both.

Rules: nothing is guessed from a wrong value; the error names the file and the field and says what
was wanted. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from novamesh_engine.files import AGAIN
from novamesh_proto.errors import Code, NovaMeshError


@dataclass(frozen=True, slots=True)
class Fields:
    """One raw config, or an object inside it, under inspection; `source` names it in errors."""

    raw: Mapping[str, Any]
    source: str
    hint: str  # what to do about a feature that we do not run

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.raw.get(name) is not None

    def inside(self, name: str) -> Fields | None:
        """An object inside this one, if it is there and not empty."""
        value = self.raw.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.corrupt(name, value, "an object")
        return Fields(value, f"{self.source}: {name}", self.hint)

    def whole(self, names: tuple[str, ...], low: int, high: int, default: int | None = None) -> int:
        """A whole number within [low, high], under the first of several names that is there."""
        name = next((name for name in names if self.has(name)), names[0])
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.corrupt(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A number above `low`, at most `high`."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_number(value) or not low < value <= high:
            raise self.corrupt(name, value, f"a number above {low:g}, at most {high:g}")
        return float(value)

    def share(self, name: str, default: float) -> float:
        """A number within [0, 1]."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_number(value) or not 0 <= value <= 1:
            raise self.corrupt(name, value, "a number from 0 to 1")
        return float(value)

    def numbers(self, name: str, count_max: int) -> tuple[float, ...]:
        """A list of positive numbers."""
        value = self.raw.get(name)
        if not isinstance(value, list) or not 0 < len(value) <= count_max:
            raise self.corrupt(name, value, "a list of numbers")
        if not all(_is_number(item) and 0 < item <= 1e9 for item in value):
            raise self.corrupt(name, value, "a list of numbers above 0, at most 1e+09")
        return tuple(float(item) for item in value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; null is the default."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.corrupt(name, value, "true or false")
        return value

    def indices(self, name: str, below: int) -> frozenset[int]:
        """A list of whole numbers from 0, or one of them; null is none."""
        value = self.raw.get(name)
        found = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        if not all(type(item) is int and 0 <= item < below for item in found):
            raise self.corrupt(name, value, f"whole numbers from 0, below {below}")
        return frozenset(found)

    def token_ids(self, name: str, vocab: int) -> tuple[int, ...]:
        """One token id or a list of them, in the order of the file."""
        value = self.raw.get(name)
        ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        if not all(type(token) is int and 0 <= token < vocab for token in ids):
            raise self.corrupt(name, value, f"token ids below {vocab}")
        return ids

    def only(self, known: frozenset[str]) -> None:
        """Refuse any other field: what we do not know could change the result."""
        for name in self.raw:
            if name not in known:
                raise self.unsupported(name, self.raw[name], "absent")

    def corrupt(self, name: str, value: object, wanted: str) -> NovaMeshError:
        """The error for a value that no model of any kind has."""
        shown = "is missing" if value is None else f"is {_show(value)}"
        return NovaMeshError(Code.CORRUPT, f"{self.source}: {name} {shown}, not {wanted}", AGAIN)

    def unsupported(self, name: str, value: object, wanted: str) -> NovaMeshError:
        """The error for a feature that we do not run."""
        what = f"{self.source}: {name} is {_show(value)}, not {wanted}"
        return NovaMeshError(Code.UNSUPPORTED, what, self.hint)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: object) -> str:
    return json.dumps(value, default=str)[:80]
