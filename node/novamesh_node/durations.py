"""Spans of time as people type and read them: 2h, 1h30m, 45m, 90s, 1d.

Rule: what is not understood is refused with an example, never guessed.
"""

from __future__ import annotations

import re
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PATTERN: Final = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,7})s)?")


def parse_duration(text: str) -> int:
    """Seconds of a span such as 1h30m; whole numbers, largest unit first.

    Raises:
        NovaMeshError: BAD_REQUEST.
    """
    found = _PATTERN.fullmatch(text.strip().lower())
    parts = found.groups() if found else ()
    seconds = sum(int(n or 0) * unit for n, unit in zip(parts, SECONDS.values(), strict=False))
    if not seconds:
        raise NovaMeshError(
            Code.BAD_REQUEST, f"{text[:40]!r} is no span of time", "write 2h, 45m, 1h30m or 1d"
        )
    return seconds


def format_duration(seconds: int) -> str:
    """The two largest units of a span: 3 h 12 m."""
    parts = []
    for unit, size in SECONDS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
