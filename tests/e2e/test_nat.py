"""A node behind a NAT that forgets what was idle for 15 s keeps its stream, and is given work."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.network_beds import Home, missing
from support.spread_pool import PORT, SpreadPool

IDLE_S = 15
QUIET_S = 2 * IDLE_S + 2.0


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[SpreadPool]:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with SpreadPool(tmp_path) as running:
        yield running


def test_a_node_behind_a_forgetful_nat_keeps_its_stream(pool: SpreadPool) -> None:
    home = pool.add_home("ada", IDLE_S)
    node = pool.start_node("ada")
    with _silent_connection(pool, home) as port:
        assert port in _remembered(home)
        before = _remembered(home)
        since_s = time.monotonic()
        pool.join()
        found = json.loads(pool.cli("net", "check", "--json", home="ada").stdout)
        time.sleep(max(0.0, QUIET_S - (time.monotonic() - since_s)))
        after = _remembered(home)
    # The NAT forgets: a connection as old as the node's, on which nobody pings, is gone.
    assert port in before - after
    assert before & after == before - {port}
    told = {each["path"]: each for each in found}
    assert "the node is attached" in told["reverse"]["reason"]
    assert "a router stands between" in told["nat"]["reason"]
    answer = json.loads(pool.cli("run", "nova-pico", "What is 31 plus 14?", "--json").stdout)
    assert answer["text"]
    sessions = re.findall(r"\battached\b", node.log.read_text())
    assert len(sessions) == 1, node.log.read_text()


@contextlib.contextmanager
def _silent_connection(pool: SpreadPool, home: Home) -> Iterator[int]:
    """A connection from the home to the public net on which nothing is said; its port."""
    address, other = pool.address.rpartition(":")[0], PORT + 1
    place = pool.net.places["pool"]
    assert not isinstance(place, Home)
    with place.call(lambda: socket.create_server((address, other))) as listening:
        dialled = home.host.call(lambda: socket.create_connection((address, other), 5))
        with dialled, listening.accept()[0]:
            yield dialled.getsockname()[1]


def _remembered(home: Home) -> set[int]:
    """Ports at home of the connections that its router still knows as open."""
    known = [line for line in home.connections() if "ESTABLISHED" in line]
    return {int(re.findall(r"sport=(\d+)", line)[0]) for line in known}
