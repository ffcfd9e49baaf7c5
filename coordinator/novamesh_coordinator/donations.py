"""Work that nodes did for clients while the coordinator was away: counted, never paid.

Rules: a job is taken once, however often it is told of; what is older than KEPT_MS is not taken, so
what has to be remembered is bounded in time; at REMEMBERED_MAX nothing more is taken until some of
it is that old. Whether the evidence holds was checked before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh_coordinator.effects import Turn
from novamesh_coordinator.events import WorkDonated
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.messages import JobId, NodeId, ReceiptVerdict

KEPT_MS: Final = 7 * 86_400_000
REMEMBERED_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Donated:
    """All that a node ever donated."""

    node: NodeId
    jobs: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class DonationsState:
    """Who donated how much, sorted; and which jobs were taken lately, in their order."""

    donated: tuple[Donated, ...] = ()
    jobs: tuple[tuple[JobId, int], ...] = ()


class Donations:
    """Owns them; changed by records only."""

    def __init__(self, state: DonationsState) -> None:
        self._donated = {each.node: each for each in state.donated}
        self._jobs = dict(state.jobs)

    def dump(self) -> DonationsState:
        """The state."""
        donated = tuple(self._donated[node] for node in sorted(self._donated))
        return DonationsState(donated, tuple(self._jobs.items()))

    def of(self, node: NodeId) -> Donated:
        """What a node has donated."""
        return self._donated.get(node, Donated(node))

    def take(self, turn: Turn, proof: VerifiedReceipt) -> None:
        """Log work that was not told of before.

        Raises:
            NovaMeshError: EXPIRED where it is too old to tell that, BAD_REQUEST where its client
                does not confirm the answer.
        """
        receipt = proof.client_receipt
        if receipt is None or receipt.message.verdict is not ReceiptVerdict.OK:
            raise NovaMeshError(Code.BAD_REQUEST, "its client does not confirm this work")
        expires_ms = proof.terms.message.header.expires_at_ms
        if expires_ms + KEPT_MS < turn.now.wall_ms:
            raise NovaMeshError(Code.EXPIRED, "this work was done too long ago to be counted")
        if proof.job in self._jobs:
            return
        if len(self._jobs) >= REMEMBERED_MAX:
            raise NovaMeshError(Code.BUSY, "no more donations can be counted now")
        assert proof.attestation is not None
        claim = proof.attestation.message
        turn.log(
            WorkDonated(
                job=proof.job,
                at_ms=turn.now.wall_ms,
                node=proof.node,
                client=proof.client,
                model_profile=claim.model_profile,
                prompt_tokens=claim.prompt_tokens,
                completion_tokens=claim.completion_tokens,
                expires_at_ms=expires_ms,
                donation=(
                    proof.terms.envelope,
                    proof.assignment.envelope,
                    proof.attestation.envelope,
                    receipt.envelope,
                ),
            )
        )

    def apply(self, record: WorkDonated) -> None:
        """Count it."""
        before = self.of(record.node)
        self._donated[record.node] = Donated(
            record.node, before.jobs + 1, before.completion_tokens + record.completion_tokens
        )
        self._jobs[record.job] = record.expires_at_ms
        while self._jobs:
            oldest, expires_ms = next(iter(self._jobs.items()))
            if expires_ms + KEPT_MS >= record.at_ms:
                break
            del self._jobs[oldest]
