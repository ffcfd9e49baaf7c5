"""Candidates that a pool named for a job, verified before anything is sealed to them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Candidate, NodeDescriptor, PoolModel


def verify_candidates(
    candidates: Sequence[Candidate], model: PoolModel, network: str, now_ms: int
) -> list[tuple[Verified[NodeDescriptor], bytes]]:
    """Those whose descriptor is signed, fresh and offers the model, each with its reservation.

    Raises:
        NovaMeshError: what is wrong with them, if there is none left; BUSY if none was named.
    """
    verified: list[tuple[Verified[NodeDescriptor], bytes]] = []
    refusal = NovaMeshError(Code.BUSY, "the pool named no candidate", "try again shortly")
    for candidate in candidates:
        try:
            opened = envelope.open(
                candidate.descriptor, NodeDescriptor, network=network, now_ms=now_ms
            )
        except NovaMeshError as error:
            refusal = error
            continue
        offers = {offer.model_profile for offer in opened.message.models}
        if model.model_profile in offers:
            verified.append((opened, candidate.reservation))
        else:
            refusal = NovaMeshError(
                Code.CORRUPT, "the pool named a candidate that does not offer the model"
            )
    if not verified:
        raise refusal
    return verified
