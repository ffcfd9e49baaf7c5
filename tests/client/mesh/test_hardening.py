"""Each measure is in force, and a libp2p in which one is not is refused."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed

from novamesh.mesh import hardening
from novamesh.mesh.gossip import Gossip
from novamesh.mesh.host import HostConfig, announced, dial, open_host
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(100):
            await main()

    trio.run(bounded)


def _config() -> HostConfig:
    return HostConfig(PrivateKey.generate(), LOOPBACK)


def _gossip(host: Any) -> Gossip:
    return Gossip(host, "pool", lambda data: None, lambda data: None, lambda: 0)


@pytest.mark.parametrize(
    "missing", ["security", "muxer", "slots", "dialler", "rate", "pubsub", "version"]
)
def test_missing_measure_is_told_at_start(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def undo(host: Any, pubsub: Any) -> None:
        swarm = host.get_network()
        match missing:
            case "security":
                swarm.upgrader.security_multistream.transports["/plaintext/2.0.0"] = object()
            case "muxer":
                swarm.upgrader.muxer_multistream.transports["/mplex/6.7.0"] = object()
            case "slots":
                del swarm._do_handle_inbound_connection
            case "dialler":
                del swarm.auto_connector.maybe_connect
            case "rate":
                pubsub.router.max_messages_per_topic_per_second = 10.0
            case "pubsub":
                pubsub.max_inbound_rpc_size = 1 << 20
            case "version":
                monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.0")

    async def main() -> None:
        async with open_host(_config()) as host:
            pubsub = _gossip(host).pubsub
            hardening.assert_hardened(host, pubsub)
            undo(host, pubsub)
            with pytest.raises(NovaMeshError) as raised:
                hardening.assert_hardened(host, pubsub)
            assert raised.value.code is Code.UNSUPPORTED
            assert "0.8.1" in raised.value.hint

    _run(main)


def test_plain_pubsub_is_told_at_start() -> None:
    async def main() -> None:
        async with open_host(_config()) as host:
            plain = Pubsub(host, GossipSub(["/meshsub/1.1.0"], 6, 4, 12))
            with pytest.raises(NovaMeshError, match="guarded"):
                hardening.assert_hardened(host, plain)

    _run(main)


def test_swarm_made_otherwise_is_refused() -> None:
    with pytest.raises(NovaMeshError, match="_do_handle_inbound_connection"):
        hardening.free_inbound_slots(object())


def test_inbound_slot_is_given_back_and_no_socket_stays_open() -> None:
    visits = 12  # one by one through two slots

    async def main() -> None:
        async with open_host(_config()) as host:
            swarm = host.get_network()
            swarm._inbound_limiter = trio.CapacityLimiter(2)
            node = hardening_node(host)
            for _ in range(visits):
                async with open_host(HostConfig(PrivateKey.generate(), ())) as visitor:
                    await dial(visitor, node, announced(host))
                with trio.fail_after(20):
                    while swarm._inbound_limiter.borrowed_tokens:  # noqa: ASYNC110
                        await trio.sleep(0.01)
            assert not host.get_connected_peers()

    _run(main)


def hardening_node(host: Any) -> Any:
    """The NodeId of a host."""
    return host.get_id().to_bytes()


def test_frame_that_cannot_be_read_ends_its_sender_only() -> None:
    async def main() -> None:
        async with open_host(_config()) as host, open_host(_config()) as bad:
            gossip = _gossip(host)
            async with (
                background_trio_service(gossip.router),
                background_trio_service(gossip.pubsub),
            ):
                await gossip.pubsub.wait_until_ready()
                await dial(bad, hardening_node(host), announced(host))
                stream = await bad.new_stream(host.get_id(), ["/meshsub/1.1.0"])
                await stream.write(encode_varint_prefixed(b"\xff" * 20))
                with trio.fail_after(20):
                    while not gossip.pubsub.blacklisted_peers:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert gossip.pubsub.blacklisted_peers == {bad.get_id()}
                assert gossip.pubsub.manager.is_running

    _run(main)


def test_message_whose_handling_raises_is_dropped() -> None:
    async def main() -> None:
        async with open_host(_config()) as host:
            pubsub = _gossip(host).pubsub
            await pubsub.push_msg(host.get_id(), object())

    _run(main)
