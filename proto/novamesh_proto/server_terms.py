"""On what terms every gRPC server of ours takes calls, and how it refuses them.

Pure: options, parsers and refusals as values; what listens and waits is each server's own. A status
travels by its name, since nothing here knows gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA

STREAMS_MAX: Final = 64  # of one connection
CONNECTION_MS_MAX: Final = 3_600_000  # then it is dialled anew
_MESSAGE_CHARS_MAX: Final = 500
_HINT_CHARS_MAX: Final = 250

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),  # nobody else on this machine may take calls on our port
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    # Sealed bytes do not get smaller, so nobody honest compresses: what is packed is refused.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # Clients that connect and then say nothing, or say it slowly.
    ("grpc.server_handshake_timeout_ms", 3_000),
    ("grpc.http2.settings_timeout", 3_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", CONNECTION_MS_MAX),
    ("grpc.max_connection_age_grace_ms", 300_000),
    # Nodes and clients ping every 12 s, so that a NAT does not forget them, and whoever is heard is
    # not pinged by us: only who is silent for longer is, and we notice that he is gone in 25 s.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or whoever stands still is given a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call ends with an error of ours: gRPC's status by name, its text, the trailer."""

    status: str
    text: str
    trailer: tuple[tuple[str, bytes], ...]


def refusal(error: NovaMeshError) -> Refusal:
    """The refusal that says what an error says, as far as there is room."""
    text = error.message[:_MESSAGE_CHARS_MAX]
    retry_ms = max(0, error.retry_after_ms)
    detail = ErrorDetail(error.code, text, error.hint[:_HINT_CHARS_MAX], retry_ms)
    return Refusal(error.meaning.grpc, text, ((ERROR_METADATA, wire.encode(detail)),))


def strict(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that refuses bytes that are no message in our words, not with gRPC's traceback.

    It raises NovaMeshError: BAD_REQUEST.
    """

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                "these bytes are not the message that this method takes",
                "do both sides run the same version?  novamesh pool show",
            ) from None

    return read
