"""Hints: said slowly, asked of the network, believed by nobody."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from novamesh.mesh import dht
from novamesh.mesh.dht import KEYS_MAX, RECORDS_MAX, Hints, provider_key
from novamesh.mesh.host import HostConfig, announced, dial, open_host
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import NodeId

PROFILE = b"p" * 32


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(100):
            await main()

    trio.run(bounded)


@contextlib.asynccontextmanager
async def _hints(
    meet: tuple[NodeId, tuple[str, ...]] | None = None, *, serve: bool = True
) -> AsyncIterator[tuple[NodeId, tuple[str, ...], Hints]]:
    key = PrivateKey.generate()
    listen = ("/ip4/127.0.0.1/tcp/0",) if serve else ()
    async with open_host(HostConfig(key, listen)) as host:
        hints = Hints(host, "pool", serve=serve)
        async with hints.running():
            if meet is not None:
                await dial(host, *meet)
                await hints.look_around(host.get_connected_peers())
            yield key.node_id, announced(host), hints


async def _found(hints: Hints, nodes: set[NodeId]) -> None:
    """Until a search finds exactly those."""
    while set(await hints.find(PROFILE)) != nodes:  # noqa: ASYNC110  nobody would tell
        await trio.sleep(0.05)


def test_everybody_finds_all_who_say_so_and_nobody_himself() -> None:
    async def main() -> None:
        async with (
            _hints() as (middle, where, _),
            _hints((middle, where)) as (one, _, first),
            _hints((middle, where)) as (two, _, second),
            _hints((middle, where), serve=False) as (_, _, searcher),
        ):
            first.provide((PROFILE,))
            second.provide((PROFILE, b"q" * 32))
            await _found(searcher, {one, two})
            # What lies in one's own store is not all there is: a provider finds the others.
            await _found(first, {two})
            await _found(second, {one})
            assert await searcher.find(b"r" * 32) == ()

    _run(main)


def test_few_keys_are_said_and_those_of_before_are_not() -> None:
    async def main() -> None:
        async with _hints() as (_, _, hints):
            many = tuple(bytes([number]) * 32 for number in range(2 * KEYS_MAX))
            hints.provide(many)
            assert list(hints._due_s) == [provider_key("pool", one) for one in many[:KEYS_MAX]]
            hints._store.providing_keys.update(hints._due_s)
            hints.provide(many[:1])
            assert hints._store.providing_keys == {provider_key("pool", many[0])}

    _run(main)


def test_store_for_others_is_bounded() -> None:
    async def main() -> None:
        async with _hints() as (_, _, hints):
            hints._store.providers.update({bytes([n % 256, n // 256]): {} for n in range(5000)})
            hints.tidy()
            assert len(hints._store.providers) == RECORDS_MAX

    _run(main)


def test_key_is_one_of_the_pool_and_the_model() -> None:
    keys = {provider_key(pool, model) for pool in ("a", "b") for model in (b"1", b"2")}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert dht.PACE_S * KEYS_MAX < 10, "what is said in ten seconds is taken"
