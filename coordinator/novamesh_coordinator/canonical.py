"""Frozen dataclasses as canonical JSON bytes: how events, snapshots and dumps are written down.

The same value always gives the same bytes: fields in the order they are declared, no white space,
bytes as base64, enums as their values. Read back by type: what does not fit is CORRUPT, never
guessed. A field that is absent takes its default, so a newer version reads an older log; a field
that is unknown is refused, so an older version never drops what it does not understand.

Only for bytes that we wrote ourselves; nothing that came over a wire is read here.
"""

from __future__ import annotations

import binascii
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar, cast

from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")
_Turn = Callable[[Any], Any]
_PLAIN: Final = (int, str, bool, float)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How one class is written and read: (name, write, read, whether it has a default)."""

    cls: type
    fields: tuple[tuple[str, _Turn | None, _Turn | None, bool], ...]
    names: tuple[str, ...]
    reads: tuple[_Turn | None, ...]

    def write(self, value: Any) -> dict[str, Any]:
        made = {}
        for name, write, _, _ in self.fields:
            field = getattr(value, name)
            made[name] = field if write is None else write(field)
        return made

    def read(self, data: Any) -> Any:
        if tuple(data) == self.names:  # as this version writes it: a long log has many of these
            turned = zip(self.reads, data.values(), strict=True)
            return self.cls(*[value if read is None else read(value) for read, value in turned])
        values = {}
        for name, _, read, optional in self.fields:
            if name in data:
                values[name] = data[name] if read is None else read(data[name])
            elif not optional:
                raise ValueError(f"{self.cls.__name__}.{name} is missing")
        if len(values) != len(data):
            unknown = sorted(set(data) - set(values))
            raise ValueError(f"{self.cls.__name__} has unknown fields {unknown}")
        return self.cls(**values)


def encode(value: object) -> bytes:
    """The canonical bytes of a frozen dataclass."""
    tree = _plan(cast(Any, type(value))).write(value)
    return json.dumps(tree, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def decode(cls: type[T], data: bytes) -> T:
    """The value that `encode` wrote.

    Raises:
        NovaMeshError: CORRUPT if these are not the bytes of such a value.
    """
    try:
        return cast(T, _plan(cast(Any, cls)).read(json.loads(data)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NovaMeshError(
            Code.CORRUPT,
            f"a stored {cls.__name__} does not read: {error}",
            "restore the coordinator's folder from a backup",
        ) from error


@functools.cache
def _plan(cls: Any) -> _Plan:
    """The plan of a class. Bounded: one entry a class."""
    hints = typing.get_type_hints(cls)
    fields = []
    for field in dataclasses.fields(cls):
        write, read = _turns(hints[field.name])
        optional = field.default is not dataclasses.MISSING
        fields.append((field.name, write, read, optional))
    names, _, reads, _ = zip(*fields, strict=True)
    return _Plan(cls, tuple(fields), names, reads)


def _turns(hint: Any) -> tuple[_Turn | None, _Turn | None]:
    """How a value of a type is written and read; None where JSON has it already."""
    hint = _bare(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return _maybe(_turns(inner))
    if origin is tuple:
        return _tuple_turns(typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        plan = _plan(cast(Any, hint))
        return plan.write, plan.read
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (lambda value: value.value), hint._value2member_map_.__getitem__
    if hint is bytes:
        return _write_bytes, _read_bytes
    if hint in _PLAIN:
        return None, None
    raise TypeError(f"{hint} has no canonical form")


def _bare(hint: Any) -> Any:
    """The type below a NewType; what hints are annotated with was left out when they were read."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    return hint


def _maybe(turns: tuple[_Turn | None, _Turn | None]) -> tuple[_Turn | None, _Turn | None]:
    write, read = turns
    return (
        None if write is None else lambda value: None if value is None else write(value),
        None if read is None else lambda value: None if value is None else read(value),
    )


def _tuple_turns(args: tuple[Any, ...]) -> tuple[_Turn, _Turn]:
    if len(args) == 2 and args[1] is Ellipsis:
        write, read = _turns(args[0])
        return (
            list if write is None else lambda values: [write(value) for value in values],
            tuple if read is None else lambda values: tuple(read(value) for value in values),
        )
    turns = [_turns(arg) for arg in args]
    return (
        lambda values: [_turn(w, v) for (w, _), v in zip(turns, values, strict=True)],
        lambda values: tuple(_turn(r, v) for (_, r), v in zip(turns, values, strict=True)),
    )


def _turn(turn: _Turn | None, value: Any) -> Any:
    return value if turn is None else turn(value)


def _write_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


_read_bytes: Final = functools.partial(binascii.a2b_base64, strict_mode=True)
