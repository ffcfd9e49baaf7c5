"""Hypothesis strategies for every message, built from the type hints that the codec reads.

`values(cls)` draws instances that keep every stated bound, edges included; a number without a
stated range stays within 32 bits. Nothing here knows a single message by name but JobBody, whose
one-of stands beside other fields.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from enum import IntEnum
from typing import Any, cast

from hypothesis import strategies as st

from novamesh_proto import messages
from novamesh_proto.limits import Range, Size
from novamesh_proto.messages import JobBody

ALL: tuple[type, ...] = tuple(
    cls for cls in (getattr(messages, name) for name in messages.__all__) if isinstance(cls, type)
)
MESSAGES = tuple(cls for cls in ALL if dataclasses.is_dataclass(cls))
SIGNED = tuple(cls for cls in MESSAGES if "header" in {f.name for f in dataclasses.fields(cls)})

_MORE_BYTES = 24  # how far above the least size a drawn value goes
_MORE_ENTRIES = 2
_UINT32_MAX = 2**32 - 1
_PROMPTS = ("chat", "text", "tokens")


@functools.cache
def values(cls: Any) -> st.SearchStrategy[Any]:
    """Instances of a message class."""
    hints = typing.get_type_hints(cls, include_extras=True)
    optional = {name for name, hint in hints.items() if _is_optional(hint)}
    if hints and optional == set(hints):
        return st.one_of([_with(cls, hints, {name}) for name in hints])
    if cls is JobBody:
        return st.one_of([_with(cls, hints, (set(hints) - set(_PROMPTS)) | {n}) for n in _PROMPTS])
    return _with(cls, hints, set(hints))


def _with(cls: Any, hints: dict[str, Any], names: set[str]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{name: _field(hints[name]) for name in names})


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def bare(hint: Any) -> tuple[Any, list[Any]]:
    """The type below None, Annotated and NewType, and the bounds met on the way."""
    if _is_optional(hint):
        hint = typing.get_args(hint)[0]
    bounds: list[Any] = []
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint, *extras = typing.get_args(hint)
            bounds += extras
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint, bounds


def _field(hint: Any) -> st.SearchStrategy[Any]:
    hint, bounds = bare(hint)
    drawn = _plain(hint, bounds[0] if bounds else None)
    empty = bounds and isinstance(bounds[0], Size) and bounds[0].or_empty
    return st.one_of(st.just(hint()), drawn) if empty else drawn


def _plain(base: Any, bound: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(base) is tuple:
        item = _field(typing.get_args(base)[0])
        most = min(bound.greatest, bound.least + _MORE_ENTRIES)
        return st.lists(item, min_size=bound.least, max_size=most).map(tuple)
    if dataclasses.is_dataclass(base):
        return st.deferred(lambda: values(cast(Any, base)))
    if issubclass(base, IntEnum):
        return st.sampled_from(list(base))
    if base is bool:
        return st.booleans()
    if base is int:
        edges = bound or Range(0, _UINT32_MAX)
        return st.integers(int(edges.least), int(edges.greatest))
    if base is float:
        return st.floats(bound.least, bound.greatest, allow_nan=False)
    most = min(bound.greatest, bound.least + _MORE_BYTES)
    if base is bytes:
        return st.binary(min_size=bound.least, max_size=most)
    assert base is str, base
    return st.text(min_size=bound.least, max_size=most).filter(
        lambda text: bound.least <= len(text.encode()) <= bound.greatest
    )
