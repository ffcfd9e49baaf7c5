"""Two homes behind NAT, one public peer: a circuit, then a punched hole, then no relay at all."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.network_beds import Host, Internet, missing

TESTS = Path(__file__).parent.parent
ASKED_MAX = 40  # questions until a hole must be there, a second between them


@contextlib.contextmanager
def _machine(host: Host, role: str, folder: Path, *bootstrap: str) -> Iterator[Any]:
    place = folder / role
    place.mkdir()
    command = [sys.executable, "-W", "ignore", "-m", "support.mesh_home", role, str(place)]
    with subprocess.Popen(
        [*host.prefix, *command, *bootstrap], cwd=TESTS, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _told(process: Any) -> dict[str, Any]:
    line = process.stdout.readline()
    assert line, "the process ended"
    told: dict[str, Any] = json.loads(line)
    return told


def test_node_behind_nat_is_reached_by_a_client_behind_another() -> None:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with (
        tempfile.TemporaryDirectory(prefix="nm") as name,
        Internet() as net,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        public, ada, bob = net.add_host("public"), net.add_home("ada"), net.add_home("bob")
        relay = stack.enter_context(_machine(public, "relay", folder))
        where = _told(relay)["at"][0]
        node = stack.enter_context(_machine(ada.host, "node", folder, where))
        assert any("/p2p-circuit/" in address for address in _told(node)["at"])
        client = stack.enter_context(_machine(bob.host, "client", folder, where))
        first = _told(client)
        assert first["answered"] == 500
        assert "RELAYED" in first["kinds"]
        kinds: list[str] = []
        for _ in range(ASKED_MAX):
            kinds = _told(client)["kinds"]
            if "DIRECT" in kinds:
                break
        assert "DIRECT" in kinds
        relay.kill()
        for _ in range(5):
            assert _told(client)["answered"] == 500
