"""The flags are keys of the coordinator's configuration, which says where the broker is."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from novamesh.cli import app
from novamesh_coordinator.broker_flags import NOT_GIVEN, ServeBrokerFlags
from novamesh_coordinator.config import find_broker, find_folder, load_config
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from support.mosquitto import DEPLOYED


def broker_of(
    home: Path, flags: ServeBrokerFlags, env: dict[str, str] | None = None
) -> Broker | None:
    return find_broker(load_config(find_folder(home, {}), flags.flags(), env or {}))


def test_commands_of_the_deployment_are_ours() -> None:
    text = (DEPLOYED / "README.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("novamesh ")]
    assert len(commands) == 3
    for command in commands:
        app.parse_args(command[1:], exit_on_error=False, print_error=False)


def test_no_flag_is_no_broker(tmp_path: Path) -> None:
    assert broker_of(tmp_path, NOT_GIVEN) is None


def test_a_flag_is_stronger_than_the_environment(tmp_path: Path) -> None:
    env = {
        "NOVAMESH_COORDINATOR_MQTT": "mqtts://a.example",
        "NOVAMESH_COORDINATOR_MQTT_CA": "ca.pem",
    }
    found = broker_of(tmp_path, ServeBrokerFlags("mqtts://b.example", "secret"), env)
    assert found == Broker("b.example", 8883, True, "", "secret", "ca.pem")


@pytest.mark.parametrize(
    ("listen", "dialled"),
    [
        (None, Broker("127.0.0.1", 1883, False)),
        ("0.0.0.0:1999", Broker("127.0.0.1", 1999, False)),
        ("[::]:1999", Broker("::1", 1999, False)),
        ("192.0.2.1:1999", Broker("192.0.2.1", 1999, False)),
    ],
)
def test_the_small_broker_is_dialled_where_it_listens(
    listen: str | None, dialled: Broker, tmp_path: Path
) -> None:
    flags = ServeBrokerFlags(embedded_broker=True, broker_listen=listen)
    assert broker_of(tmp_path, flags) == dialled


@pytest.mark.parametrize(
    "flags",
    [
        ServeBrokerFlags("broker.example"),
        ServeBrokerFlags(mqtt_ca="ca.pem"),
        ServeBrokerFlags("mqtt://127.0.0.1", embedded_broker=True),
        ServeBrokerFlags(embedded_broker=True, broker_listen="127.0.0.1:0"),
        ServeBrokerFlags(embedded_broker=True, broker_listen="here"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: ServeBrokerFlags, tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        broker_of(tmp_path, flags)
    assert caught.value.code is Code.BAD_CONFIG
