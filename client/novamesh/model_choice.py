"""Which of a pool's models a name means. Names are labels that anybody may use; digests are not.

Accepted: a name, `name@digestprefix`, a whole digest as 64 hexadecimal digits, or `sha256:` and a
prefix of it. Rule: a name that fits several digests is refused with all of them, never guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import PoolModel

SHOWN_CHARS: Final = 12  # hexadecimal digits of a digest on a screen
_PREFIX_CHARS_MIN: Final = 6
_SHOWN_MAX: Final = 8


def choose_model(text: str, models: Sequence[PoolModel]) -> PoolModel:
    """The one model that a text means.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND if none fits, CONFLICT if several do, BAD_REQUEST if the
            digest is none.
    """
    name, prefix = _split(text)
    found = [
        model
        for model in models
        if (not name or model.name == name) and model.model_profile.hex().startswith(prefix)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise NovaMeshError(
            Code.CONFLICT,
            f"{len(found)} models of this pool are called {text}",
            "say which one:  " + "  ".join(show(model) for model in found[:_SHOWN_MAX]),
        )
    raise NovaMeshError(
        Code.MODEL_NOT_FOUND, f"the pool serves no model {text!r} now", _suggestion(name, models)
    )


def show(model: PoolModel) -> str:
    """A model as it can be typed: name@digestprefix."""
    return f"{model.name}@{model.model_profile.hex()[:SHOWN_CHARS]}"


def _split(text: str) -> tuple[str, str]:
    """Name and digest prefix of what was typed."""
    name, at, prefix = text.partition("@")
    if not at and (match := re.fullmatch(r"sha256:(.+)|([0-9a-fA-F]{64})", text)):
        name, at, prefix = "", "@", match[1] or match[2]
    prefix = prefix.removeprefix("sha256:").lower()
    if at and not re.fullmatch(rf"[0-9a-f]{{{_PREFIX_CHARS_MIN},64}}", prefix):
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"{text!r} names no digest",
            f"after @ write at least {_PREFIX_CHARS_MIN} hexadecimal digits of it",
        )
    return name, prefix


def _suggestion(name: str, models: Sequence[PoolModel]) -> str:
    names = sorted({model.name for model in models})
    if not names:
        return "no node offers any model; try later, or lend your machine:  novamesh node start"
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else "novamesh pool models    lists what it serves"
