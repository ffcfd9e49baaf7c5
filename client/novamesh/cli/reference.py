"""`python -m novamesh.cli.reference`: docs/cli.md, made from the commands themselves.

The page holds what `--help` says of every command of every part, the settings of config.toml, and
the exit statuses of the one table of errors. A test compares it with docs/cli.md.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator

from novamesh import settings
from novamesh.cli import app
from novamesh.config import ClientSettings, Pool
from novamesh_proto.errors import MEANINGS


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
    yield "## Settings of a client"
    yield ""
    yield "`config.toml` is where `novamesh config path` says, or in the folder `NOVAMESH_HOME`."
    yield "A flag wins over the environment, that over the file, that over the default."
    yield ""
    yield "| key | environment | default | unit | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for section, holder in (("client", ClientSettings()), ("pool", Pool())):
        for key, option in settings.describe(type(holder)).items():
            name = settings.variable(section, key)
            default = getattr(holder, key)
            yield f"| {section}.{key} | {name} | {default} | {option.unit} | {option.help} |"
    yield ""


def _tidy(markdown: str) -> str:
    """One blank line between blocks, one newline at the end, and commands as they are typed."""
    typed = re.sub(
        r"(?m)^(novamesh .*?) -m [\w.]+", r"\1", markdown
    )  # how this process was started
    return re.sub(r"\n{3,}", "\n\n", typed).strip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
