"""Whose a message is: by its topic and by who signed it, and nothing else is looked at."""

from __future__ import annotations

import pytest

from novamesh_broker.message import Message, read_descriptor, whose
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX
from novamesh_proto.names import TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic
from support.fake_answer import NETWORK
from support.found_nodes import advert
from support.parties import party

ONE, TWO = party("one"), party("two")
PEER = format_node_id(ONE.node_id)
SEALED = advert(ONE)
GOOD = wire.encode(SEALED)


@pytest.mark.parametrize("kind", [TOPIC_DESCRIPTOR, TOPIC_PRESENCE])
@pytest.mark.parametrize("payload", [b"", GOOD, bytes(DESCRIPTOR_BYTES_MAX)])
def test_a_topic_names_a_node_and_a_kind(kind: str, payload: bytes) -> None:
    message = Message(node_topic(NETWORK, PEER, kind), payload, True)
    assert whose(message, NETWORK) == (ONE.node_id, kind)


@pytest.mark.parametrize(
    ("topic", "payload", "code"),
    [
        (node_topic(NETWORK, PEER, TOPIC_DESCRIPTOR), bytes(2049), Code.TOO_LARGE),
        ("elsewhere", bytes(2049), Code.TOO_LARGE),
        ("elsewhere", GOOD, Code.BAD_REQUEST),
        ("", GOOD, Code.BAD_REQUEST),
        (node_topic("another pool", PEER, TOPIC_DESCRIPTOR), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, PEER, "anything"), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, PEER[:-1], TOPIC_DESCRIPTOR), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, f"{PEER}/x", TOPIC_DESCRIPTOR), GOOD, Code.BAD_REQUEST),
        (node_topic(NETWORK, "1" * 52, TOPIC_DESCRIPTOR), GOOD, Code.BAD_KEY),
    ],
)
def test_what_is_no_message_about_a_node_of_the_pool(
    topic: str, payload: bytes, code: Code
) -> None:
    with pytest.raises(NovaMeshError) as caught:
        whose(Message(topic, payload, True), NETWORK)
    assert caught.value.code is code


def test_a_descriptor_counts_on_the_topic_of_who_signed_it() -> None:
    assert read_descriptor(ONE.node_id, GOOD) == SEALED
    for node, payload, code in (
        (TWO.node_id, GOOD, Code.BAD_KEY),
        (ONE.node_id, b"\xff" * 40, Code.BAD_REQUEST),
    ):
        with pytest.raises(NovaMeshError) as caught:
            read_descriptor(node, payload)
        assert caught.value.code is code
