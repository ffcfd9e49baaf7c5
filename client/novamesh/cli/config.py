"""`novamesh config …`: what this machine is set to, and where that is written.

Client, pool, mesh and node share one file. A coordinator has its own, in its own folder, which
these commands leave alone. The node's settings are reached by import string.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

from cyclopts import App

from novamesh import settings
from novamesh.cli.output import say, write, write_json, write_table
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.config import ClientSettings, Pool, read_tables, save_setting
from novamesh.mesh_settings import MeshSettings, load_mesh_settings
from novamesh_proto.errors import Code, NovaMeshError

app = App(name="config", help="What this machine is set to.")

_NODE: Final = "novamesh_node.config"
_SECRET: Final = "invite"  # noqa: S105, the name of a key and not a secret


def sections() -> dict[str, type]:
    """The tables of config.toml and the class whose fields are their keys."""
    node: type = importlib.import_module(_NODE).NodeSettings
    return {"client": ClientSettings, "pool": Pool, "mesh": MeshSettings, "node": node}


@app.command
def show(*, json: Json = False, scope: Scope = HERE) -> None:
    """Print every setting of client, pool, mesh and node with its value and meaning.

    A coordinator has its own config.toml; docs/cli.md lists every setting of every part.
    """
    values: dict[str, tuple[object, settings.Option]] = {}
    for section, holder in _holders(scope).items():
        for key, option in settings.describe(type(holder)).items():
            value = getattr(holder, key)
            hidden = "(hidden)" if key == _SECRET and value else value
            values[f"{section}.{key}"] = (hidden, option)
    if json:
        write_json({key: value for key, (value, _) in values.items()})
        return
    write_table(
        ("KEY", "VALUE", "UNIT", "MEANING"),
        [(key, value, option.unit, option.help) for key, (value, option) in values.items()],
    )


@app.command
def path(*, scope: Scope = HERE) -> None:
    """Print where the configuration file is."""
    write(f"{scope.places.config_file}\n")


@app.command(name="set")
def set_value(key: str, value: str, /, *, scope: Scope = HERE) -> None:
    """Write one setting of client, pool, mesh or node; comments in the file stay.

    Parameters
    ----------
    key
        section.key, such as client.deadline_s.
    value
        The new value.
    """
    section, dot, name = key.partition(".")
    known = sections()
    if not dot or section not in known:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"unknown key {key!r}",
            f"keys are {', '.join(f'{one}.NAME' for one in known)}:  novamesh config show",
        )
    parsed = settings.parse(known[section], section, name, value)
    places = scope.places
    save_setting(places, section, name, parsed)
    say(f"{key} = {parsed} in {places.config_file}")


def _holders(scope: Scope) -> dict[str, Any]:
    """What each section is set to now, by the rules of its part."""
    config = scope.config()
    file = config.places.config_file
    table = read_tables(file).get("node")
    node: Any = settings.resolve(
        sections()["node"], "node", env=os.environ, table=table, file=str(file)
    )
    mesh = load_mesh_settings(config.places)
    return {"client": config.client, "pool": config.pool or Pool(), "mesh": mesh, "node": node}
