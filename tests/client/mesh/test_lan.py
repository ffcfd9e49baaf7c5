"""Peers on the local network: only private addresses, only of this pool, and nothing proven."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import trio
from zeroconf import ServiceInfo, Zeroconf

from novamesh.mesh import lan
from novamesh.mesh.lan import SERVICE, announced_on_lan, is_private, peer_of_service, service_info
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import NodeId

NODE = PrivateKey.generate().node_id
NEAR = ("/ip4/10.1.2.3/tcp/7710", "/ip4/127.0.0.1/tcp/1")


def test_what_one_says_the_other_understands() -> None:
    info = service_info(NODE, "pool", (*NEAR, "/ip4/8.8.8.8/tcp/1"))
    assert peer_of_service(info, "pool") == (NODE, NEAR)
    assert peer_of_service(info, "another") is None


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {b"network": None},
        {b"network": b"\xff" * 16},
        {b"address0": b"/ip4/10.0.0.1/tcp/1"},
    ],
)
def test_service_of_another_kind_is_nobody(properties: dict[str | bytes, Any]) -> None:
    info = ServiceInfo(SERVICE, f"{format_node_id(NODE)}.{SERVICE}", properties=properties)
    assert peer_of_service(info, "pool") is None


def test_name_that_is_no_peer_is_nobody() -> None:
    info = service_info(NODE, "pool", NEAR)
    strange = ServiceInfo(SERVICE, f"somebody.{SERVICE}", properties=info.properties)
    assert peer_of_service(strange, "pool") is None


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("/ip4/192.168.1.7/tcp/1", True),
        ("/ip4/8.8.8.8/tcp/1", False),
        ("/ip6/fe80::1/tcp/1", True),
        ("/dns4/example.org/tcp/1", False),
        ("nonsense", False),
        ("\ufffd", False),
    ],
)
def test_only_private_addresses_are_taken(address: str, private: bool) -> None:
    assert is_private(address) is private


def test_two_machines_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "Zeroconf", functools.partial(Zeroconf, interfaces=["127.0.0.1"]))
    other = PrivateKey.generate().node_id
    found: dict[NodeId, tuple[str, ...]] = {}

    async def main() -> None:
        with trio.fail_after(60):
            async with (
                announced_on_lan(NODE, "pool", NEAR, found.__setitem__),
                announced_on_lan(other, "pool", NEAR, lambda node, addresses: None),
            ):
                while other not in found:  # noqa: ASYNC110  another thread tells it
                    await trio.sleep(0.05)

    trio.run(main)
    assert found[other] == NEAR


def test_network_without_multicast_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError("no multicast")

    monkeypatch.setattr(lan, "Zeroconf", refuse)

    async def main() -> None:
        async with announced_on_lan(NODE, "pool", NEAR, lambda node, addresses: None):
            await trio.lowlevel.checkpoint()

    trio.run(main)
    assert "mDNS does not work here: no multicast" in caplog.text
