"""Deliberate bugs on direct paths, in presence and in what is told afterwards.

As in `sabotage`, each is a patch of production code with the sentence that must give it away.
"""

from __future__ import annotations

from typing import Any, Final

from novamesh.two_ways import TwoWays
from novamesh_coordinator import sequencer
from novamesh_coordinator.desk import Desk
from novamesh_coordinator.effects import TakeDonation
from novamesh_coordinator.floor import Floor
from novamesh_node.delivery import Delivery
from novamesh_node.descriptor import Advertiser
from novamesh_node.session import Session
from novamesh_proto.envelope import message_id
from support.sim.sabotage import Patch, Sabotage


def a_direct_stream_leaves_out_a_chunk(patch: Patch) -> None:
    """Whoever goes to the node itself asks from one chunk too late."""
    follow = TwoWays._follow_node

    async def late(self: TwoWays, node: Any, stream: int, attempt: int, insist: bool) -> None:
        self._chunks += 1
        await follow(self, node, stream, attempt, insist)

    patch.setattr(TwoWays, "_follow_node", late)


def a_receipt_for_the_node_is_kept_back(patch: Patch) -> None:
    """Nobody is told that the client has the answer of a node that was asked itself."""

    async def keep(self: TwoWays, receipt: Any) -> None:
        if self._line is None:
            await self._pool.submit_receipt(receipt)

    patch.setattr(TwoWays, "submit_receipt", keep)
    patch.setattr(Delivery, "_lacking", lambda self, tail: tail.statements())


def a_claim_goes_without_its_witness(patch: Patch) -> None:
    """What the client signed stays on the node, and the pool has not seen the answer."""
    patch.setattr(Delivery, "witnesses", lambda self: ())
    a_receipt_counts_only_from_its_node(patch)


def a_donation_is_forgotten_once_it_is_told(patch: Patch) -> None:
    """Whether the pool was there to hear it or not."""
    donate = Session.donate

    def careless(self: Session, donation: Any) -> None:
        donate(self, donation)
        self._donations.drop(message_id(donation.terms))  # type: ignore[arg-type]

    patch.setattr(Session, "donate", careless)


def a_donation_is_confirmed_and_not_logged(patch: Patch) -> None:
    """The pool says that it has it."""

    def confirm(self: Floor, turn: Any, said: Any) -> None:
        turn.emit(TakeDonation(said.node, said.session, said.proof.job))

    patch.setattr(Floor, "take_donation", confirm)


def a_node_that_moved_keeps_its_address(patch: Patch) -> None:
    """It tells where it listened first, for ever."""
    listen_at = Advertiser.listen_at

    def stay(self: Advertiser, way: str, endpoints: tuple[str, ...]) -> None:
        if way not in self._endpoints:
            listen_at(self, way, endpoints)

    patch.setattr(Advertiser, "listen_at", stay)


def a_receipt_counts_only_from_its_node(patch: Patch) -> None:
    """What a client hands in itself is no witness of an answer that passed the pool by."""
    take = Desk.take_receipt

    def deaf(self: Desk, turn: Any, asked: Any) -> None:
        stream = self._relay.get(asked.receipt.message.job)
        before = None if stream is None else stream.receipt
        take(self, turn, asked)
        if stream is not None:
            stream.receipt = before

    patch.setattr(Desk, "take_receipt", deaf)


def asked_again_it_promises_sooner(patch: Patch) -> None:
    """Whoever asks a second time is told yes before the first time is written."""
    patch.setattr(sequencer, "PROMISING", ())


DIRECT_SABOTAGES: Final = (
    Sabotage(a_direct_stream_leaves_out_a_chunk, "everybody is honest, and client-", direct=True),
    Sabotage(a_receipt_for_the_node_is_kept_back, "which was paid", 8, direct=True),
    Sabotage(a_claim_goes_without_its_witness, "which was paid", 8, direct=True),
    Sabotage(a_donation_is_confirmed_and_not_logged, "does not know of it", 6, direct=True),
    Sabotage(a_donation_is_forgotten_once_it_is_told, "does not know of it", 89, direct=True),
    Sabotage(a_receipt_counts_only_from_its_node, "which was paid", 16, direct=True),
    Sabotage(a_node_that_moved_keeps_its_address, ", and the pool says", 29, direct=True),
    Sabotage(
        asked_again_it_promises_sooner, "a membership that is not on its disk", 5, direct=True
    ),
)
