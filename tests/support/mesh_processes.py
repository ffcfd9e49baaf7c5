"""Peers of a mesh in processes of their own, as `support.mesh_peers` is one when it is run."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from novamesh_proto.identity import PrivateKey, format_node_id
from support.mesh_peers import NETWORK, PATIENCE_S, TESTS, until

START_S: Final = 120.0  # a process imports libp2p, on a busy machine


@dataclass
class Member:
    """One process: what it said and what it heard, by its own clock (the machine's)."""

    key: PrivateKey
    process: asyncio.subprocess.Process
    addresses: tuple[str, ...] = ()
    began_s: float = 0.0  # when it had imported everything and was up
    said: dict[int, float] = field(default_factory=dict)
    heard: dict[str, dict[int, float]] = field(default_factory=dict)  # node → sequence → when

    @property
    def name(self) -> str:
        """Its NodeId as text."""
        return format_node_id(self.key.node_id)

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    def take(self, line: str) -> None:
        """One line that it wrote."""
        word, *rest = line.split()
        if word == "at":
            self.addresses = tuple(rest)
            self.began_s = time.time()
        elif word == "said":
            self.said[int(rest[0])] = float(rest[1])
        elif word == "heard":
            self.heard.setdefault(rest[0], {})[int(rest[1])] = float(rest[2])


class Crowd:
    """`async with Crowd(folder) as crowd`: all its processes are gone at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: list[Member] = []
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members:
            member.kill()
        for member in self._members:
            await member.process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def start(self, *bootstrap: str, key: PrivateKey | None = None) -> Member:
        """One more, which is up when this returns; with its key it finds its file."""
        key = key or PrivateKey.generate()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "support.mesh_peers", str(self._folder), NETWORK, *bootstrap),
            cwd=TESTS,
            env={"PYTHONPATH": str(TESTS), "MESH_KEY": key.to_bytes().hex()},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        member = Member(key, process)
        self._members.append(member)
        self._readers.append(asyncio.create_task(_read(member)))
        await until(lambda: member.addresses, START_S)
        return member

    async def settle(self, members: list[Member]) -> float:
        """Wait until all have heard all; seconds."""
        names = {member.name for member in members}
        return await until(
            lambda: all(names <= {*member.heard, member.name} for member in members), START_S
        )

    async def spread(self, speaker: Member, members: list[Member]) -> float:
        """Let one speak anew; seconds until the last of the others has heard it."""
        sequence = max(speaker.said, default=1) + 1
        assert speaker.process.stdin is not None
        speaker.process.stdin.write(b"say\n")
        others = [member for member in members if member is not speaker]
        await until(
            lambda: all(sequence in member.heard.get(speaker.name, {}) for member in others),
            PATIENCE_S,
        )
        await until(lambda: sequence in speaker.said)
        heard_s = max(member.heard[speaker.name][sequence] for member in others)
        return heard_s - speaker.said[sequence]

    async def first_heard_s(self, member: Member) -> float:
        """Seconds from when a process was up until it had heard somebody."""
        await until(lambda: member.heard, START_S)
        first_s = min(min(sequences.values()) for sequences in member.heard.values())
        return first_s - member.began_s


async def _read(member: Member) -> None:
    assert member.process.stdout is not None
    while line := await member.process.stdout.readline():
        member.take(line.decode())
