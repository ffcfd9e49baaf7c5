"""What a node tells the coordinator of work that it did for a client alone."""

from __future__ import annotations

from novamesh_proto import envelope
from novamesh_proto.limits import LEASE_MS, RECORD_LIFE_MS
from novamesh_proto.messages import Donation, FinishReason, JobAssignment
from support.actors import ClientActor, NodeActor
from support.table import Table


def donated(table: Table, client: ClientActor, node: NodeActor, **receipt: object) -> Donation:
    """Work that a node did for a client alone."""
    descriptor = node.descriptor(table.now_ms)
    header = client.header(table.now_ms, node.id)
    order = client.seal([descriptor], table.now_ms, header=header)
    parties = node.header(table.now_ms, node.id, client.id, in_reply_to=order.terms.id)
    own = node.sign(JobAssignment(parties, order.id, node.id, 1, 1, LEASE_MS))
    attempt = node.take(own, order.job)
    attempt.chunk(3, final=True)
    claim = attempt.attest(table.now_ms, FinishReason.STOP)
    answers = client.header(
        table.now_ms, node.id, in_reply_to=envelope.message_id(claim), life_ms=RECORD_LIFE_MS
    )
    said = client.countersign(attempt, table.now_ms, header=answers, **receipt)
    return Donation(order.job.terms, own, claim, said, descriptor)
