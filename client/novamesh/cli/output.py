"""How commands speak: data on stdout, talk on stderr, both readable without colour.

Rules: what strangers wrote (names, reasons, answers) never reaches a terminal with control
characters in it; tables are cut for nobody, since they are piped; JSON is one document on stdout.
Colour only marks words that are there anyway, and only on a terminal without NO_COLOR.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

GAP: Final = "  "
_KEPT: Final = frozenset("\n\t\u200c\u200d")  # the joiners belong to scripts and emoji
_STYLES: Final = {
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "error": "bold red",
    "hint": "cyan",
    "note": "yellow",
}


def clean(text: str) -> str:
    """Text without what a terminal would obey: control, format and private characters."""
    return "".join(c if c in _KEPT or unicodedata.category(c)[0] != "C" else "�" for c in text)


def say(text: str = "") -> None:
    """One line of talk."""
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


def mark(word: str, text: str, stream: TextIO | None = None) -> None:
    """A line that begins with a marked word: `error: …`, `hint: …`, `note: …`."""
    stream = stream or sys.stderr
    line = Text(f"{word}:", style=_STYLES.get(word, ""))
    line.append(" " + clean(text), style="default")
    _console(stream).print(line)


def complain(message: str, hint: str = "") -> None:
    """How every refusal reads."""
    sys.stdout.flush()
    mark("error", message)
    if hint:
        mark("hint", hint)


def write(text: str) -> None:
    """Data, at once; on a terminal without control characters."""
    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(document: object) -> None:
    """One JSON document; where stdout is not UTF-8, what ASCII lacks is escaped."""
    escaped = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=escaped) + "\n")


def write_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under a header line; numbers stand right."""
    values = [tuple(row) for row in rows]
    table = [[clean(str(cell)) for cell in row] for row in values]
    right = [
        bool(values) and all(isinstance(row[n], int | float) for row in values)
        for n in range(len(header))
    ]
    lines = [list(header), *table]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        sys.stdout.write(GAP.join(cells).rstrip() + "\n")


def write_fields(fields: Mapping[str, object]) -> None:
    """Name and value, a line each."""
    sys.stdout.write(format_fields(fields))


def format_fields(fields: Mapping[str, object], indent: str = "") -> str:
    """Name and value, a line each, values under one another."""
    width = max(map(len, fields), default=0)
    return "".join(
        f"{indent}{name.ljust(width)}{GAP}{clean(str(value))}".rstrip() + "\n"
        for name, value in fields.items()
    )


def write_status(status: str, text: str) -> None:
    """A line of data that begins with ok, warn or fail."""
    line = Text(f"{status:>5}", style=_STYLES.get(status, ""))
    line.append(GAP + clean(text), style="default")
    _console(sys.stdout).print(line)


def moment(ms: int) -> str:
    """A wall clock time as people read it, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def plural(count: int, word: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _console(stream: TextIO) -> Console:
    return Console(file=stream, soft_wrap=True, highlight=False, markup=False, emoji=False)
