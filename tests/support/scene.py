"""A pool in which one job is at work on one node."""

from __future__ import annotations

from novamesh_coordinator.effects import StopAttempt
from novamesh_proto.messages import JobState
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.table import Table


class Scene:
    """A job whose only node has taken it."""

    def __init__(self) -> None:
        self.table = Table()
        self.client: ClientActor = self.table.client()
        self.node: NodeActor = self.table.node()
        self.order: Order = self.table.order(self.client, self.node)
        self.attempt: Attempt = self.table.assigned(self.node)
        self.table.decide(self.attempt)
        self.table.taken(StopAttempt)

    @property
    def state(self) -> JobState:
        return self.table.view(self.client, self.order.id).state

    def records(self, kind: type[object]) -> list[object]:
        return [record for record in self.table.log if isinstance(record, kind)]
