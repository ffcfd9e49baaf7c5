"""Every string that two sides must share, once: labels that separate keys, media types, topics.

A label never changes its meaning; a new meaning gets a new label with a new version.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

LABEL_REQUEST: Final = b"novamesh/v1/request\0"  # HPKE info of a key wrap, then the job id
LABEL_BODY: Final = b"novamesh/v1/body\0"  # AAD of a sealed body
LABEL_BODY_KEY: Final = b"novamesh/v1/body-key\0"  # commitment to the body key
LABEL_SEED: Final = b"novamesh/v1/seed\0"  # commitment to the client's seed
LABEL_CHUNK_KEY: Final = b"novamesh/v1/chunk-key\0"  # HKDF info of an attempt's chunk key
LABEL_CHUNK: Final = b"novamesh/v1/chunk\0"  # AAD of a chunk and link of the chain
LABEL_CHAIN: Final = b"novamesh/v1/chain\0"  # first head of an attempt's chain
LABEL_SALT: Final = b"novamesh/v1/salt\0"  # HKDF info of a job's digest salt
LABEL_PROMPT: Final = b"novamesh/v1/prompt\0"  # digest of prompt token ids
LABEL_OUTPUT: Final = b"novamesh/v1/output\0"  # digest of completion token ids
LABEL_PREFIX: Final = b"novamesh/v1/prefix\0"  # digest of a forced prefix's token ids
LABEL_POLICY: Final = b"novamesh/v1/policy\0"  # digest of a node's published rules
LABEL_SAMPLING: Final = b"novamesh/sampling/v1"  # key of the sampling noise

LABEL_PROVIDER: Final = b"novamesh/v1/provider\0"  # DHT key of a pool's model: this, then both

TUNNEL_PROTOCOL: Final = "/novamesh/grpc/1"  # libp2p streams that carry gRPC to a node
TLS_SERVER_NAME: Final = "novamesh"  # the only name in our certificates; the PeerId is the pin
ERROR_METADATA: Final = "novamesh-error-bin"  # trailing metadata that carries an ErrorDetail

TOPIC_DESCRIPTOR: Final = "descriptor"  # a node's signed descriptor, retained
TOPIC_PRESENCE: Final = "presence"  # HERE when it comes, GONE as its last will; never retained
HERE: Final = b"here"
GONE: Final = b"gone"
EVERY_NODE: Final = "+"  # in place of a PeerId: a subscription to all of them

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def gossip_topic(network: str) -> str:
    """The libp2p topic on which a pool's descriptors travel."""
    return f"novamesh/v1/descriptors/{network}"


def payload_type(message_name: str) -> str:
    """Media type of a signed message: JobTerms → application/vnd.novamesh.job-terms.v1+protobuf."""
    kebab = _WORD_START.sub("-", message_name).lower()
    return f"application/vnd.novamesh.{kebab}.v1+protobuf"


def node_topic(network: str, node: str, kind: str) -> str:
    """The MQTT topic of one node (its PeerId as text, or EVERY_NODE) in one pool.

    A network may hold any characters: those that mean something to a broker, and all that are not
    ASCII, are percent-encoded, so that different networks never share a topic.
    """
    return f"{_nodes_topic(network)}/{node}/{kind}"


def split_node_topic(network: str, topic: str) -> tuple[str, str] | None:
    """What stands where a PeerId does, and the kind; None for a topic that is not this pool's."""
    prefix = f"{_nodes_topic(network)}/"
    node, _, kind = topic.removeprefix(prefix).partition("/")
    known = topic.startswith(prefix) and kind in (TOPIC_DESCRIPTOR, TOPIC_PRESENCE)
    return (node, kind) if known and node else None


def _nodes_topic(network: str) -> str:
    return f"novamesh/v1/{quote(network, safe='')}/nodes"
