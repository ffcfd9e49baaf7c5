"""A router's port is asked for, kept and given back; what a router refuses ends nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from novamesh_node import port_map
from novamesh_node.port_map import HomeRouter, Mapping, NatPmp, Upnp, find_home_routers, mapped
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_home_router import LOOPBACK, FakeHomeRouter, nat_pmp, upnp
from support.waiting import wait_until

PORT = 7711
SEARCH_MS = 200


@pytest.fixture
def router() -> FakeHomeRouter:
    return FakeHomeRouter()


@pytest.fixture
async def pmp(router: FakeHomeRouter) -> AsyncIterator[NatPmp]:
    async with nat_pmp(router) as address:
        yield NatPmp(address)


@pytest.fixture
async def igd(router: FakeHomeRouter) -> AsyncIterator[Upnp]:
    async with upnp(router):
        yield Upnp(LOOPBACK, SEARCH_MS)


async def test_nat_pmp_maps_and_gives_back(router: FakeHomeRouter, pmp: NatPmp) -> None:
    async with mapped(PORT, ways=[pmp]) as endpoint:
        assert endpoint == f"198.51.100.11:{PORT}"
        assert router.mapped == {PORT: (PORT, port_map.LEASE_S)}
    assert not router.mapped


async def test_nat_pmp_asks_again_when_a_packet_is_lost(
    router: FakeHomeRouter, pmp: NatPmp
) -> None:
    router.lost = 1
    assert await pmp.look() == HomeRouter("NAT-PMP", "198.51.100.11")


async def test_the_router_is_the_one_of_the_default_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = tmp_path / "route"
    monkeypatch.setattr(port_map, "_ROUTES", routes)
    monkeypatch.setattr(sys, "platform", "linux")
    head = "Iface\tDestination\tGateway\tFlags\n"
    routes.write_text(head + "eth0\t0001A8C0\t00000000\t0001\n")
    with pytest.raises(NovaMeshError, match="names no router"):
        await NatPmp().look()
    told = "eth0\t00000000\t0101A8C0\t0003\n" if sys.byteorder == "little" else ""
    routes.write_text(head + (told or "eth0\t00000000\tC0A80101\t0003\n"))
    assert port_map._default_router() == ("192.168.1.1", port_map.NAT_PMP_PORT)


async def test_nat_pmp_takes_the_port_that_the_router_gives(
    router: FakeHomeRouter, pmp: NatPmp
) -> None:
    router.taken = {PORT}
    async with mapped(PORT, ways=[pmp]) as endpoint:
        assert endpoint == f"198.51.100.11:{PORT + 1}"


async def test_upnp_maps_and_gives_back(router: FakeHomeRouter, igd: Upnp) -> None:
    async with mapped(PORT, ways=[igd]) as endpoint:
        assert endpoint == f"198.51.100.11:{PORT}"
        assert router.mapped == {PORT: (PORT, port_map.LEASE_S)}
    assert not router.mapped


async def test_upnp_passes_over_ports_that_others_have(router: FakeHomeRouter, igd: Upnp) -> None:
    router.taken = {PORT, PORT + 1}
    assert await igd.open(PORT, PORT, 60) == Mapping("198.51.100.11", PORT + 2, 60)


async def test_upnp_maps_for_ever_where_the_router_knows_no_leases(
    router: FakeHomeRouter, igd: Upnp
) -> None:
    router.lease_max = 0
    assert await igd.open(PORT, PORT, 60) == Mapping("198.51.100.11", PORT, 0)


async def test_the_next_way_is_tried_when_one_does_not_work(
    router: FakeHomeRouter, igd: Upnp
) -> None:
    closed = NatPmp((LOOPBACK, 9))  # nobody listens there
    async with mapped(PORT, ways=[closed, igd]) as endpoint:
        assert endpoint == f"198.51.100.11:{PORT}"


async def test_a_refusal_is_one_line_of_log_and_no_endpoint(
    router: FakeHomeRouter, pmp: NatPmp, igd: Upnp
) -> None:
    router.refusal = 2
    with capture_logs() as logs:
        async with mapped(PORT, ways=[pmp, igd]) as endpoint:
            assert endpoint is None
    (line,) = logs
    assert line["event"] == "no port mapped"
    assert "it is told not to" in line["error"]
    assert "UPnP" in line["error"]


async def test_a_router_behind_another_nat_maps_nothing_that_helps(
    router: FakeHomeRouter, pmp: NatPmp
) -> None:
    router.public_address = "100.64.0.7"
    with capture_logs() as logs:
        async with mapped(PORT, ways=[pmp]) as endpoint:
            assert endpoint is None
    assert "behind another NAT" in logs[0]["error"]
    assert not router.mapped


async def test_a_lease_is_renewed_and_its_loss_is_told_once(
    router: FakeHomeRouter, pmp: NatPmp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_map, "LEASE_S", 1)
    monkeypatch.setattr(port_map, "RETRY_S", 0.05)
    told: list[str | None] = []
    with capture_logs() as logs:
        async with mapped(PORT, told.append, [pmp]) as endpoint:
            router.mapped.clear()
            await wait_until(lambda: bool(router.mapped))
            router.refusal = 4
            await wait_until(lambda: told == [None])
            refused = len(router.requests)
            await wait_until(lambda: len(router.requests) > refused + 2)
            router.refusal, router.public_address = 0, "198.51.100.12"
            await wait_until(lambda: len(told) == 2)
    assert endpoint == f"198.51.100.11:{PORT}"
    assert told == [None, f"198.51.100.12:{PORT}"]
    assert [line["event"] for line in logs].count("port mapping lost") == 1


async def test_home_routers_are_found_and_asked_for_nothing(
    router: FakeHomeRouter, pmp: NatPmp, igd: Upnp
) -> None:
    found = await find_home_routers([pmp, igd, NatPmp((LOOPBACK, 9))])
    assert found == [HomeRouter("NAT-PMP", "198.51.100.11"), HomeRouter("UPnP", "198.51.100.11")]
    assert not router.mapped
    assert not [each for each in router.requests if "AddPort" in each]


async def test_without_the_library_upnp_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, pmp: NatPmp, router: FakeHomeRouter
) -> None:
    monkeypatch.setitem(sys.modules, "miniupnpc", None)
    with pytest.raises(NovaMeshError) as refused:
        await find_home_routers([NatPmp((LOOPBACK, 9)), Upnp(LOOPBACK)])
    assert refused.value.code is Code.UNSUPPORTED
    assert "novamesh[upnp]" in refused.value.hint
    assert len(await find_home_routers([pmp, Upnp(LOOPBACK)])) == 1


async def test_nobody_answers_on_an_empty_network() -> None:
    with pytest.raises(NovaMeshError) as refused:
        await Upnp(LOOPBACK, SEARCH_MS).look()
    assert refused.value.code is Code.UNAVAILABLE
    assert await find_home_routers([NatPmp((LOOPBACK, 9))]) == []


async def test_a_node_that_is_stopped_does_not_wait_for_a_slow_router(
    router: FakeHomeRouter, pmp: NatPmp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_map, "CLOSE_S", 0.05)
    async with asyncio.timeout(5), mapped(PORT, ways=[pmp]):
        router.lost = 1_000
