"""compose.yaml and the Dockerfile, as tests read them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ruamel.yaml import YAML

ROOT: Final = Path(__file__).parent.parent.parent
TEXT: Final = (ROOT / "compose.yaml").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()
COMPOSE: Final[dict[str, Any]] = json.loads(json.dumps(YAML(typ="safe", pure=True).load(TEXT)))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]


@dataclass(frozen=True)
class Stage:
    """A target of the Dockerfile: the image it begins from, and its instructions in order."""

    base: str
    steps: tuple[tuple[str, str], ...]


def read_stages(text: str) -> dict[str, Stage]:
    """Every stage of a Dockerfile by its name."""
    plain = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    for line in filter(None, plain.splitlines()):
        verb, _, words = line.partition(" ")
        if verb == "FROM":
            base, _, name = words.partition(" AS ")
            stages[name] = Stage(base, ())
        else:
            stages[name] = Stage(stages[name].base, (*stages[name].steps, (verb, words.strip())))
    return stages


STAGES: Final = read_stages(DOCKERFILE)


def fill_in(text: str, given: Mapping[str, str]) -> str:
    """What compose makes of ${NAME:-otherwise} and ${NAME:+instead}."""

    def value(found: re.Match[str]) -> str:
        name, sign, words = found.groups()
        return given.get(name) or words if sign == "-" else words if given.get(name) else ""

    filled = re.sub(r"\$\{(\w+):([-+])([^}]*)\}", value, text)
    assert "$" not in filled
    return filled


def secret_files(folder: Path, given: Mapping[str, str] = MappingProxyType({})) -> dict[str, Path]:
    """Each secret's file, where deploy/secrets is that folder."""
    named = {name: fill_in(each["file"], given) for name, each in COMPOSE["secrets"].items()}
    inside = "deploy/secrets/"
    return {
        name: folder / file.removeprefix(inside) if file.startswith(inside) else Path(file)
        for name, file in named.items()
    }
