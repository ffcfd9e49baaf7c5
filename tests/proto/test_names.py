"""Labels keep keys apart, and every signed message has its own media type."""

from __future__ import annotations

import itertools

from novamesh_proto import names
from support.message_values import MESSAGES

LABELS = {name: value for name, value in vars(names).items() if name.startswith("LABEL_")}


def test_media_types_are_kebab_case() -> None:
    assert names.payload_type("JobTerms") == "application/vnd.novamesh.job-terms.v1+protobuf"
    assert names.payload_type("Settlement") == "application/vnd.novamesh.settlement.v1+protobuf"


def test_no_two_messages_share_a_media_type() -> None:
    types = {names.payload_type(cls.__name__) for cls in MESSAGES}
    assert len(types) == len(MESSAGES)


def test_no_label_begins_another() -> None:
    for one, other in itertools.permutations(LABELS.values(), 2):
        assert not other.startswith(one)


def test_labels_name_protocol_and_version() -> None:
    for name, label in LABELS.items():
        assert label.startswith(b"novamesh/"), name
        assert b"/v1" in label, name


NETWORKS = ("home", "a/b", "a+b", "a#b", "a%2Fb", "Zürich 中", "$SYS", "a\0b", "nodes/x")


def test_a_topic_of_any_network_has_six_levels_which_no_broker_reads_otherwise() -> None:
    for network in NETWORKS:
        topic = names.node_topic(network, "12D3KooW", names.TOPIC_DESCRIPTOR)
        assert len(topic.split("/")) == 6
        assert topic.isascii()
        assert not set("+#$\0") & set(topic)
        assert names.split_node_topic(network, topic) == ("12D3KooW", "descriptor")
    assert names.node_topic("a/b", names.EVERY_NODE, names.TOPIC_PRESENCE) == (
        "novamesh/v1/a%2Fb/nodes/+/presence"
    )


def test_networks_share_no_topic() -> None:
    topics = {names.node_topic(network, "n", names.TOPIC_DESCRIPTOR) for network in NETWORKS}
    assert len(topics) == len(NETWORKS)


def test_other_topics_are_nobodys() -> None:
    for topic in (
        "",
        "x",
        "novamesh/v1/home/nodes",
        "novamesh/v1/home/nodes/n/other",
        "novamesh/v1/home/nodes//presence",
        "novamesh/v1/work/nodes/n/presence",
        "novamesh/v1/home/nodes/n/presence/x",
        "x/novamesh/v1/home/nodes/n/presence",
    ):
        assert names.split_node_topic("home", topic) is None, topic
