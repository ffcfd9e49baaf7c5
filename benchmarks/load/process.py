"""A coordinator as its owner starts it, and what its process uses."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from support.parties import COORDINATOR, NETWORK

STOP_S: Final = 60.0
CONFIG: Final = (
    f'network = "{NETWORK}"\nlisten = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\nopen = true\n'
    "requests_per_s = 100000\n"  # a handful of members make the load of thousands
)


@dataclass(frozen=True)
class Usage:
    """What a process has used and holds."""

    cpu_s: float
    rss_mb: float
    fds: int
    threads: int


@dataclass(frozen=True)
class Coordinator:
    """One that serves."""

    process: psutil.Process
    address: str
    pages: str

    def usage(self) -> Usage:
        """As it is now."""
        with self.process.oneshot():
            spent = self.process.cpu_times()
            return Usage(
                spent.user + spent.system,
                self.process.memory_info().rss / 1e6,
                self.process.num_fds(),
                self.process.num_threads(),
            )

    def gauge(self, name: str) -> float:
        """A figure of its /metrics page."""
        with urllib.request.urlopen(f"http://{self.pages}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[Coordinator]:
    """A coordinator of an open pool, with more flags, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name) / "coordinator"
        folder.mkdir()
        (folder / "coordinator.key").touch(0o600)
        (folder / "coordinator.key").write_text(COORDINATOR.to_bytes().hex() + "\n")
        (folder / "config.toml").write_text(CONFIG)
        command = [str(Path(sys.executable).parent / "novamesh"), "coordinator", "serve"]
        process = subprocess.Popen(
            [*command, "--home", name, "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield Coordinator(
                psutil.Process(process.pid), ready["address"], f"127.0.0.1:{ready['http_port']}"
            )
        finally:
            process.terminate()
            process.wait(STOP_S)
            process.stdout and process.stdout.close()
