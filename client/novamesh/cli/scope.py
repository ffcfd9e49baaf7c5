"""Options that every client command shares, and the client they open."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from novamesh import retries
from novamesh.cli.output import say
from novamesh.client import Client
from novamesh.config import Config, Places, find_places, load_config
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobView

REPEAT_S: Final = 15.0  # between two lines about the same refusal
_PREFIX_CHARS_MIN: Final = 4

Json = Annotated[bool, Parameter(negative="", show_default=False, help="Print JSON on stdout.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Scope:
    """Whose files are used."""

    home: Annotated[
        Path | None,
        Parameter(help="Folder of configuration, keys and receipts; else NOVAMESH_HOME."),
    ] = None

    @property
    def places(self) -> Places:
        """Where the files are, whatever the configuration says."""
        return find_places(self.home)

    def config(self, **flags: object) -> Config:
        """The configuration; `flags` are what the command line says of `[client]`."""
        return load_config(self.home, flags=flags)

    def client(self, **flags: object) -> Client:
        """A client that is not open yet."""
        _hear_of_retries()
        return Client(config=self.config(**flags))


HERE: Final = Scope()


class _Talk(logging.Handler):
    """Log records as lines of talk; what goes on for long is not said again at once."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """A new command: nothing was told yet."""
        self._about, self._said_s = "", float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, unless the same refusal was told a moment ago."""
        about = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if about == self._about and time.monotonic() - self._said_s < REPEAT_S:
            return
        self._about, self._said_s = about, time.monotonic()
        say(record.getMessage())


_TALK: Final = _Talk()


def _hear_of_retries() -> None:
    """Whoever waits at a terminal is told why; the SDK alone is silent."""
    log = logging.getLogger(retries.__name__)
    log.setLevel(logging.INFO)
    _TALK.forget()
    log.addHandler(_TALK)  # the same handler is never added twice
    log.propagate = False


async def find_job(client: Client, text: str) -> JobView:
    """The job that the beginning of an id means.

    Raises:
        NovaMeshError: NOT_FOUND, CONFLICT if it fits several, BAD_REQUEST if it is none.
    """
    prefix = text.lower()
    if len(prefix) < _PREFIX_CHARS_MIN or any(c not in "0123456789abcdef" for c in prefix):
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"{text!r} is no job id",
            f"write its first {_PREFIX_CHARS_MIN} or more hexadecimal digits:  novamesh jobs ls",
        )
    if len(prefix) == 64:
        return await client.job(JobId(bytes.fromhex(prefix)))
    found = [view for view in await client.jobs(200) if view.job.hex().startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NovaMeshError(
            Code.CONFLICT, f"{len(found)} jobs begin with {text}", "write more of the id"
        )
    raise NovaMeshError(Code.NOT_FOUND, f"you have no job {text}", "novamesh jobs ls")
