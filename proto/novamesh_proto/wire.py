"""The only place that turns protobuf messages into our values and back, with every bound checked.

One generic codec, planned once per message class from its type hints: a field of a dataclass is
the protobuf field of the same name. Rules: a sub-message whose field is not optional must be there;
a class whose fields are all optional sub-messages is a `oneof` and has exactly one of them; unknown
enum values are refused, unknown fields ignored; a bound broken is BAD_REQUEST or TOO_LARGE, naming
message and field, never a value.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import MESSAGE_BYTES_MAX, Range, Size
from novamesh_proto.messages.job import JobBody
from novamesh_proto.v1 import (
    attestation_pb2,
    coordinator_pb2,
    envelope_pb2,
    job_pb2,
    ledger_pb2,
    node_pb2,
)

T = TypeVar("T")
Check = Callable[[Any], None]
Turn = Callable[[Any], Any]

_MODULES: Final = (
    attestation_pb2,
    coordinator_pb2,
    envelope_pb2,
    job_pb2,
    ledger_pb2,
    node_pb2,
)
# Classes that carry a `oneof` beside other fields: its members.
_ONEOFS: Final[dict[type, tuple[str, ...]]] = {JobBody: ("chat", "text", "tokens")}


def encode(message: object) -> bytes:
    """The protobuf bytes of a value. They are signed or sent as they are, never made twice."""
    data = to_pb(message).SerializeToString()
    return cast(bytes, data)


def decode(cls: type[T], data: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> T:
    """The value that some bytes hold.

    Raises:
        NovaMeshError: TOO_LARGE above `bytes_max`, BAD_REQUEST where they are not such a message.
    """
    if len(data) > bytes_max:
        raise NovaMeshError(
            Code.TOO_LARGE, f"{cls.__name__} has {len(data)} bytes, at most {bytes_max} are taken"
        )
    plan = _plan(cast(Any, cls))
    pb = plan.pb_class()
    try:
        pb.ParseFromString(data)
    except DecodeError:
        raise NovaMeshError(Code.BAD_REQUEST, f"these bytes are not a {cls.__name__}") from None
    return cast(T, plan.read(pb))


def to_pb(message: object) -> Any:
    """The protobuf message of a value, for a gRPC call."""
    return _plan(cast(Any, type(message))).write(message)


def from_pb(cls: type[T], pb: Message) -> T:
    """The value of a protobuf message that came with a gRPC call.

    Raises:
        NovaMeshError: BAD_REQUEST or TOO_LARGE, naming the field whose bound is broken.
    """
    return cast(T, _plan(cast(Any, cls)).read(pb))


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """How one field crosses: `read` and `write` turn its value, `check` holds its bound."""

    name: str
    read: Turn | None
    write: Turn | None
    check: Check | None
    optional: bool
    nested: bool
    repeated: bool

    def put(self, pb: Any, value: Any) -> None:
        """Set the field of a protobuf message."""
        if self.check is not None:
            self.check(value)
        if self.nested:
            getattr(pb, self.name).CopyFrom(cast(Turn, self.write)(value))
        elif self.repeated:
            items = value if self.write is None else [self.write(item) for item in value]
            getattr(pb, self.name).extend(items)
        else:
            setattr(pb, self.name, value)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How one class crosses."""

    cls: type
    pb_class: Callable[[], Any]
    fields: tuple[_Field, ...]
    # The same, as reading goes through them: name, whether it may be missing, and is allowed to be,
    # check, read.
    steps: tuple[tuple[str, bool, bool, Check | None, Turn | None], ...]
    oneof: tuple[str, ...]
    members: dict[str, tuple[int, Turn]]  # of a class that is a `oneof` and nothing else

    def read(self, pb: Any) -> Any:
        """Build the value; every bound is checked on the way."""
        if self.members:
            return self._read_one(pb)
        values: list[Any] = []
        for name, may_miss, optional, check, read in self.steps:
            if may_miss and not pb.HasField(name):
                if not optional:
                    raise _refusal(self.cls, name, "is missing")
                values.append(None)
                continue
            value = getattr(pb, name)
            # Before it is built: a megabyte may name half a million empty entries.
            if check is not None:
                check(value)
            values.append(value if read is None else read(value))
        message = self.cls(*values)
        self._check_oneof(message)
        return message

    def _read_one(self, pb: Any) -> Any:
        """The same for a `oneof`: streams are made of these; only what is there is read."""
        given = pb.ListFields()
        if len(given) != 1:
            raise _not_one(self.cls, self.oneof, len(given))
        descriptor, value = given[0]
        at, read = self.members[descriptor.name]
        values: list[Any] = [None] * len(self.fields)
        values[at] = read(value)
        return self.cls(*values)

    def write(self, message: Any) -> Any:
        """Build the protobuf message; we never send what others would refuse."""
        self._check_oneof(message)
        pb = self.pb_class()
        for field in self.fields:
            value = getattr(message, field.name)
            if value is None:
                continue
            try:
                field.put(pb, value)
            except ValueError:  # a number too large for its type, or half a surrogate pair
                raise _refusal(self.cls, field.name, "does not fit its type") from None
        return pb

    def _check_oneof(self, message: Any) -> None:
        if not self.oneof:
            return
        given = len([None for name in self.oneof if getattr(message, name) is not None])
        if given != 1:
            raise _not_one(self.cls, self.oneof, given)


