"""One machine of a mesh with homes behind NAT, in a process of its own.

`python -m support.mesh_home ROLE FOLDER BOOTSTRAP…`: `relay` says where it is; `node` serves an
echo through tunnels and says when it can be reached through a relay; `client` finds the node, asks
it through tunnels, one after the other, and says for each which connections led to it. Each says
what it says as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc.aio

from novamesh.mesh.host import peer_of
from novamesh.mesh.relay import is_circuit
from novamesh_proto.messages import NodeId
from support.mesh_peers import Attendee, mesh_config, until

LISTEN = ("/ip4/0.0.0.0/tcp/4001",)


class Echo(grpc.GenericRpcHandler):
    """Answers what it was asked."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """One handler for every method."""

        async def answer(request: bytes, context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


async def relay(folder: Path) -> None:
    """A public machine that passes streams on."""
    async with Attendee(mesh_config(folder, listen=LISTEN, relay=True)) as attendee:
        say(at=attendee.mesh.addresses)
        await asyncio.Event().wait()


async def node(folder: Path, bootstrap: tuple[str, ...]) -> None:
    """A volunteer at home."""
    socket = folder / "s"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    config = mesh_config(folder, bootstrap, listen=LISTEN, serve_socket=socket)
    async with Attendee(config) as attendee:
        await until(lambda: any(map(is_circuit, attendee.mesh.addresses)))
        say(at=attendee.mesh.addresses)
        while True:
            attendee.say()
            await asyncio.sleep(2)


async def client(folder: Path, bootstrap: tuple[str, ...]) -> None:
    """Somebody at another home who asks the node, for as long as he is let."""
    async with Attendee(mesh_config(folder, bootstrap, listen=LISTEN)) as attendee:
        await until(lambda: attendee.heard)
        name, said = next(iter(attendee.heard.items()))
        while True:
            async with attendee.mesh.open_tunnel(name, said.addresses) as address:
                options = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.insecure_channel(address, options=options) as channel:
                    answer = await channel.unary_unary("/test/Ask")(b"x" * 500, timeout=30)
            say(answered=len(answer), kinds=_kinds(attendee, name))
            await asyncio.sleep(1)


def _kinds(attendee: Attendee, name: NodeId) -> list[str]:
    peer = attendee.mesh._supervisor.value
    assert peer is not None
    found = peer._host.get_network().get_connections(peer_of(name))
    return [connection.get_connection_type().name for connection in found]


def say(**values: object) -> None:
    """One line for who started us."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _, role, place, *where = sys.argv
    if role == "relay":
        asyncio.run(relay(Path(place)))
    elif role == "node":
        asyncio.run(node(Path(place), tuple(where)))
    else:
        asyncio.run(client(Path(place), tuple(where)))
