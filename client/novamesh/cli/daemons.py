"""Real daemons for a short while: started through the public command line, gone afterwards.

Rules: a daemon has its own folder, its own process group and a log file; it counts as started when
it has printed its ready line; leaving the block stops all of them, politely first, whatever
happened. What they are told to do is the caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from novamesh_proto.errors import Code, Meaning, NovaMeshError

READY_S: Final = 60.0
STOP_S: Final = 10.0
COMMAND_S: Final = 30.0
TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running daemon; `ready` is the line it said when it was."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    ready: str

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it takes too long."""
        await _end(self.process)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        _signal(self.process, signal.SIGKILL)
        await self.process.wait()


class DaemonError(NovaMeshError):
    """A daemon or command failed; `tail` is the end of what it logged."""

    def __init__(self, message: str, tail: str, status: int | None = None) -> None:
        super().__init__(Code.INTERNAL, message, "the end of its log is above")
        self.tail = tail
        self._exit = status if status is not None and status > 0 else super().meaning.exit

    @property
    def meaning(self) -> Meaning:
        """Whoever started it ends as it did; silence and signals are no statuses of ours."""
        return replace(super().meaning, exit=self._exit)


class Daemons:
    """Use as `async with Daemons(folder) as daemons`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Daemons:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._started:
            _signal(process, signal.SIGTERM)
        for process in self._started:
            await _end(process)

    async def start(self, name: str, *arguments: str) -> Daemon:
        """Start a daemon with its folder `name` and wait until it is ready.

        Raises:
            DaemonError: if it ends or stays silent instead.
        """
        log = self._home(name) / "daemon.log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *_command(arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=_environment(os.environ, self._home(name)),
                start_new_session=True,
            )
        self._started.append(process)
        assert process.stdout is not None, "a pipe was asked for"
        try:
            async with asyncio.timeout(READY_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            fate = await _fate(process)
            raise DaemonError(f"{name} did not start: {fate}", read_tail(log), process.returncode)
        return Daemon(name, process, log, line.decode(errors="replace").strip())

    async def command(self, name: str, *arguments: str) -> str:
        """What a short command prints.

        Raises:
            DaemonError: if it fails.
        """
        process = await asyncio.create_subprocess_exec(
            *_command(arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(os.environ, self._home(name)),
            start_new_session=True,
        )
        self._started.append(process)
        try:
            async with asyncio.timeout(COMMAND_S):
                output, errors = await process.communicate()
        except TimeoutError:
            output, errors = b"", b"it took too long"
        if process.returncode != 0:  # None where it still runs
            what = f"novamesh {' '.join(arguments[:2])} failed"
            raise DaemonError(what, errors.decode(errors="replace"), process.returncode)
        return output.decode()

    def _home(self, name: str) -> Path:
        home = self._folder / name
        home.mkdir(mode=0o700, exist_ok=True)
        return home


def read_tail(log: Path) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "novamesh", *arguments]


def _environment(env: Mapping[str, str], home: Path) -> dict[str, str]:
    """The user's environment without the user's own novamesh; one thread of arithmetic each."""
    kept = {name: value for name, value in env.items() if not name.startswith("NOVAMESH_")}
    return kept | {"NOVAMESH_HOME": str(home), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


async def _fate(process: asyncio.subprocess.Process) -> str:
    """How a process that said nothing is doing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            return f"it ended with status {await process.wait()}"
    return f"it was silent for {READY_S:g} s"


async def _end(process: asyncio.subprocess.Process) -> None:
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """To the whole group, so that no child stays behind."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
