"""The flags are keys of a node's settings, and a broker's address is looked at when they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_broker.flags import NOT_GIVEN, BrokerFlags
from novamesh_node.config import load_node_config
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import JoinCode
from support.parties import COORDINATOR, NETWORK

CODE = format_join_code(JoinCode("127.0.0.1:7700", COORDINATOR.node_id, NETWORK, b"invite"))


def broker_of(home: Path, flags: BrokerFlags, env: dict[str, str] | None = None) -> Broker | None:
    return load_node_config(home, env or {}, flags.flags(), CODE).broker


def test_no_flag_is_no_broker(tmp_path: Path) -> None:
    assert broker_of(tmp_path, NOT_GIVEN) is None


def test_a_flag_is_stronger_than_the_environment(tmp_path: Path) -> None:
    env = {"NOVAMESH_NODE_MQTT": "mqtts://a.example", "NOVAMESH_NODE_MQTT_CA": "ca.pem"}
    found = broker_of(tmp_path, BrokerFlags("mqtts://b.example", "secret"), env)
    assert found == Broker("b.example", 8883, True, "", "secret", "ca.pem")
    assert broker_of(tmp_path, NOT_GIVEN, env) == Broker("a.example", 8883, True, "", "", "ca.pem")


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        broker_of(tmp_path, BrokerFlags("broker.example"))
    assert caught.value.code is Code.BAD_CONFIG
