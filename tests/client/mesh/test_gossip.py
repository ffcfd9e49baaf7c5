"""Descriptors by gossip: who hears what, and what a refusal or a broken check costs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from novamesh.mesh.gossip import Gossip
from novamesh.mesh.host import HostConfig, announced, dial, node_of, open_host
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import GOSSIP_BYTES_MAX


@dataclass
class Ear:
    """A host that takes part in a topic and keeps what it hears."""

    host: Any
    gossip: Gossip
    heard: list[bytes] = field(default_factory=list)

    async def meet(self, other: Ear) -> None:
        """Connect."""
        node = node_of(other.host.get_id())
        assert node is not None
        await dial(self.host, node, announced(other.host))

    async def wait_for(self, data: bytes) -> None:
        """Until it was heard."""
        while data not in self.heard:  # noqa: ASYNC110  nobody would tell
            await trio.sleep(0.01)


def refuse_evil(data: bytes) -> None:
    """A check that refuses some and breaks at some."""
    if data.startswith(b"evil"):
        raise NovaMeshError(Code.BAD_SIGNATURE, "evil")
    if data.startswith(b"odd"):
        raise ZeroDivisionError


@contextlib.asynccontextmanager
async def _ear(network: str = "pool") -> AsyncIterator[Ear]:
    config = HostConfig(PrivateKey.generate(), ("/ip4/127.0.0.1/tcp/0",))
    async with open_host(config) as host:
        heard: list[bytes] = []
        gossip = Gossip(host, network, refuse_evil, heard.append, lambda: 0)
        async with gossip.running():
            yield Ear(host, gossip, heard)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(100):
            await main()

    trio.run(bounded)


def test_descriptor_reaches_those_two_hops_away_and_the_newest_stays() -> None:
    async def main() -> None:
        async with _ear() as one, _ear() as middle, _ear() as far:
            await one.meet(middle)
            await far.meet(middle)
            one.gossip.say(b"first")
            await far.wait_for(b"first")
            one.gossip.say(b"second")
            await far.wait_for(b"second")
            assert one.heard == [], "nobody hears himself"
            async with _ear() as late:
                await late.meet(far)
                await late.wait_for(b"second")
                assert b"first" not in late.heard[late.heard.index(b"second") :]

    _run(main)


def test_what_the_check_refuses_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with _ear() as one, _ear() as other:
            await one.meet(other)
            for bad in (b"evil", b"odd", bytes(GOSSIP_BYTES_MAX + 1)):
                topic = one.gossip._topic
                one.gossip.pubsub.remove_topic_validator(topic)  # an attacker checks nothing
                await one.gossip.pubsub.publish(topic, bad)
            one.gossip.say(b"good")
            await other.wait_for(b"good")
            assert set(other.heard) == {b"good"}

    _run(main)
    assert "checking a descriptor failed: ZeroDivisionError" in caplog.text


def test_pools_do_not_hear_each_other() -> None:
    async def main() -> None:
        async with _ear("pool") as one, _ear("pool") as two, _ear("other") as stranger:
            await one.meet(two)
            await one.meet(stranger)
            one.gossip.say(b"ours")
            stranger.gossip.say(b"theirs")
            await two.wait_for(b"ours")
            assert one.heard == stranger.heard == []

    _run(main)
