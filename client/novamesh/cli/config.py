"""`novamesh config …`: what this machine is set to, and where that is written."""

from __future__ import annotations

from cyclopts import App

from novamesh import settings
from novamesh.cli.output import say, write, write_json, write_table
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.config import ClientSettings, Pool, save_setting
from novamesh_proto.errors import Code, NovaMeshError

app = App(name="config", help="What this machine is set to.")

_SECTIONS: dict[str, type] = {"client": ClientSettings, "pool": Pool}
_SECRET = "invite"  # noqa: S105, the name of a key and not a secret


@app.command
def show(*, json: Json = False, scope: Scope = HERE) -> None:
    """Print every setting of the client with its value and meaning."""
    config = scope.config()
    values: dict[str, tuple[object, settings.Option]] = {}
    for section, holder in (("client", config.client), ("pool", config.pool or Pool())):
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
    """Write one setting; comments in the file stay.

    Parameters
    ----------
    key
        section.key, such as client.deadline_s.
    value
        The new value.
    """
    section, dot, name = key.partition(".")
    if not dot or section not in _SECTIONS:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"unknown key {key!r}",
            "keys are client.NAME and pool.NAME:  novamesh config show",
        )
    parsed = settings.parse(_SECTIONS[section], section, name, value)
    places = scope.places
    save_setting(places, section, name, parsed)
    say(f"{key} = {parsed} in {places.config_file}")
