"""The facade, with real peers on loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from novamesh.mesh.mesh import Mesh
from novamesh_proto.errors import Code, NovaMeshError
from support.mesh_peers import Attendee, check, mesh_config, until

PROFILE = b"m" * 32


async def test_peers_hear_find_and_know_each_other(tmp_path: Path) -> None:
    async with Attendee(mesh_config(tmp_path)) as boot:
        there = mesh_config(tmp_path, boot.mesh.addresses)
        here = mesh_config(tmp_path, boot.mesh.addresses)
        async with Attendee(there) as one, Attendee(here) as two:
            one.say((PROFILE,))
            two.say()
            await until(lambda: one.knows(two) and two.knows(one))
            await until(lambda: two.mesh.connections == 2 and one.mesh.connections == 2)
            async with asyncio.timeout(60):
                while await two.mesh.find_providers(PROFILE) != (one.node,):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert all("/p2p/" in address for address in one.mesh.addresses)


async def test_peer_is_found_again_by_its_file_alone(tmp_path: Path) -> None:
    old, new = mesh_config(tmp_path), mesh_config(tmp_path)
    async with Attendee(old) as one:
        one.say()
        async with Attendee(new) as two:
            two.mesh.learn(one.node, one.mesh.addresses)
            await until(lambda: two.knows(one))
        one.say()
        async with Attendee(new) as again:  # same file, no bootstrap, nothing learnt
            await until(lambda: again.knows(one))


async def test_crash_of_the_thread_is_repaired_and_what_was_said_is_said_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise OSError("a fault of the library")

    boot, one = Attendee(mesh_config(tmp_path)), Attendee(mesh_config(tmp_path))
    async with boot, one:
        one.mesh.learn(boot.node, boot.mesh.addresses)
        one.say()
        await until(lambda: boot.knows(one))
        boot.heard.clear()
        one.mesh._supervisor.send(lambda peer: peer._nursery.start_soon(fail))
        await until(lambda: one.mesh.restarts == 1 and one.mesh.addresses)
        await until(lambda: boot.knows(one))
    assert caplog.text.count("mesh stopped (OSError: a fault of the library)") == 1


async def test_without_libp2p_it_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NovaMeshError) as raised:
        async with Mesh(mesh_config(tmp_path), check):
            raise AssertionError
    assert raised.value.code is Code.UNSUPPORTED
    assert "pip install" in raised.value.hint


@pytest.mark.parametrize(
    "change",
    [{"listen": ("nowhere",)}, {"bootstrap": ("/ip4/127.0.0.1/tcp/1",)}, {"psk": b"short"}],
)
async def test_config_that_cannot_work_is_told_at_start(
    change: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(NovaMeshError) as raised:
        async with Mesh(mesh_config(tmp_path, **change), check):
            raise AssertionError
    assert raised.value.code is Code.BAD_CONFIG


async def test_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    async def enter() -> None:
        async with Mesh(mesh_config(tmp_path), check):
            await asyncio.sleep(3600)

    task = asyncio.create_task(enter())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_importing_the_facade_imports_no_libp2p() -> None:
    code = (
        "import sys, novamesh.mesh.mesh, novamesh.mesh.installed;"
        " sys.exit(str({'libp2p', 'trio', 'zeroconf', 'multiaddr'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
