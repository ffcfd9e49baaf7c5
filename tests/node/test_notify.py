"""What a service manager hears, over a real datagram socket."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from novamesh_node.lifecycle import State
from novamesh_node.notify import ServiceManager, turns

IDLE = State(ready=True)


@dataclass
class Ear:
    """A manager's side of the socket."""

    name: str
    datagrams: socket.socket

    def heard(self) -> list[str]:
        """Every datagram so far; a send over AF_UNIX is there when it returns."""
        found = []
        while True:
            try:
                found.append(self.datagrams.recv(4096).decode())
            except BlockingIOError:
                return found


def listen(name: str) -> Ear:
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind("\0" + name[1:] if name.startswith("@") else name)
    datagrams.setblocking(False)
    return Ear(name, datagrams)


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    kinds = {"path": str(tmp_path / "notify"), "abstract": f"@novamesh-{secrets.token_hex(8)}"}
    made = listen(kinds[request.param])
    with made.datagrams:
        yield made


def test_a_life_from_loaded_to_stopped(ear: Ear) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": ear.name})
    states = [
        State(), IDLE, replace(IDLE, running=1), replace(IDLE, running=2),
        replace(IDLE, draining=True), replace(IDLE, draining=True, stopped=True),
    ]  # fmt: skip
    for before, after in itertools.pairwise(states):
        manager.hear(before, after)
    assert ear.heard() == [
        "READY=1\nSTATUS=idle", "STATUS=working", "STATUS=draining", "STOPPING=1\nSTATUS=stopped",
    ]  # fmt: skip


def test_only_a_manager_that_watches_hears_the_beat(ear: Ear) -> None:
    ServiceManager({"NOTIFY_SOCKET": ear.name}).beat()
    assert ear.heard() == []
    ServiceManager({"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "120000000"}).beat()
    assert ear.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize("name", ["", "/nowhere/at/all", "@nobody-listens-here", "/" + 200 * "x"])
def test_nobody_there_costs_nothing(name: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
    manager.hear(State(), IDLE)
    manager.beat()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_socket_is_not_waited_for(ear: Ear) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": ear.name, "WATCHDOG_USEC": "1"})
    for _ in range(2000):
        manager.beat()
    assert set(ear.heard()) == {"WATCHDOG=1"}


def test_a_pause_that_is_called_off_says_so() -> None:
    paused = replace(IDLE, paused=True)
    assert turns(IDLE, paused) == ("STATUS=paused",)
    assert turns(paused, IDLE) == ("STATUS=idle",)
    assert turns(IDLE, IDLE) == ()
