"""Two coordinators of one identity on one database, each a process of its own; one serves."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Any

from novamesh_coordinator.config import PostgresUrl
from support.ports import free_port
from support.real_world import Premises

READY_S = 120.0  # on a machine with much else to do


class OneOfTwo:
    """A coordinator's process, and where it is reached."""

    def __init__(self, home: Path, database: PostgresUrl) -> None:
        home.mkdir()
        self._home = home
        self._database = database
        self._process: Process | None = None
        self._premises = Premises(home / "coordinator", free_port(), free_port())
        self._premises.furnish()
        self.address = f"127.0.0.1:{self._premises.port}"

    async def start(self, *flags: str) -> None:
        """Start it; it serves or stands by when this returns."""
        command = [str(Path(sys.executable).parent / "novamesh"), "coordinator", "serve", "--json"]
        command += ["--home", str(self._home), "--database", self._database.url, *flags]
        with (self._home / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=log)
        said = await self._line()
        assert said["ready"] is ("--standby" not in flags)

    async def served(self) -> None:
        """Until one that stood by serves."""
        assert (await self._line())["ready"]

    async def health(self) -> tuple[int, str]:
        """Status and body of /healthz."""
        url = f"http://127.0.0.1:{self._premises.http_port}/healthz"

        def look() -> tuple[int, str]:
            with urllib.request.urlopen(url, timeout=READY_S) as page:
                return page.status, page.read().decode().strip()

        return await asyncio.to_thread(look)

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), READY_S)

    async def kill(self) -> None:
        """SIGKILL, as a power cut would; harmless when it has ended already."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log(self) -> str:
        """What it told its owner."""
        return (self._home / "log").read_text()

    async def _line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
        assert line, f"it ended: {self.log()[-2000:]}"
        said: dict[str, Any] = json.loads(line)
        return said


class StandbyPool:
    """Both of them."""

    def __init__(self, root: Path, database: PostgresUrl) -> None:
        self.first = OneOfTwo(root / "first", database)
        self.second = OneOfTwo(root / "second", database)

    @property
    def addresses(self) -> str:
        """What members are told."""
        return f"{self.first.address},{self.second.address}"

    async def __aenter__(self) -> StandbyPool:
        await self.first.start()
        await self.second.start("--standby")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.first.kill()
        await self.second.kill()
