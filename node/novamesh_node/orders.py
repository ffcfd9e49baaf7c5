"""What an owner may ask of a running node over its control socket, and what it answers.

status, stop, finish, pause, resume, why. Rules: an unknown order and an unknown argument are
refused; nothing answered here tells anything of a job's content; times are this machine's, because
only its owner asks here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from novamesh_node import lifecycle
from novamesh_node.clock import Clock
from novamesh_node.control import Reply
from novamesh_node.keeper import Keeper
from novamesh_node.session import Session
from novamesh_proto.errors import Code, NovaMeshError

PAUSE_S_MAX: Final = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Nameplate:
    """What a status says that does not change: who and where."""

    node: str
    version: str
    network: str
    address: str


def _nothing_loaded() -> Mapping[str, Any]:
    return {"hardware": "", "models": [], "devices": []}


class Orders:
    """Answers the control socket."""

    def __init__(
        self,
        keeper: Keeper,
        nameplate: Nameplate,
        save_pause: Callable[[bool, int], None],
        clock: Clock,
    ) -> None:
        self._keeper = keeper
        self._session: Session | None = None
        self._nameplate = nameplate
        self._inventory: Callable[[], Mapping[str, Any]] = _nothing_loaded
        self._save_pause = save_pause
        self._clock = clock
        self._started_ms = clock.monotonic_ms()

    def complete(self, session: Session, inventory: Callable[[], Mapping[str, Any]]) -> None:
        """The models are loaded, which `inventory` tells, and the pool is being dialled."""
        self._session, self._inventory = session, inventory

    async def handle(self, command: str, arguments: Mapping[str, Any]) -> Reply:
        """Carry out one order.

        Raises:
            NovaMeshError: BAD_REQUEST for an unknown order or argument, or what the order meets.
        """
        allowed = {"pause": {"for_s", "now"}}.get(command, set())
        if set(arguments) - allowed:
            raise NovaMeshError(Code.BAD_REQUEST, f"{command!r} takes no such argument")
        match command:
            case "status":
                return self.status()
            case "why":
                return await self._why()
            case "stop":
                self._keeper.apply(lifecycle.Stop())
            case "finish":
                self._keeper.apply(lifecycle.Finish())
            case "pause":
                self._pause(arguments)
            case "resume":
                self._keeper.apply(lifecycle.Resume())
                self._save_pause(False, 0)
            case _:
                raise NovaMeshError(Code.BAD_REQUEST, f"a node knows no order {command!r}")
        return self.status()

    def status(self) -> Reply:
        """Where the node is now."""
        state, plate, session = self._keeper.state, self._nameplate, self._session
        ruling = self._keeper.ruling(zone=None)
        trouble = session.trouble if session else None
        return {
            "node": plate.node,
            "phase": state.phase.value,
            "reason": ruling.reason,
            "resumes_at_ms": state.resumes_at_ms if state.paused else 0,
            "slots": self._keeper.slots,
            "free_slots": ruling.free_slots,
            "running": state.running,
            "taken": self._keeper.taken,
            "pool": plate.network,
            "address": plate.address,
            "attached": session is not None and session.connected,
            "trouble": "" if trouble is None else trouble.message,
            "next_try_s": session.next_try_s if session else 0,
            "clock_offset_ms": session.offset_ms if session else None,
            **self._inventory(),
            "version": plate.version,
            "pid": os.getpid(),
            "uptime_s": (self._clock.monotonic_ms() - self._started_ms) // 1000,
        }

    async def _why(self) -> Reply:
        ruling = self._keeper.ruling(zone=None)
        if self._session is None:
            raise NovaMeshError(Code.UNAVAILABLE, ruling.reason, "ask again in a moment")
        report = await self._session.ask_idle()
        return {
            "accepting": ruling.accepting,
            "reason": ruling.reason,
            "considered": report.considered,
            "chosen": report.chosen,
            "reasons": [{"reason": each.reason, "count": each.count} for each in report.reasons],
        }

    def _pause(self, arguments: Mapping[str, Any]) -> None:
        for_s, now = arguments.get("for_s", 0), arguments.get("now", False)
        if type(for_s) is not int or not 0 <= for_s <= PAUSE_S_MAX or type(now) is not bool:
            raise NovaMeshError(Code.BAD_REQUEST, "a pause lasts up to 30 days, such as 2h or 45m")
        if self._keeper.state.draining:
            raise NovaMeshError(
                Code.CONFLICT, "the node is finishing", "call that off first:  novamesh node resume"
            )
        until_ms = self._clock.wall_ms() + for_s * 1000 if for_s else 0
        # First the pause itself: a full disk must not keep the machine from its owner.
        self._keeper.apply(lifecycle.Pause(until_ms, now))
        self._save_pause(True, until_ms)
