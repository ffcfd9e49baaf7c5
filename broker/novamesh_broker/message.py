"""What a message at a broker says: whose it is, of which kind, and the descriptor that is in it.

Rules: size is looked at first, then the topic; a descriptor counts on the topic of who signed it
and nowhere else. Whether the signature holds is found out by the table that takes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import NODE_ID_TEXT_CHARS, parse_node_id
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX
from novamesh_proto.messages import Envelope, NodeId
from novamesh_proto.names import split_node_topic


@dataclass(frozen=True, slots=True)
class Message:
    """What a broker passed on; `retained` if it was there before we asked."""

    topic: str
    payload: bytes
    retained: bool


def whose(message: Message, network: str) -> tuple[NodeId, str]:
    """The node that a message is about, and its kind, which is a TOPIC_* of `names`.

    Raises:
        NovaMeshError: TOO_LARGE above what a descriptor may have, BAD_REQUEST if this is no topic
            of a node of this pool, BAD_KEY if its node's name is no PeerId.
    """
    if len(message.payload) > DESCRIPTOR_BYTES_MAX:
        raise NovaMeshError(Code.TOO_LARGE, f"a message of {len(message.payload)} bytes")
    found = split_node_topic(network, message.topic)
    if found is None or len(found[0]) != NODE_ID_TEXT_CHARS:
        raise NovaMeshError(Code.BAD_REQUEST, "this is no topic of a node of this pool")
    return parse_node_id(found[0]), found[1]


def read_descriptor(node: NodeId, payload: bytes) -> Envelope:
    """The descriptor on the topic of that node, its signature not looked at.

    Raises:
        NovaMeshError: BAD_REQUEST if it is none, BAD_KEY if it is another node's.
    """
    sealed = wire.decode(Envelope, payload, DESCRIPTOR_BYTES_MAX)
    if any(signature.keyid != node for signature in sealed.signatures):
        raise NovaMeshError(Code.BAD_KEY, "the topic is not that of who signed")
    return sealed
