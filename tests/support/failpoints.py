"""Named places in production code where a process can be made to die, and a coordinator that does.

Nothing of this is in the production code: a place is patched in the child process alone, which
then kills itself with SIGKILL when it is there for the n-th time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog

from novamesh_coordinator import server, snapshotter
from novamesh_coordinator.clearing import Clearing
from novamesh_coordinator.config import CoordinatorConfig, Folder
from novamesh_coordinator.core import Core
from novamesh_coordinator.desk import Desk
from novamesh_coordinator.dispatcher import Dispatcher
from novamesh_coordinator.floor import Floor
from novamesh_coordinator.high_water import HighWater
from novamesh_coordinator.hub import Hub
from novamesh_coordinator.membership import Membership
from novamesh_coordinator.pool_service import PoolService
from novamesh_coordinator.relay import Relay
from novamesh_coordinator.sequencer import Sequencer
from novamesh_coordinator.store import Store

SNAPSHOT_EVERY: Final = 5  # records: a short story has many
Die = Callable[[], None]
Plant = Callable[[Die], None]


@dataclass(frozen=True)
class Place:
    """Where a process may die; in a short story it gets there at least `often` times."""

    plant: Plant
    often: int = 4


def _before(owner: Any, name: str) -> Plant:
    return lambda die: _wrap(owner, name, first=die)


def _after(owner: Any, name: str) -> Plant:
    return lambda die: _wrap(owner, name, last=die)


def _wrap(owner: Any, name: str, first: Die = lambda: None, last: Die = lambda: None) -> None:
    usual = getattr(owner, name)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        first()
        result = await usual(*args, **kwargs)
        last()
        return result

    def called(*args: Any, **kwargs: Any) -> Any:
        first()
        result = usual(*args, **kwargs)
        last()
        return result

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(usual) else called)


def _at_commit(die: Die) -> None:
    """Everything is written, and the transaction not yet ended."""
    sa.event.listen(sa.Engine, "commit", lambda connection: die())


FAILPOINTS: Final[dict[str, Place]] = {
    "store.before_commit": Place(_before(Store, "commit"), 12),
    "store.at_commit": Place(_at_commit, 12),
    "store.after_commit": Place(_after(Store, "commit"), 12),
    "store.before_parts": Place(_before(Store, "save_parts"), 3),
    "store.after_parts": Place(_after(Store, "save_parts"), 3),
    "store.before_snapshot": Place(_before(Store, "save_snapshot"), 3),
    "store.after_snapshot": Place(_after(Store, "save_snapshot"), 3),
    "store.after_drop": Place(_after(Store, "drop_parts"), 2),
    "store.before_body": Place(_before(Store, "body")),
    "high_water.before_write": Place(_before(HighWater, "write"), 12),
    "high_water.after_write": Place(_after(HighWater, "write"), 12),
    "sequencer.before_release": Place(_before(Sequencer, "_release"), 30),
    "sequencer.after_release": Place(_after(Sequencer, "_release"), 30),
    "sequencer.after_step": Place(_after(Sequencer, "_step"), 40),
    "core.after_apply": Place(_after(Core, "apply"), 20),
    "core.after_recover": Place(_after(Core, "recover"), 1),
    "membership.after_join": Place(_after(Membership, "join"), 3),
    "desk.before_submit": Place(_before(Desk, "submit")),
    "desk.after_submit": Place(_after(Desk, "submit")),
    "desk.after_receipt": Place(_after(Desk, "take_receipt"), 3),
    "dispatcher.before_assign": Place(_before(Dispatcher, "_begin")),
    "dispatcher.after_assign": Place(_after(Dispatcher, "_begin")),
    "dispatcher.after_accept": Place(_after(Dispatcher, "accept")),
    "dispatcher.before_complete": Place(_before(Dispatcher, "complete")),
    "dispatcher.after_complete": Place(_after(Dispatcher, "complete")),
    "clearing.after_clear": Place(_after(Clearing, "clear")),
    "floor.after_attach": Place(_after(Floor, "attach"), 2),
    "floor.before_attest": Place(_before(Floor, "attest")),
    "relay.after_chunk": Place(_after(Relay, "add_chunk"), 20),
    "relay.after_checkpoint": Place(_after(Relay, "add_checkpoint"), 1),
    "hub.before_deliver": Place(_before(Hub, "deliver"), 30),
    "hub.after_deliver": Place(_after(Hub, "deliver"), 30),
    "pool_service.after_submit": Place(_after(PoolService, "Submit")),
    "server.after_load": Place(_after(server, "load_core"), 1),
}


def plant(name: str, times: int) -> None:
    """Die with SIGKILL at that place, the `times`-th time."""
    left = times

    def die() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    FAILPOINTS[name].plant(die)


def quiet() -> None:
    """No log of this process is shown."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def serve(folder: Path, config: CoordinatorConfig, name: str, times: int) -> None:
    """A coordinator's process; with a name, one that will die."""
    quiet()
    snapshotter.SNAPSHOT_EVERY = SNAPSHOT_EVERY  # type: ignore[misc]
    if name:
        plant(name, times)
    asyncio.run(server.serve(Folder(folder), config, lambda running: None))
