"""AdminService: what the pool's owner asks, signed with the coordinator's own key."""

from __future__ import annotations

from typing import Any

from novamesh_coordinator.inputs import BanAsked, NodesAsked
from novamesh_coordinator.service import Context, Door, guarded
from novamesh_proto import wire
from novamesh_proto.limits import POOL_NODES_MAX
from novamesh_proto.messages import BanOrder, NodesQuery
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc


class AdminService(coordinator_pb2_grpc.AdminServiceServicer):
    """The coordinator's side for its owner."""

    def __init__(self, door: Door) -> None:
        self.door = door

    @guarded
    async def ListNodes(
        self, request: pb.ListNodesRequest, context: Context
    ) -> pb.ListNodesResponse:
        """Who is here?"""
        query = self.door.open_order(request.query, NodesQuery)
        views: Any = await self.door.sequencer.submit(NodesAsked(query))
        return pb.ListNodesResponse(nodes=[wire.to_pb(view) for view in views[:POOL_NODES_MAX]])

    @guarded
    async def Ban(self, request: pb.BanRequest, context: Context) -> pb.BanResponse:
        """Keep this member out, or let it in again."""
        order = self.door.open_order(request.order, BanOrder)
        await self.door.sequencer.submit(BanAsked(order))
        return pb.BanResponse()
