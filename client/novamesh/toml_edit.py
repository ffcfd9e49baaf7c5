"""Change one value of a TOML text and leave every other byte, comments included, as it was.

Covers what our own configuration holds: tables at the top level with values of one line. Rule: the
result is parsed and compared, so an edit either says what was asked or is refused. It is no general
TOML writer.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from novamesh_proto.errors import Code, NovaMeshError

Value = str | int | float | bool


def set_value(text: str, table: str, key: str, value: Value) -> str:
    """The text with `key = value` in `[table]`, replaced where it was, else added.

    Raises:
        NovaMeshError: BAD_CONFIG if the text is not TOML or lays the table out in another way.
    """
    expected = _parse(text)
    expected.setdefault(table, {})[key] = value
    lines = text.removesuffix("\n").split("\n") if text else []
    start, end = _find_table(lines, table)
    line = f"{key} = {_literal(value)}"
    if start is None:
        lines += [""] * bool(lines) + [f"[{table}]", line]
    else:
        at = _find_key(lines, start, end, key)
        if at is None:
            last = max(n for n in range(start, end) if n == start or lines[n].strip())
            lines.insert(last + 1, line)
        else:
            lines[at] = line
    return _checked("\n".join(lines) + "\n", expected, f"{table}.{key}")


def remove_table(text: str, table: str) -> str:
    """The text without `[table]`.

    Raises:
        NovaMeshError: BAD_CONFIG as `set_value`.
    """
    expected = _parse(text)
    expected.pop(table, None)
    lines = text.removesuffix("\n").split("\n") if text else []
    start, end = _find_table(lines, table)
    if start is not None:
        del lines[start:end]
    rest = "\n".join(lines).strip("\n")
    return _checked(rest + "\n" if rest else "", expected, table)


def _find_table(lines: list[str], table: str) -> tuple[int | None, int]:
    """First line of a table and the line after its last."""
    start: int | None = None
    for number, line in enumerate(lines):
        header = re.match(r"\s*\[", line)
        if start is None and re.match(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?$", line):
            start = number
        elif start is not None and header:
            return start, number
    return start, len(lines)


def _find_key(lines: list[str], start: int, end: int, key: str) -> int | None:
    for number in range(start + 1, end):
        if re.match(rf"\s*{re.escape(key)}\s*=", lines[number]):
            return number
    return None


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"the configuration is not TOML: {error}", "novamesh config path"
        ) from None


def _checked(text: str, expected: dict[str, Any], what: str) -> str:
    try:
        right = tomllib.loads(text) == expected
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"the configuration is laid out so that {what} cannot be changed by program",
            "edit it by hand:  novamesh config path",
        )
    return text
