"""A pool of real processes on loopback, driven through the public command line only."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from support.ports import free_port

READY_S = 60.0
STOP_S = 20.0
NETWORK = "e2e"


@dataclass
class Daemon:
    """One running daemon: its process, its home, and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    home: Path
    log: Path
    ready: str

    def stop(self) -> int:
        """SIGTERM, wait, exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Wait for its end; exit status."""
        status = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def kill(self) -> None:
        """SIGKILL, as a power cut would; harmless when it has ended already."""
        self.process.kill()
        self.wait()

    def signal(self, number: int) -> None:
        """Any other signal."""
        self.process.send_signal(number)

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self.process.poll() is None


@dataclass
class RealPool:
    """A coordinator, nodes and a client's home below one temporary folder."""

    root: Path
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    daemons: dict[str, Daemon] = field(default_factory=dict)

    def __enter__(self) -> RealPool:
        self.cli("coordinator", "init", "--name", NETWORK, home="pool")
        self.start_coordinator()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for daemon in self.daemons.values():
            daemon.kill()

    @property
    def coordinator(self) -> Daemon:
        """The coordinator's process, running or not."""
        return self.daemons["pool"]

    def revive(self, *nodes: str) -> None:
        """Start what an earlier test killed; nodes start side by side."""
        names = ("pool", *nodes)
        dead = [n for n in names if n not in self.daemons or not self.daemons[n].running]
        if "pool" in dead:
            self.start_coordinator()
        with ThreadPoolExecutor(max_workers=2) as starting:
            list(starting.map(self.start_node, (name for name in dead if name != "pool")))
        if dead:
            self.await_nodes(len(nodes))

    def await_nodes(self, count: int) -> None:
        """Until that many nodes are attached; those that lost the coordinator come back alone."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            listed = json.loads(self.cli("coordinator", "nodes", "--json", home="pool").stdout)
            if sum(node["attached"] for node in listed) >= count:
                return
        raise AssertionError(f"fewer than {count} nodes attached within {READY_S} s")

    def start_coordinator(self) -> Daemon:
        """Serve on the pool's address."""
        arguments = ["coordinator", "serve", "--listen", self.address, "--http", "127.0.0.1:0"]
        started = self.start("pool", arguments)
        self.address = started.ready.split()[-1]
        return started

    def start_node(self, name: str, *arguments: str) -> Daemon:
        """A node with a key of its own, attached when this returns."""
        return self.start(
            name,
            [
                "node",
                "start",
                "--join",
                self.invite(),
                "--threads",
                "1",
                *arguments,
            ],
        )

    def invite(self) -> str:
        """A fresh join code."""
        return self.cli("coordinator", "invite", home="pool").stdout.strip()

    def join(self, home: str = "client") -> None:
        """Make the client's home a member."""
        self.cli("pool", "join", self.invite(), home=home)

    def cli(
        self, *arguments: str, home: str = "client", check: bool = True, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        done = subprocess.run(
            [*self.command(home), *arguments],
            env=self.environment(home),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"novamesh {arguments[0]} exits {done.returncode}: {done.stderr}")
        return done

    def home(self, name: str) -> Path:
        """A party's folder."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def command(self, home: str) -> list[str]:
        """How a party starts the command line."""
        return _novamesh()

    def environment(self, home: str) -> dict[str, str]:
        """What a party's processes see: their own home, one thread, no colour."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return kept | {
            "HOME": str(self.home(home)),
            "NOVAMESH_HOME": str(self.home(home)),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def start(self, home: str, arguments: list[str]) -> Daemon:
        """Start a daemon; it is ready when this returns."""
        log = self.home(home) / "daemon.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [*self.command(home), *arguments],
                env=self.environment(home),
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert process.stdout is not None
        try:
            ready = _first_line(process, process.stdout)
        except AssertionError as error:
            process.kill()
            process.stdout.close()
            raise AssertionError(f"{error}; its log ends: {log.read_text()[-2000:]}") from None
        if home in self.daemons:
            self.daemons[home].kill()  # it is dead; its pipe is still open
        daemon = Daemon(process, self.home(home), log, ready)
        self.daemons[home] = daemon
        return daemon


def _novamesh() -> list[str]:
    return [str(Path(sys.executable).parent / "novamesh")]


def _first_line(process: subprocess.Popen[bytes], stream: IO[bytes]) -> str:
    """The line that says a daemon is ready."""
    line = b""
    deadline = time.monotonic() + READY_S
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"no ready line within {READY_S} s")
            piece = os.read(stream.fileno(), 4096)
            if not piece:
                raise AssertionError(f"exited with {process.wait()} before it was ready")
            line += piece
    return line.decode().splitlines()[0]
