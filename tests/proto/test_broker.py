"""Addresses of brokers, and what is told of one that comes and goes."""

from __future__ import annotations

import random

import pytest

from novamesh_proto.broker import (
    PAUSE_LEAST_S,
    PAUSE_MOST_S,
    STEADY_S,
    Broker,
    Contact,
    read_broker,
)
from novamesh_proto.errors import Code, NovaMeshError


@pytest.mark.parametrize(
    ("address", "broker", "shown"),
    [
        ("mqtt://127.0.0.1", Broker("127.0.0.1", 1883, False), "mqtt://127.0.0.1:1883"),
        ("mqtts://b.example", Broker("b.example", 8883, True), "mqtts://b.example:8883"),
        ("mqtts://me@b.example:1/", Broker("b.example", 1, True, "me"), "mqtts://b.example:1"),
        ("mqtts://a%40b@[fd00::1]:9", Broker("fd00::1", 9, True, "a@b"), "mqtts://[fd00::1]:9"),
    ],
)
def test_address(address: str, broker: Broker, shown: str) -> None:
    assert read_broker(address) == broker
    assert str(broker) == shown


def test_no_address_is_no_broker() -> None:
    assert read_broker("") is None


def test_files() -> None:
    found = read_broker("mqtts://b.example", "password", "ca.pem")
    assert found == Broker("b.example", 8883, True, "", "password", "ca.pem")


@pytest.mark.parametrize(
    ("address", "password_file", "ca_file", "said"),
    [
        ("b.example:1883", "", "", "no broker's address"),
        ("http://b.example", "", "", "no broker's address"),
        ("mqtt://", "", "", "no broker's address"),
        ("mqtt://b.example:99999", "", "", "no broker's address"),
        ("mqtt://b.example:x", "", "", "no broker's address"),
        ("mqtt://b.example/topic", "", "", "no broker's address"),
        ("mqtt://b.example?a=b", "", "", "no broker's address"),
        ("mqtt://b.example#a", "", "", "no broker's address"),
        ("mqtt://[::1", "", "", "no broker's address"),
        ("mqtts://me:secret@b.example", "", "", "holds a password"),
        ("", "password", "", "but no broker"),
        ("", "", "ca.pem", "but no broker"),
        ("mqtt://b.example", "", "ca.pem", "no TLS"),
        ("mqtt://b.example", "password", "", "in the clear"),
    ],
)
def test_refusals(address: str, password_file: str, ca_file: str, said: str) -> None:
    with pytest.raises(NovaMeshError, match=said) as caught:
        read_broker(address, password_file, ca_file)
    assert caught.value.code is Code.BAD_CONFIG
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_password_may_stay_on_this_machine(host: str) -> None:
    assert read_broker(f"mqtt://{host}", "password") is not None


def test_one_line_when_it_is_lost_and_again_only_after_it_was_back() -> None:
    contact = Contact()
    assert contact.describe() == "dialling"
    assert contact.lost("refused", 0.0)
    assert not contact.lost("refused", 1.0)
    assert contact.describe() == "not reached: refused"
    contact.found("5", 2.0)
    assert contact.describe() == "reached (MQTT 5)"
    assert contact.trouble == ""
    assert contact.lost("gone", 3.0)
    assert not contact.lost("refused", 4.0)


class _Most(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def test_pauses_double_until_half_a_minute_and_are_short_after_a_steady_connection() -> None:
    contact, rng = Contact(), _Most()
    pauses = []
    for _ in range(9):
        contact.lost("refused", 0.0)
        pauses.append(contact.pause_s(rng))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    contact.found("5", 10.0)
    contact.lost("gone", 11.0)
    assert contact.pause_s(rng) == PAUSE_MOST_S
    contact.found("5", 20.0)
    contact.lost("gone", 20.0 + STEADY_S)
    assert contact.pause_s(rng) == 1.0
    assert all(PAUSE_LEAST_S <= contact.pause_s(random.Random(n)) <= 1.0 for n in range(50))
