"""Where clients are told to come: the address that leads here, and no packet to find it."""

from __future__ import annotations

import pytest

from novamesh_node.endpoint import endpoint_of


@pytest.mark.parametrize(
    ("host", "pool", "told"),
    [
        ("203.0.113.7", "127.0.0.1:7700", "203.0.113.7:4001"),
        ("node.example", "127.0.0.1:7700", "node.example:4001"),
        ("0.0.0.0", "127.0.0.1:7700", "127.0.0.1:4001"),
        ("[::]", "127.0.0.1:7700,127.0.0.1:7701", "127.0.0.1:4001"),
        ("0.0.0.0", "no.such.host.invalid:7700", "127.0.0.1:4001"),
        ("0.0.0.0", "no address", "127.0.0.1:4001"),
    ],
)
def test_says_where_clients_reach_this_machine(host: str, pool: str, told: str) -> None:
    assert endpoint_of(host, 4001, pool) == told


@pytest.mark.parametrize(
    ("host", "told"), [("0.0.0.0", "192.0.2.7:4001"), ("203.0.113.7", "203.0.113.7:4001")]
)
def test_without_a_network_the_last_address_stays(host: str, told: str) -> None:
    assert endpoint_of(host, 4001, "no address", "192.0.2.7:4001") == told
