"""Lines to nodes: pinned, kept within a bound, and not asked again and again where nobody is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from novamesh import direct_lines
from novamesh.clock import Clock
from novamesh.direct_lines import AWAY_S, MEASURED_S, OPENING_MAX, DirectLines
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import JobPath, NodeDescriptor, NodeId
from support.clock import ManualClock
from support.fake_answer import NETWORK, sign
from support.fake_pool import FakePool
from support.parties import CLIENT, descriptor, party
from support.ports import free_port

MULTIADDRESS = "/ip4/127.0.0.1/tcp/4001"


def said(key: PrivateKey, *endpoints: str, sequence: int = 1) -> Verified[NodeDescriptor]:
    """What a node advertises."""
    header = envelope.header(key, NETWORK, (), Clock.system().now_ms())
    return sign(descriptor(key, header=header, endpoints=endpoints, sequence=sequence), key)


@dataclass
class Tunnels:
    """Who opens tunnels: to that address, or nowhere."""

    address: str = ""
    asked: list[tuple[NodeId, tuple[str, ...]]] = field(default_factory=list)
    open: int = 0

    @contextlib.asynccontextmanager
    async def __call__(self, node: NodeId, addresses: tuple[str, ...]) -> AsyncIterator[str]:
        self.asked.append((node, addresses))
        if not self.address:
            raise NovaMeshError(Code.UNAVAILABLE, "no way leads there")
        self.open += 1
        try:
            yield self.address
        finally:
            self.open -= 1


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[FakePool]]:
    """Three that answer as nodes do: pools of one."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(FakePool(name=f"node {number}")) for number in range(3)]


async def at_once() -> None:
    """When a tunnel may be opened beside another way: now."""


@contextlib.asynccontextmanager
async def client(
    clock: ManualClock, tunnel: Any = None, ready: Any = None
) -> AsyncIterator[DirectLines]:
    time = Clock(Clock.system().now_ms, clock.monotonic)
    lines = DirectLines(NETWORK, CLIENT, time, tunnel, ready)
    try:
        yield lines
    finally:
        await lines.close()


async def refused(lines: DirectLines, node: Verified[NodeDescriptor], **how: bool) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        await lines.open(node, **how)
    return caught.value.code


async def test_a_line_is_dialled_once_and_kept(nodes: list[FakePool]) -> None:
    async with client(ManualClock()) as lines:
        node = said(nodes[0].key, nodes[0].address)
        several = await asyncio.gather(*(lines.open(node) for _ in range(5)))
        assert all(line is several[0] for line in several)
        assert several[0].path is JobPath.DIRECT
        assert several[0].rtt_s >= 0
        await lines.drop(node.issuer, several[0])
        again = await lines.open(node)
        assert again is not several[0]
        await lines.drop(node.issuer, several[0])  # somebody else's failure, of the old line
        assert await lines.open(node) is again


async def test_another_identity_at_the_address_is_refused(nodes: list[FakePool]) -> None:
    async with client(ManualClock()) as lines:
        liar = said(party("liar"), nodes[0].address)
        assert await refused(lines, liar) is Code.PIN_MISMATCH
        assert await lines.open(said(nodes[0].key, nodes[0].address))


async def test_the_next_address_is_tried(nodes: list[FakePool]) -> None:
    async with client(ManualClock()) as lines:
        closed = f"127.0.0.1:{free_port()}"
        line = await lines.open(said(nodes[0].key, closed, nodes[1].address, nodes[0].address))
        assert line.connection.pool.address == nodes[0].address


async def test_a_node_that_moved_is_dialled_where_it_is_now() -> None:
    """Its old address may not even say that nobody is there."""
    with FakePool(name="mover") as old, FakePool(name="mover") as new:
        async with client(ManualClock()) as lines:
            line = await lines.open(said(old.key, old.address, sequence=5))
            both = said(old.key, new.address, old.address, sequence=6)
            assert await lines.open(both) is line, "it is still there"
            moved = await lines.open(said(old.key, new.address, sequence=7))
            assert moved.connection.pool.address == new.address
            outdated = said(old.key, old.address, sequence=5)
            assert await lines.open(outdated) is moved, "a job that was sealed before"


