"""Connections that are too many, or of somebody who does not stop asking, are ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from novamesh_coordinator import bouncer as bouncing
from novamesh_coordinator.bouncer import (
    BARRED_S,
    LOOK_BARRED_S,
    LOOK_S,
    STRIKES_MAX,
    WINDOW_S,
    Bouncer,
)
from novamesh_coordinator.packet_filter import PacketFilter
from support.waiting import wait_until

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


class Door:
    """A port of this process, those who came through it, and a clock."""

    def __init__(self, connections_max: int) -> None:
        self.now_s = 0.0
        self.listener = socket.create_server((HERE, 0))
        self.inside: list[socket.socket] = []
        self.outside: list[socket.socket] = []
        self.bouncer = Bouncer(connections_max, lambda: self.now_s)
        self.bouncer.port = self.listener.getsockname()[1]

    def come(self, host: str = HERE) -> socket.socket:
        """Somebody connects; the caller's end."""
        caller = socket.create_connection((HERE, self.bouncer.port), 1, source_address=(host, 0))
        self.outside.append(caller)
        self.inside.append(self.listener.accept()[0])
        return caller

    def close(self) -> None:
        for one in (self.listener, *self.inside, *self.outside):
            one.close()


@pytest.fixture
def door() -> Iterator[Door]:
    with contextlib.closing(Door(connections_max=3)) as made:
        yield made


def ended(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_newest_of_too_many_connections_of_one_address_go(door: Door) -> None:
    mine = [door.come() for _ in range(5)]
    other = door.come(ELSEWHERE)
    assert door.bouncer.look() == 2
    assert [ended(caller) for caller in (*mine, other)] == [False] * 3 + [True] * 2 + [False]


def test_whoever_dials_again_and_again_is_kept_out(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bouncing, "STRIKES_MAX", 4)
    mine = [door.come() for _ in range(7)]
    assert door.bouncer.look() == 4
    assert not ended(mine[0])
    door.bouncer.look()
    assert all(map(ended, mine))


def test_connections_to_other_ports_are_nobodys_business(door: Door) -> None:
    mine = [door.come() for _ in range(4)]
    door.bouncer.port += 1
    assert door.bouncer.look() == 0
    assert not any(map(ended, mine))


def test_who_does_not_stop_asking_is_kept_out_for_a_while(door: Door) -> None:
    noisy, other = door.come(ELSEWHERE), door.come()
    for _ in range(STRIKES_MAX):
        assert door.bouncer.look() == 0
        door.bouncer.strike(ELSEWHERE)
    assert door.bouncer.look() == 1
    assert (ended(noisy), ended(other)) == (True, False)
    with pytest.raises(TimeoutError):
        door.come(ELSEWHERE)
    assert not ended(door.come())
    door.now_s += BARRED_S + 1
    assert door.bouncer.look() == 0
    assert not ended(door.come(ELSEWHERE))
    door.inside[0].close()
    assert door.bouncer.look() == 0


def _refuse(self: PacketFilter, listener: socket.socket) -> None:
    raise OSError(1, "not here")


def test_where_a_port_hears_everybody_connections_are_ended(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PacketFilter, "attach", _refuse)
    for _ in range(STRIKES_MAX):
        door.bouncer.strike(ELSEWHERE)
    door.bouncer.look()
    again = door.come(ELSEWHERE)
    assert door.bouncer.look() == 1
    assert ended(again)
    assert door.bouncer._patience_s() == LOOK_BARRED_S


def test_a_bar_ends_although_the_port_was_not_found_when_it_should(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(STRIKES_MAX):
        door.bouncer.strike(ELSEWHERE)
    door.bouncer.look()
    assert door.bouncer._patience_s() == LOOK_BARRED_S  # some may be on their way in
    door.bouncer.look()
    assert door.bouncer._patience_s() == LOOK_S
    door.now_s += BARRED_S + 1
    for owner, name, trouble in ((bouncing, "LISTINGS", ()), (PacketFilter, "attach", _refuse)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, trouble)
            door.bouncer.look()
        with pytest.raises(TimeoutError):
            door.come(ELSEWHERE)
    door.bouncer.look()
    door.come(ELSEWHERE)


def test_strikes_of_long_ago_do_not_count(door: Door) -> None:
    door.come(ELSEWHERE)
    for _ in range(2):
        for _ in range(STRIKES_MAX - 1):
            door.bouncer.strike(ELSEWHERE)
        door.now_s += WINDOW_S
    assert door.bouncer.look() == 0


async def test_it_looks_by_itself_and_at_once_when_somebody_is_to_go(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bouncing, "LOOK_S", 60.0)
    noisy = door.come(ELSEWHERE)
    task = asyncio.create_task(door.bouncer.run())
    await asyncio.sleep(0)
    for _ in range(STRIKES_MAX):
        door.bouncer.strike(ELSEWHERE)
    await wait_until(lambda: ended(noisy))
    task.cancel()


def test_a_system_that_lists_no_sockets_is_left_alone(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bouncing, "LISTINGS", ("/nowhere",))
    for _ in range(5):
        door.come()
    assert door.bouncer.look() == 0
