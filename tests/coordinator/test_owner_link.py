"""The owner's link: pinned, and errors that name the next command."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.owner_link import OwnerLink, open_owner_link
from novamesh_coordinator.server import run_coordinator
from novamesh_coordinator.store import open_store
from novamesh_proto.errors import Code, NovaMeshError
from support.parties import COORDINATOR, NETWORK, party


async def test_refusals_come_through_as_they_are(tmp_path: Path) -> None:
    config = CoordinatorConfig(network=NETWORK, listen="127.0.0.1:0", http="")
    store = await open_store(tmp_path / "coordinator.db")
    async with run_coordinator(PoolIdentity(COORDINATOR, NETWORK), store, config) as running:
        address = f"127.0.0.1:{running.grpc_port}"

        def ask_as(key: object, network: str) -> Code:
            with open_owner_link(address, COORDINATOR, NETWORK) as link:
                other = OwnerLink(link.channel, key, network)  # type: ignore[arg-type]
                with pytest.raises(NovaMeshError) as refused:
                    other.nodes()
                return refused.value.code

        stranger = await asyncio.to_thread(ask_as, party("stranger"), NETWORK)
        assert stranger is Code.WRONG_AUDIENCE
        assert await asyncio.to_thread(ask_as, COORDINATOR, "other") is Code.WRONG_NETWORK
    await store.close()


def test_nobody_at_the_address_names_the_next_command() -> None:
    with (
        pytest.raises(NovaMeshError) as refused,
        open_owner_link("127.0.0.1:1", COORDINATOR, NETWORK),
    ):
        pass
    assert (refused.value.code, refused.value.hint) == (
        Code.UNAVAILABLE,
        "start it with: novamesh coordinator serve",
    )


async def test_a_server_that_goes_away_is_unavailable(tmp_path: Path) -> None:
    config = CoordinatorConfig(network=NETWORK, listen="127.0.0.1:0", http="")
    store = await open_store(tmp_path / "coordinator.db")
    links = []
    async with run_coordinator(PoolIdentity(COORDINATOR, NETWORK), store, config) as running:
        address = f"127.0.0.1:{running.grpc_port}"
        opened = open_owner_link(address, COORDINATOR, NETWORK)
        links.append(await asyncio.to_thread(opened.__enter__))
    await store.close()
    with pytest.raises(NovaMeshError) as refused:
        await asyncio.to_thread(links[0].nodes)
    assert refused.value.code is Code.UNAVAILABLE
    opened.__exit__(None, None, None)
