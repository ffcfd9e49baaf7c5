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
