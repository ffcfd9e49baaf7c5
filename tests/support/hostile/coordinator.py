"""A real coordinator in a process of its own, with disk, port and TLS, and what it is like now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from novamesh.config import Pool
from novamesh_proto.identity import format_node_id
from support.parties import COORDINATOR, NETWORK
from support.processes import Daemon, RealPool

TRACES = (
    "Traceback",
    "a call failed",
    "a stream failed",
    "a tick failed",
    "Unexpected",
    "Error in",
)


@dataclass(frozen=True)
class Victim:
    """One running coordinator that anybody may join."""

    daemon: Daemon
    address: str

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.address.rpartition(":")[2])

    @property
    def pool(self) -> Pool:
        """The pool as its members know it."""
        return Pool(self.address, format_node_id(COORDINATOR.node_id), NETWORK, "")

    @property
    def memory_bytes(self) -> int:
        """Its resident memory now."""
        return int(psutil.Process(self.daemon.process.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time it took until now, both of its own and of the kernel for it."""
        times = psutil.Process(self.daemon.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def files(self) -> int:
        """File descriptors it has open."""
        return int(psutil.Process(self.daemon.process.pid).num_fds())

    @property
    def kept_out(self) -> int:
        """How often an address was kept out."""
        return self.daemon.log.read_text(errors="replace").count("an address is kept out")

    def traces(self) -> list[str]:
        """Lines of its log that tell of a bug."""
        lines = self.daemon.log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(trace in line for trace in TRACES)]


@contextmanager
def serve(root: Path, requests_per_s: int = 100) -> Iterator[Victim]:
    """Start it with its files below `root`; kill it at the end."""
    real = RealPool(root)
    folder = real.home("pool") / "coordinator"
    folder.mkdir()
    (folder / "coordinator.key").touch(0o600)
    (folder / "coordinator.key").write_text(COORDINATOR.to_bytes().hex() + "\n")
    settings = f'network = "{NETWORK}"\nopen = true\nrequests_per_s = {requests_per_s}\n'
    (folder / "config.toml").write_text(settings)
    address = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    daemon = real.start("pool", ["coordinator", "serve", *address])
    try:
        yield Victim(daemon, daemon.ready.split()[-1])
    finally:
        daemon.kill()
