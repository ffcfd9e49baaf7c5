"""Processes that may be killed at any time: members of a pool, beside a coordinator that lives."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from support.failpoints import quiet, serve
from support.ports import free_port
from support.real_world import Premises, make_world
from support.sim.parties import Node, Pace

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["support.failpoints", "support.real_world"])


def begin(work: Callable[..., None], *where: Any) -> BaseProcess:
    """A process that does this work."""
    process = PROCESSES.Process(target=work, args=where)
    process.start()
    return process


async def kill(process: BaseProcess) -> None:
    """End it at once, and wait until it is gone."""
    process.kill()
    await asyncio.to_thread(process.join)


def live_as_node(root: Path, port: int, number: int) -> None:
    """A node's process: two slots, and an engine that counts, 20 ms a token."""

    async def live() -> None:
        world = make_world(root, port, random.Random(time.time_ns()))
        await Node(world, number, 2, Pace(0.02, 0.02)).start()
        await asyncio.Event().wait()

    quiet()
    asyncio.run(live())


async def beside_a_coordinator(
    premises: Premises, work: Callable[[], Awaitable[None]], limit_s: float
) -> list[str]:
    """Have work done while a coordinator lives at these premises; what went wrong."""
    premises.furnish()
    coordinator = begin(serve, premises.folder, premises.config, "", 0)
    try:
        async with asyncio.timeout(limit_s):
            await work()
    except TimeoutError:
        return [f"not over within {limit_s:g} s"]
    finally:
        await kill(coordinator)
    return []


def premises_in(root: Path) -> Premises:
    """Those of a coordinator at a free port."""
    return Premises(root / "coordinator", free_port())
