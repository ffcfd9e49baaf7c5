"""The owner's service over gRPC: signed with the coordinator's key or refused, acting once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import BanOrder, Envelope, NodesQuery, NodeView
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import ClientActor, NodeActor
from support.memory_channel import AttachCall, Caller, call, serve_in_memory
from support.parties import COORDINATOR


class Owner(ClientActor):
    """An actor with the coordinator's own key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.key = COORDINATOR


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def query(by: ClientActor) -> Envelope:
    return by.sign(NodesQuery(by.header(now_ms())))


def order(by: ClientActor, member: NodeActor, lift: bool = False) -> pb.BanRequest:
    made = BanOrder(by.header(now_ms()), member.id, "" if lift else "floods", lift)
    return pb.BanRequest(order=wire.to_pb(by.sign(made)))


async def nodes(caller: Caller, by: ClientActor) -> list[NodeView]:
    reply = await call(caller.admin.ListNodes, pb.ListNodesRequest(query=wire.to_pb(query(by))))
    return [wire.from_pb(NodeView, view) for view in reply.nodes]


async def test_the_owner_lists_bans_and_lets_in_again(tmp_path: Path) -> None:
    owner = Owner("owner", COORDINATOR.node_id)
    async with serve_in_memory(tmp_path) as (_, channel):
        caller, node = Caller(channel), NodeActor("node", COORDINATOR.node_id)
        await caller.join(node.claim(now_ms()))
        attached = AttachCall(channel, node)
        await attached.open(now_ms())
        (view,) = await nodes(caller, owner)
        assert (view.node, view.attached, view.free_slots) == (node.id, True, node.slots)
        request = order(owner, node)
        await call(caller.admin.Ban, request)
        (view,) = await nodes(caller, owner)
        assert (view.attached, view.note) == (False, "banned: floods")
        with pytest.raises(NovaMeshError) as refused:
            await call(caller.admin.Ban, request)  # the same order acts once
        assert refused.value.code is Code.REPLAYED
        await call(caller.admin.Ban, order(owner, node, lift=True))
        (view,) = await nodes(caller, owner)
        assert view.note == ""


async def test_a_member_is_not_the_owner(tmp_path: Path) -> None:
    member, node = (make("m", COORDINATOR.node_id) for make in (ClientActor, NodeActor))
    assert isinstance(node, NodeActor)
    assert isinstance(member, ClientActor)
    async with serve_in_memory(tmp_path) as (_, channel):
        caller = Caller(channel)
        await caller.join(member.claim(now_ms()))
        for ask in (
            lambda: nodes(caller, member),
            lambda: call(caller.admin.Ban, order(member, node)),
        ):
            with pytest.raises(NovaMeshError) as refused:
                await ask()
            assert refused.value.code is Code.FORBIDDEN
