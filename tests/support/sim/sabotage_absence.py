"""Deliberate bugs in what happens while somebody is away: donated work, blame, patience.

As in `sabotage`, each is a patch of production code with the sentence that must give it away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from novamesh.session import JobSession
from novamesh_coordinator.donations import Donations
from novamesh_coordinator.floor import Floor
from support.sim.sabotage import Patch, Sabotage


def a_donation_is_never_confirmed(patch: Patch) -> None:
    """The node keeps what the pool has logged, for ever."""

    def take(self: Floor, turn: Any, said: Any) -> None:
        self._donations.take(turn, said.proof)

    patch.setattr(Floor, "take_donation", take)


def a_donation_counts_as_often_as_it_is_told(patch: Patch) -> None:
    """Nobody remembers what was logged, nor says that it was."""
    take = Donations.take
    a_donation_is_never_confirmed(patch)

    def forgetful(self: Donations, turn: Any, proof: Any) -> None:
        self._jobs.clear()
        take(self, turn, proof)

    patch.setattr(Donations, "take", forgetful)


def a_stopping_pool_takes_its_nodes_for_lost(patch: Patch) -> None:
    """It says goodbye to them, and blames them for going."""
    detach = Floor.detach
    patch.setattr(
        Floor, "detach", lambda self, turn, gone: detach(self, turn, replace(gone, stopping=False))
    )


def nobody_stops_waiting(patch: Patch) -> None:
    """A session waits for its job, however long that takes."""

    async def wait(self: JobSession, deadline_s: float, work: Any) -> Any:
        del deadline_s
        return await work()

    patch.setattr(JobSession, "_guard", wait)


ABSENCE_SABOTAGES: Final = (
    Sabotage(a_donation_is_never_confirmed, "that the pool was never told of", 6, direct=True),
    Sabotage(a_donation_counts_as_often_as_it_is_told, "was logged twice", 55, direct=True),
    Sabotage(a_stopping_pool_takes_its_nodes_for_lost, "no node was away, and", 278),
    Sabotage(nobody_stops_waiting, "after the deadline", 18),
)
