"""`python -m novamesh.cli.reference`: docs/cli.md, made from the commands themselves.

The page holds what `--help` says of every command of every part, every setting of every part, and
the exit statuses of the one table of errors. A test compares it with docs/cli.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from novamesh import settings
from novamesh.cli import app
from novamesh.cli.config import sections
from novamesh_proto.errors import MEANINGS

_TABLE: Final = ("| key | environment | default | meaning |", "| --- | --- | --- | --- |")
_FIELD: Final = re.compile(r"(?m)^ +(\w+): \w+ = [^#\n]+# (.+)$")


def reference() -> str:
    """The whole page."""
    commands = app.generate_docs(heading_level=2, usage_name="novamesh")
    return "\n".join((*_introduction(), *_statuses(), *_settings(), _tidy(commands)))


def _introduction() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield "Made by `make docs` from the commands themselves; a test keeps it fresh. Data goes to"
    yield "stdout, talk to stderr; reading commands take `--json`; `NO_COLOR` is obeyed. A refusal"
    yield "reads `error: …` and, where something can be done, `hint: …`."
    yield ""


def _statuses() -> Iterator[str]:
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code, meaning in MEANINGS.items():
        by_status[meaning.exit].append(code.value)
    yield "## Exit statuses"
    yield ""
    yield "| status | codes |"
    yield "| --- | --- |"
    yield "| 0 | done |"
    for status in sorted(by_status):
        yield f"| {status} | {', '.join(by_status[status])} |"
    yield ""


def _settings() -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield "A flag wins over the environment, that over the file, that over the default. Unknown"
    yield "keys are errors. Client, pool and node share one `config.toml`: it is where"
    yield "`novamesh config path` says, or in the folder `NOVAMESH_HOME`, with a table a part;"
    yield "`novamesh config show` and `config set` read and write it."
    yield ""
    for section, cls in sections().items():
        yield f"### Settings of a {section}: `[{section}]` in config.toml"
        yield ""
        yield from _TABLE
        holder = cls()
        for key, option in settings.describe(cls).items():
            name = settings.variable(section, key)
            meaning = f"{option.help} ({option.unit})" if option.unit else option.help
            yield _row(f"{section}.{key}", name, getattr(holder, key), meaning)
        yield ""
    yield from _coordinator_settings()


def _coordinator_settings() -> Iterator[str]:
    """The coordinator knows no `option`: there the comment behind a field is its meaning."""
    module = importlib.import_module("novamesh_coordinator.config")
    holder = module.CoordinatorConfig()
    yield "### Settings of a coordinator: coordinator/config.toml"
    yield ""
    yield "In the folder `coordinator` below `NOVAMESH_HOME`, or below the platform's data folder;"
    yield "no tables. `novamesh coordinator init` writes it."
    yield ""
    yield from _TABLE
    meanings = dict(_FIELD.findall(inspect.getsource(type(holder))))
    for field in dataclasses.fields(holder):
        name = f"{module.PREFIX}{field.name}".upper()
        yield _row(field.name, name, getattr(holder, field.name), meanings[field.name])
    yield ""


def _row(key: str, variable: str, default: object, meaning: str) -> str:
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"| {key} | {variable} | {shown} | {meaning} |".replace("|  |", "| |")


def _tidy(markdown: str) -> str:
    """One blank line between blocks, one newline at the end, and commands as they are typed."""
    typed = re.sub(
        r"(?m)^(novamesh .*?) -m [\w.]+", r"\1", markdown
    )  # how this process was started
    return re.sub(r"\n{3,}", "\n\n", typed).strip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
