"""`novamesh key …`: who this machine is, as a client and as a node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from novamesh.cli.output import say, write, write_json
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.keys import create_key, load_key
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id

app = App(name="key", help="This machine's identities.")

OfNode = Annotated[bool, Parameter(negative="", help="The node's key, not the client's.")]


@app.command
def show(*, node: OfNode = False, json: Json = False, scope: Scope = HERE) -> None:
    """Print the PeerId; the key itself is never printed."""
    path = _path(scope, node)
    try:
        peer_id = format_node_id(load_key(path).node_id)
    except NovaMeshError as error:
        if error.code is Code.NOT_FOUND:
            raise NovaMeshError(error.code, error.message, _new_command(node)) from None
        raise
    if json:
        write_json({"peer_id": peer_id, "file": str(path)})
    else:
        write(f"{peer_id}\n")
        say(f"key file {path}")


@app.command
def new(*, node: OfNode = False, json: Json = False, scope: Scope = HERE) -> None:
    """Make a key where there is none; an existing one is never replaced."""
    path = _path(scope, node)
    peer_id = format_node_id(create_key(path).node_id)
    if json:
        write_json({"peer_id": peer_id, "file": str(path)})
    else:
        write(f"{peer_id}\n")
        say(f"made {path}; keep a copy, nobody can restore it")


def _path(scope: Scope, node: bool) -> Path:
    places = scope.places
    return places.node_key if node else places.client_key


def _new_command(node: bool) -> str:
    return "novamesh key new" + " --node" * node