@functools.cache
def _plan(cls: Any) -> _Plan:
    """The plan of a class. Bounded: one entry a message class."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(_field(cls, name, hints[name]) for name in hints)
    steps = tuple((f.name, f.optional or f.nested, f.optional, f.check, f.read) for f in fields)
    oneof, members = _ONEOFS.get(cls, ()), {}
    if fields and all(field.optional for field in fields):
        oneof = tuple(field.name for field in fields)
        members = {field.name: (at, cast(Turn, field.read)) for at, field in enumerate(fields)}
    return _Plan(cls, _pb_class(cls), fields, steps, oneof, members)


def _pb_class(cls: type) -> Callable[[], Any]:
    for module in _MODULES:
        if hasattr(module, cls.__name__):
            return cast(Callable[[], Any], getattr(module, cls.__name__))
    raise TypeError(f"no protobuf message is called {cls.__name__}")


def _field(cls: type, name: str, hint: Any) -> _Field:
    hint, optional = _without_none(hint)
    base, bounds = _without_bounds(hint)
    check = _check(cls, name, base, bounds)
    if typing.get_origin(base) is tuple:
        item, item_bounds = _without_bounds(typing.get_args(base)[0])
        return _repeated(cls, name, item, item_bounds, check)
    if dataclasses.is_dataclass(base):
        plan = _plan(cast(Any, base))
        return _Field(name, plan.read, plan.write, None, optional, nested=True, repeated=False)
    read = _enum_reader(cls, name, base) if _is_enum(base) else None
    return _Field(name, read, None, check, optional, nested=False, repeated=False)


def _repeated(cls: type, name: str, item: Any, bounds: list[Any], check: Check | None) -> _Field:
    if dataclasses.is_dataclass(item):
        plan = _plan(cast(Any, item))
        return _Field(
            name, _each(plan.read), plan.write, check, optional=False, nested=False, repeated=True
        )
    item_check = _check(cls, name, item, bounds)
    assert check is not None, f"{cls.__name__}.{name} is a list without a bound"

    def both(values: Any) -> None:
        check(values)
        if item_check is not None:
            for value in values:
                item_check(value)

    return _Field(name, tuple, None, both, optional=False, nested=False, repeated=True)


def _each(read: Turn) -> Turn:
    return lambda values: tuple(read(value) for value in values)


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return rest[0], True
    return hint, False


def _without_bounds(hint: Any) -> tuple[Any, list[Any]]:
    """The bare type below any Annotated and NewType, and the bounds met on the way."""
    bounds: list[Any] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint, *extras = typing.get_args(hint)
            bounds += extras
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint, bounds


def _is_enum(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, IntEnum)


def _enum_reader(cls: type, name: str, base: Any) -> Turn:
    def read(value: Any) -> Any:
        try:
            return base(value)
        except ValueError:
            raise _refusal(cls, name, "has an unknown value") from None

    return read


def _check(cls: type, name: str, base: Any, bounds: list[Any]) -> Check | None:
    """What holds a field's bounds; the messages name the field, never its value."""
    if not bounds:
        return None
    bound = bounds[0]
    if isinstance(bound, Size):
        return _size_check(cls, name, base is str, bound)
    return _range_check(cls, name, bound)


def _size_check(cls: type, name: str, text: bool, bound: Size) -> Check:
    def check(value: Any) -> None:
        length = len(value.encode()) if text else len(value)
        if bound.least <= length <= bound.greatest or (bound.or_empty and not length):
            return
        problem = f"has size {length}, allowed is {bound.least} to {bound.greatest}"
        # Where only one size is right, another is not large but wrong.
        too_large = length > bound.greatest > bound.least
        code = Code.TOO_LARGE if too_large else Code.BAD_REQUEST
        raise NovaMeshError(code, f"{cls.__name__}.{name} {problem}")

    return check


def _range_check(cls: type, name: str, bound: Range) -> Check:
    def check(value: Any) -> None:
        if not bound.least <= value <= bound.greatest:
            raise _refusal(cls, name, f"is outside {bound.least} to {bound.greatest}")

    return check


def _not_one(cls: type, oneof: tuple[str, ...], given: int) -> NovaMeshError:
    return _refusal(cls, "/".join(oneof), f"needs exactly one, has {given}")


def _refusal(cls: type, name: str, problem: str) -> NovaMeshError:
    return NovaMeshError(Code.BAD_REQUEST, f"{cls.__name__}.{name} {problem}")
