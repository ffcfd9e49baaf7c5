"""One edit to JSON: a key gone, another name, a number that nobody would write, a list too long.

Written in the form that model manifests have, so that they are looked at and not only their form.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**40, 1.5, 1e308, "", "x", "../up", "/etc/passwd",
    "a\x00b", "\ud800", [], [0], {}, {"a": 1}, [[[[[[]]]]]],
)  # fmt: skip
TIMES: Final = (2, 9, 300)

Place = tuple[Any, Any]  # a list or an object, and the key in it


def edit(data: bytes, rng: random.Random) -> bytes:
    """The text with one edit; as it was where it is no JSON."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(found))
    if places:
        holder, key = rng.choice(places)
        match rng.choice(("drop", "value", "value", "swap", "rename", "repeat", "near")):
            case "drop":
                del holder[key]
            case "value":
                holder[key] = rng.choice(VALUES)
            case "swap":
                other, place = rng.choice(places)
                holder[key] = json.loads(json.dumps(other[place]))
            case "rename" if isinstance(holder, dict):
                holder[rng.choice(("", "x", "../x", key.upper(), key * 40))] = holder.pop(key)
            case "repeat" if isinstance(holder, list):
                holder[key:key] = [holder[key]] * rng.choice(TIMES)
            case "near" if isinstance(holder[key], int):
                holder[key] += rng.choice((-1, 1, 8, 64))
    # As json.dumps writes it, but for what is no text at all: that stays as it is.
    return json.dumps(found, indent=2, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n"


def _places(value: Any) -> list[Place]:
    """Every key of every list and object."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 100)))
    else:
        return []
    below = [place for key in keys for place in _places(value[key])]
    return [(value, key) for key in keys] + below
