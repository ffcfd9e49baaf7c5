"""The least value of every message class, built from the type hints that the codec reads."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import IntEnum
from typing import Any, Final

from novamesh_proto import messages, wire
from novamesh_proto.limits import Range, Size
from novamesh_proto.messages import JobBody
from support.message_values import bare

MESSAGES: Final[tuple[type, ...]] = tuple(
    found
    for found in (getattr(messages, name) for name in messages.__all__)
    if isinstance(found, type) and dataclasses.is_dataclass(found)
)


def pb_class(cls: type) -> Any:
    """The protobuf class of a message class."""
    return type(wire.to_pb(least(cls)))


def least(cls: Any) -> Any:
    """The shortest and smallest value that is taken; the first of what there must be one of."""
    hints = typing.get_type_hints(cls, include_extras=True)
    optional = [name for name, hint in hints.items() if _is_optional(hint)]
    chosen = optional[:1] if optional == list(hints) or cls is JobBody else []
    named = [name for name in hints if name not in optional or name in chosen]
    return cls(**{name: _value(hints[name]) for name in named})


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _value(hint: Any) -> Any:
    hint, bounds = bare(hint)
    return _plain(hint, bounds[0] if bounds else None)


def _plain(base: Any, bound: Any) -> Any:
    size = bound.least if isinstance(bound, Size) else 0
    if typing.get_origin(base) is tuple:
        return tuple(_value(typing.get_args(base)[0]) for _ in range(size))
    if dataclasses.is_dataclass(base):
        return least(base)
    if issubclass(base, IntEnum):
        return base(0)
    if base is bytes:
        return bytes(size)
    if base is str:
        return "x" * size
    return base(bound.least if isinstance(bound, Range) else 0)