async def test_who_says_nowhere_cannot_be_reached() -> None:
    async with client(ManualClock()) as lines:
        assert await refused(lines, said(party("silent"))) is Code.UNAVAILABLE


async def test_where_nobody_answered_is_not_asked_again_for_a_while() -> None:
    clock = ManualClock()
    async with client(clock) as lines:
        port, key = free_port(), party("coordinator")
        node = said(key, f"127.0.0.1:{port}")
        assert await refused(lines, node) is Code.UNAVAILABLE
        late = FakePool()
        late.address = f"127.0.0.1:{port}"
        with late:
            assert await refused(lines, node) is Code.UNAVAILABLE
            clock.advance(AWAY_S / 2)
            assert await refused(lines, node) is Code.UNAVAILABLE
            assert late.calls["Hello"] == 0
            line = await lines.open(node, insist=True)
            await lines.drop(node.issuer, line)
            assert await lines.open(node), "who answered is not away any more"


async def test_it_is_asked_again_after_a_while() -> None:
    clock = ManualClock()
    async with client(clock) as lines:
        port = free_port()
        node = said(party("coordinator"), f"127.0.0.1:{port}")
        await refused(lines, node)
        late = FakePool()
        late.address = f"127.0.0.1:{port}"
        with late:
            clock.advance(AWAY_S + 1)
            assert await lines.open(node)


