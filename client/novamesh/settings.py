"""Layered settings for any part: flag, then environment, then file, then default.

A part describes its settings as one frozen dataclass whose fields are made by `option`; `resolve`
builds it. Rules: an unknown key is an error that names the nearest known one, a value out of range
is an error that names where it came from, and nothing is read from anywhere but the arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")
Value = str | int | float | bool

ENV_PREFIX: Final = "NOVAMESH_"
_METADATA: Final = "novamesh"
_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Option:
    """What one setting means: its reason, unit and range."""

    help: str
    unit: str = ""
    least: float | None = None
    greatest: float | None = None


def option(
    default: Value,
    help: str,
    *,
    unit: str = "",
    least: float | None = None,
    greatest: float | None = None,
) -> Any:
    """A dataclass field that is a setting. Its type is the default's type."""
    described = Option(help, unit, least, greatest)
    return dataclasses.field(default=default, metadata={_METADATA: described})


def describe(cls: type) -> dict[str, Option]:
    """Every setting of a class by key, in order."""
    fields = dataclasses.fields(cls)
    return {f.name: f.metadata[_METADATA] for f in fields if _METADATA in f.metadata}


def variable(section: str, key: str) -> str:
    """Environment variable of a setting: NOVAMESH_CLIENT_DEADLINE_S."""
    return f"{ENV_PREFIX}{section}_{key}".upper()


def resolve(
    cls: type[T],
    section: str,
    *,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    table: Mapping[str, object] | None = None,
    file: str = "config.toml",
) -> T:
    """Build the settings of one section.

    Args:
        cls: A frozen dataclass; its fields made by `option` are the keys.
        section: The table of the file and the middle of the environment variables.
        flags: What the command line said; None means that it said nothing.
        env: The environment.
        table: The section of the file.
        file: What to call the file in errors.

    Raises:
        NovaMeshError: BAD_CONFIG, naming key and source, or BAD_REQUEST for a flag.
    """
    types = typing.get_type_hints(cls)
    options = describe(cls)
    values: dict[str, Value] = {}
    for key, value in (table or {}).items():
        _check_known(key, options, f"[{section}] in {file}")
        values[key] = _convert(value, types[key], options[key], f"{section}.{key} in {file}")
    prefix = variable(section, "")
    for name in env or {}:
        if name.startswith(prefix):
            _check_known(name.removeprefix(prefix).lower(), options, f"environment ({name})")
            key = name.removeprefix(prefix).lower()
            values[key] = _convert((env or {})[name], types[key], options[key], name)
    for key, value in (flags or {}).items():
        if value is not None:
            flag = f"--{key.replace('_', '-')}"
            values[key] = _convert(value, types[key], options[key], flag, Code.BAD_REQUEST)
    return cls(**values)


def parse(cls: type, section: str, key: str, text: str) -> Value:
    """The value of one setting as text says it, for `config set`.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    options = describe(cls)
    _check_known(key, options, f"section {section}")
    return _convert(text, typing.get_type_hints(cls)[key], options[key], f"{section}.{key}")


def unknown(key: str, known: Iterable[str], where: str) -> NovaMeshError:
    """The error for a key that means nothing, with the nearest that does."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
    return NovaMeshError(Code.BAD_CONFIG, f"unknown key {key!r} in {where}", hint)


def _check_known(key: str, known: Iterable[str], where: str) -> None:
    if key not in known:
        raise unknown(key, known, where)


def _convert(
    value: object, kind: type, option: Option, source: str, code: Code = Code.BAD_CONFIG
) -> Value:
    """The value in its type and range; text is read as the environment gives it."""
    try:
        turned = _turn(value, kind)
    except ValueError:
        raise NovaMeshError(
            code, f"{source} is {value!r}", f"expected {_expected(kind, option)}"
        ) from None
    if isinstance(turned, bool):
        return turned
    size: float = len(turned) if isinstance(turned, str) else turned
    least = float("-inf") if option.least is None else option.least
    greatest = float("inf") if option.greatest is None else option.greatest
    if not least <= size <= greatest:
        raise NovaMeshError(code, f"{source} is {value!r}", f"expected {_expected(kind, option)}")
    return turned


def _turn(value: object, kind: type) -> Value:
    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise ValueError
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    if kind is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    if kind is int:
        if isinstance(value, float):
            raise ValueError
        return int(value)
    return float(value)


def _expected(kind: type, option: Option) -> str:
    name = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    unit = f" of {option.unit}" if option.unit else ""
    if option.least is not None and option.greatest is not None:
        length = " characters" if kind is str else ""
        return f"{name}{unit} from {option.least:.12g} to {option.greatest:.12g}{length}"
    return f"{name}{unit}"
