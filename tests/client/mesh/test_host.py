"""A host that is fit for strangers: one key, three protocols, addresses that can be dialled."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport

from novamesh.mesh import host as host_module
from novamesh.mesh.host import (
    HostConfig,
    announced,
    dial,
    node_of,
    open_host,
    parse_address,
    peer_in,
    peer_of,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


def _config(listen: tuple[str, ...] = LOOPBACK, psk: bytes | None = None) -> HostConfig:
    return HostConfig(PrivateKey.generate(), listen, psk)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded)


def test_one_key_is_the_node_and_the_peer() -> None:
    config = _config()
    assert peer_of(config.key.node_id).to_base58() == format_node_id(config.key.node_id)

    async def main() -> None:
        async with open_host(config) as host:
            assert host.get_id() == peer_of(config.key.node_id)
            assert node_of(host.get_id()) == config.key.node_id
            assert announced(host)[0].endswith(f"/p2p/{format_node_id(config.key.node_id)}")

    _run(main)


def test_peer_of_another_kind_of_key_is_none_of_ours() -> None:
    assert node_of(ID(b"\x12\x20" + bytes(32))) is None


def test_wildcard_is_spelt_out_for_others() -> None:
    async def main() -> None:
        async with open_host(_config(("/ip4/0.0.0.0/tcp/0",))) as host:
            assert announced(host)
            assert not [text for text in announced(host) if "/0.0.0.0/" in text]

    _run(main)


def test_dial_tries_each_address_and_reaches_nobody_else() -> None:
    one, other, third = _config(), _config(), _config()

    async def main() -> None:
        async with open_host(one) as host, open_host(other) as target:
            good = announced(target)[0]
            dead = f"/ip4/127.0.0.1/tcp/1/p2p/{format_node_id(other.key.node_id)}"
            with pytest.raises(NovaMeshError) as raised:
                await dial(host, third.key.node_id, [good])
            assert raised.value.code is Code.UNAVAILABLE
            assert await dial(host, other.key.node_id, ["nonsense", dead, good]) == good
            assert await dial(host, other.key.node_id, []) == ""

    _run(main)


def test_key_of_a_private_pool_shuts_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "DIAL_S", 1.0)  # nobody says no: there is only silence
    inside, member, outside = _config(psk=bytes(32)), _config(psk=bytes(32)), _config()

    async def main() -> None:
        async with (
            open_host(inside) as host,
            open_host(member) as friend,
            open_host(outside) as stranger,
        ):
            await dial(friend, inside.key.node_id, announced(host))
            with pytest.raises(NovaMeshError):
                await dial(stranger, inside.key.node_id, announced(host))

    _run(main)


def test_peer_without_encryption_is_refused() -> None:
    keys = create_new_key_pair()
    plain = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
    config = _config()

    async def main() -> None:
        async with open_host(config) as host, plain.run(listen_addrs=[]):
            with pytest.raises(NovaMeshError):
                await dial(plain, config.key.node_id, announced(host))
            assert not host.get_connected_peers()
            await plain.close()

    _run(main)


def test_port_of_somebody_else_is_refused_and_not_shared() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def main() -> None:
            with pytest.raises(NovaMeshError) as raised:
                async with open_host(_config((f"/ip4/127.0.0.1/tcp/{port}",))):
                    raise AssertionError
            assert raised.value.code is Code.BAD_CONFIG

        _run(main)


def test_libraries_say_nothing_in_our_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = _config(), _config()
    said: set[str] = set()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.add(record.name.split(".")[0])

    async def main() -> None:
        async with open_host(one) as host, open_host(other) as target:
            await dial(host, other.key.node_id, announced(target))

    monkeypatch.setattr(logging.root, "handlers", [Ear()])
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    _run(main)
    assert not said & {"libp2p", "multiaddr", "root"}


def test_host_can_come_back_at_its_port() -> None:
    config = _config()

    async def main() -> None:
        async with open_host(config) as host:
            where = announced(host)[0].partition("/p2p/")[0]
        for _ in range(2):
            async with open_host(HostConfig(config.key, (where,))) as host:
                assert announced(host)[0].startswith(where)

    _run(main)


@pytest.mark.parametrize("psk", [b"", bytes(31), bytes(33)])
def test_key_of_another_length_is_refused(psk: bytes) -> None:
    async def main() -> None:
        async with open_host(_config(psk=psk)):
            raise AssertionError

    with pytest.raises(NovaMeshError, match="32 bytes"):
        _run(main)


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:7710", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/1/tcp/2", "/ip4/127.0.0.1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(NovaMeshError) as raised:
        parse_address(text)
    assert raised.value.code is Code.BAD_CONFIG


def test_whole_address_names_its_peer() -> None:
    node = PrivateKey.generate().node_id
    text = f"/ip4/192.0.2.7/tcp/7710/p2p/{format_node_id(node)}"
    assert peer_in(text) == (node, text)
    with pytest.raises(NovaMeshError, match="names no peer"):
        peer_in("/ip4/192.0.2.7/tcp/7710")
