"""What must hold besides where clients reach nodes themselves: pay, donated work, who is found.

As in `invariants`, each check gives sentences for what is wrong. A node is held to have met the
pool again if it is attached at the end, and kept in memory what it had to tell: it was not killed
since the answer was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from novamesh.completion import AnswerPart
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, Record, WorkDonated
from novamesh_proto.messages import JobId, NodeId
from support.sim.client import Client, Wish
from support.sim.node import Node
from support.sim.swarm import Swarm


def _paid(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: what a client has whole is paid, all of it and once, where node and pool met again."""
    settled: dict[JobId, list[int]] = {}
    for record in records:
        if isinstance(record, AttemptSettled) and record.completion_tokens:
            settled.setdefault(record.job, []).append(record.completion_tokens)
    for client, _, part, node in _parts(swarm):
        if part.donated or not part.path or node.name not in swarm.met:
            continue
        sent, paid = part.end - part.start, settled.get(part.job, [])
        if paid != [sent] and (sent or paid):
            how = f"{sent} tokens of an answer ({part.path})"
            yield f"{client.name} has {how} from {node.name}, which was paid {paid}"


def _donated(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: donated work is logged once and paid by nobody; what its client confirmed, always."""
    given = [record.job for record in records if isinstance(record, WorkDonated)]
    admitted = {r.job for r in records if isinstance(r, JobAdmitted)}
    for job in dict.fromkeys(given):
        if given.count(job) > 1:
            yield f"donation {job.hex()[:8]} was logged twice"
        if job in admitted:
            yield f"donation {job.hex()[:8]} is a job of the pool's as well"
    for node in (node for node in swarm.nodes if node.honest):
        if left := len(node.donations.pending()):
            yield f"{node.name} still has {left} donations that the pool was never told of"
        for job in node.donations.added:
            if node.name in swarm.met and job not in given:
                yield f"{node.name} donated {job.hex()[:8]}, and the log does not know of it"
    # Where links break, a client's word may never reach the node.
    for client, _, part, node in _parts(swarm) if swarm.quiet else ():
        if part.donated and part.path and part.job not in node.donations.added:
            yield f"{client.name} confirmed what {node.name} donated, which did not keep that"


def _found(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """Who is here at the end is found, and where it is: in the pool's list and by the broker."""
    del records
    for node in (node for node in swarm.nodes if node.name in swarm.met and node.honest):
        for way, told in swarm.told_of(node).items():
            if told is None:
                yield f"{node.name} is here, and {way} does not say so"
            elif node.listens and node.address not in told:
                yield f"{node.name} is at {node.address}, and {way} says {', '.join(told)}"


def _parts(swarm: Swarm) -> Iterator[tuple[Client, Wish, AnswerPart, Node]]:
    """What honest clients hold from honest nodes that have not been killed since."""
    nodes: dict[NodeId, Node] = {node.key.node_id: node for node in swarm.nodes if node.honest}
    for client in (client for client in swarm.clients if client.honest):
        for wish in (*client.wishes, *client.resumed):
            for part in wish.completion.parts if wish.completion is not None else ():
                node = nodes.get(part.node)
                if node is not None and node.died_s < wish.began_s:
                    yield client, wish, part, node


DIRECT_CHECKS = (_paid, _donated, _found)