async def test_what_is_remembered_is_bounded(
    nodes: list[FakePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_lines, "LINES_MAX", 2)
    monkeypatch.setattr(direct_lines, "AWAY_MAX", 4)
    async with client(ManualClock()) as lines:
        first, second, third = (said(node.key, node.address) for node in nodes)
        kept = await lines.open(first)
        oldest = await lines.open(second)
        await lines.open(first)
        await lines.open(third)
        assert await lines.open(first) is kept
        assert await lines.open(second) is not oldest, "the one not used for longest went"
        for number in range(9):
            await refused(lines, said(party(f"away {number}")))
        assert len(lines._away) <= 4
        assert len(lines._lines) <= 2
        gc.collect()
        assert len(lines._dialing) <= 1


async def test_a_tunnel_is_taken_only_where_nothing_else_leads_there(
    nodes: list[FakePool],
) -> None:
    tunnels = Tunnels(nodes[0].address)
    async with client(ManualClock(), tunnels) as lines:
        both = said(nodes[0].key, MULTIADDRESS, nodes[0].address)
        line = await lines.open(both, insist=True)
        assert (line.path, tunnels.asked) == (JobPath.DIRECT, [])
        await lines.drop(both.issuer, line)
        hidden = said(nodes[0].key, MULTIADDRESS, f"127.0.0.1:{free_port()}")
        assert await refused(lines, hidden) is Code.UNAVAILABLE  # a better way is there: no hurry
        assert tunnels.asked == []
        line = await lines.open(hidden, insist=True)
        assert line.path is JobPath.TUNNEL
        assert tunnels.asked == [(nodes[0].key.node_id, (MULTIADDRESS,))]
        assert tunnels.open == 1
        await lines.drop(hidden.issuer, line)
        assert tunnels.open == 0


async def test_a_tunnel_that_leads_to_another_is_closed(nodes: list[FakePool]) -> None:
    tunnels = Tunnels(nodes[1].address)
    async with client(ManualClock(), tunnels) as lines:
        hidden = said(nodes[0].key, MULTIADDRESS)
        assert await refused(lines, hidden, insist=True) is Code.PIN_MISMATCH
        assert tunnels.open == 0
        tunnels.address = ""
        assert await refused(lines, hidden, insist=True) is Code.UNAVAILABLE


async def test_without_the_mesh_a_hidden_node_is_out_of_reach() -> None:
    async with client(ManualClock()) as lines:
        hidden = said(party("hidden"), MULTIADDRESS)
        assert await refused(lines, hidden, insist=True) is Code.UNAVAILABLE


async def no_tunnel(lines: DirectLines, node: Verified[NodeDescriptor]) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        await lines.open_tunnel(node)
    return caught.value.code


async def test_a_tunnel_is_opened_beside_another_way_and_found_by_the_next_job(
    nodes: list[FakePool],
) -> None:
    tunnels, ready = Tunnels(nodes[0].address), asyncio.Event()
    async with client(ManualClock(), tunnels, ready.wait) as lines:
        hidden = said(nodes[0].key, MULTIADDRESS)
        waiting = [asyncio.create_task(lines.open_tunnel(hidden)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # its job has ended
        assert tunnels.asked == [], "the mesh is not started for it"
        ready.set()
        await asyncio.gather(*waiting[1:])
        line = await lines.open(hidden)
        assert line.path is JobPath.TUNNEL
        assert len(tunnels.asked) == 1
        assert tunnels.open == 1
        await lines.open_tunnel(hidden)
        assert len(tunnels.asked) == 1
    assert tunnels.open == 0


async def test_where_no_tunnel_leads_is_not_tried_again_for_a_while() -> None:
    tunnels, clock = Tunnels(), ManualClock()
    async with client(clock, tunnels, at_once) as lines:
        hidden = said(party("hidden"), MULTIADDRESS)
        for _ in range(3):
            assert await no_tunnel(lines, hidden) is Code.UNAVAILABLE
        assert len(tunnels.asked) == 1
        clock.advance(AWAY_S + 1)
        assert await no_tunnel(lines, hidden) is Code.UNAVAILABLE
        assert len(tunnels.asked) == 2
        assert await no_tunnel(lines, said(party("silent"))) is Code.UNAVAILABLE


async def test_without_the_mesh_no_tunnel_is_opened_beside_another_way(
    nodes: list[FakePool],
) -> None:
    tunnels = Tunnels(nodes[0].address)
    async with client(ManualClock(), tunnels) as lines:
        hidden = said(nodes[0].key, MULTIADDRESS)
        assert await no_tunnel(lines, hidden) is Code.UNAVAILABLE
        assert tunnels.asked == []


async def test_a_tunnel_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_lines, "TUNNEL_S", 0.05)
    async with client(ManualClock(), Tunnels(), asyncio.Event().wait) as lines:
        assert await no_tunnel(lines, said(party("hidden"), MULTIADDRESS)) is Code.UNAVAILABLE


async def test_so_many_tunnels_are_opened_at_once_and_none_outlives_the_client() -> None:
    async with client(ManualClock(), Tunnels(), asyncio.Event().wait) as lines:
        waiting = [
            asyncio.create_task(lines.open_tunnel(said(party(f"node {number}"), MULTIADDRESS)))
            for number in range(OPENING_MAX)
        ]
        await asyncio.sleep(0)
        assert await no_tunnel(lines, said(party("one more"), MULTIADDRESS)) is Code.BUSY
        await lines.close()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        assert lines._opening == {}


async def test_a_round_trip_that_is_old_is_measured_again(nodes: list[FakePool]) -> None:
    clock = ManualClock()
    async with client(clock) as lines:
        node = said(nodes[0].key, nodes[0].address)
        line = await lines.open(node)
        asked = nodes[0].calls["Hello"]
        assert await lines.open(node) is line
        assert nodes[0].calls["Hello"] == asked
        clock.advance(MEASURED_S + 1)
        assert await lines.open(node) is line
        assert nodes[0].calls["Hello"] == asked + 1
        assert line.measured_s == clock.monotonic()
        line.doubt()
        assert await lines.open(node) is line
        assert nodes[0].calls["Hello"] == asked + 2
        clock.advance(MEASURED_S + 1)
        nodes[0].script.refusals["Hello"] = [NovaMeshError(Code.UNAVAILABLE, "it went")]
        assert await lines.open(node) is not line, "who is gone is dialled anew"


async def test_closing_hangs_up_on_everybody(nodes: list[FakePool]) -> None:
    tunnels = Tunnels(nodes[0].address)
    async with client(ManualClock(), tunnels) as lines:
        await lines.open(said(nodes[0].key, MULTIADDRESS), insist=True)
        await lines.open(said(nodes[1].key, nodes[1].address))
        await lines.close()
        assert tunnels.open == 0
