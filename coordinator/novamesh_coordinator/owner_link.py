"""The owner's way to the running coordinator: pinned TLS, orders signed with its own key.

Synchronous, one call at a time, for the command line. The certificate is fetched first and must be
the coordinator's own, as anybody else pins it.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from novamesh_coordinator.config import split_address
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError, parse_code
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    BanOrder,
    Envelope,
    ErrorDetail,
    Header,
    NodeId,
    NodesQuery,
    NodeView,
    PoolCard,
)
from novamesh_proto.names import ERROR_METADATA, TLS_SERVER_NAME
from novamesh_proto.transport_identity import check_certificate
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc

CALL_S: Final = 5.0
_HINT: Final = "start it with: novamesh coordinator serve"


@dataclass(frozen=True, slots=True)
class OwnerLink:
    """Calls to one coordinator."""

    channel: grpc.Channel
    key: PrivateKey
    network: str

    def nodes(self) -> tuple[NodeView, ...]:
        """Every node that the coordinator knows."""
        query = envelope.seal(NodesQuery(self._header()), self.key)
        stub = coordinator_pb2_grpc.AdminServiceStub(self.channel)
        request = pb.ListNodesRequest(query=wire.to_pb(query))
        reply = _call(stub.ListNodes, request)
        return tuple(wire.from_pb(NodeView, view) for view in reply.nodes)

    def ban(self, member: NodeId, reason: str, lift: bool) -> None:
        """Keep a member out, or let it in again."""
        order = envelope.seal(BanOrder(self._header(), member, reason, lift), self.key)
        stub = coordinator_pb2_grpc.AdminServiceStub(self.channel)
        _call(stub.Ban, pb.BanRequest(order=wire.to_pb(order)))

    def health(self) -> PoolCard:
        """The pool's card, once the coordinator says that it serves.

        Raises:
            NovaMeshError: UNAVAILABLE if it does not.
        """
        request = health_pb2.HealthCheckRequest(service="")
        reply = _call(health_pb2_grpc.HealthStub(self.channel).Check, request)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise NovaMeshError(Code.UNAVAILABLE, "the coordinator does not serve", "see its log")
        hello = _call(coordinator_pb2_grpc.PoolServiceStub(self.channel).Hello, pb.HelloRequest())
        card = wire.from_pb(Envelope, hello.card)
        return envelope.open(card, PoolCard, network=self.network).message

    def _header(self) -> Header:
        own = self.key.node_id
        return envelope.header(self.key, self.network, (own,), time.time_ns() // 1_000_000)


@contextlib.contextmanager
def open_owner_link(address: str, key: PrivateKey, network: str) -> Iterator[OwnerLink]:
    """Dial the coordinator whose key this is.

    Raises:
        NovaMeshError: UNAVAILABLE if nobody answers, PIN_MISMATCH if somebody else does.
    """
    pem = _fetch_certificate(address)
    check_certificate(pem.encode(), key.node_id)
    credentials = grpc.ssl_channel_credentials(pem.encode())
    options = (
        ("grpc.ssl_target_name_override", TLS_SERVER_NAME),
        ("grpc.enable_http_proxy", 0),
    )
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield OwnerLink(channel, key, network)


def _fetch_certificate(address: str) -> str:
    host, port = split_address(address, "address")
    try:
        return ssl.get_server_certificate((host.strip("[]"), port), timeout=CALL_S)
    except (OSError, ssl.SSLError) as error:
        raise NovaMeshError(
            Code.UNAVAILABLE,
            f"no coordinator answers at {address}: {error.strerror or error}",
            _HINT,
        ) from error


def _call(method: Any, request: Any) -> Any:
    try:
        return method(request, timeout=CALL_S)
    except grpc.RpcError as error:
        raise _our_error(error) from None


def _our_error(error: Any) -> NovaMeshError:
    for name, value in error.trailing_metadata() or ():
        if name == ERROR_METADATA:
            detail = wire.decode(ErrorDetail, value)
            return NovaMeshError(
                parse_code(detail.code), detail.message, detail.hint, detail.retry_after_ms
            )
    return NovaMeshError(
        Code.UNAVAILABLE, f"the coordinator did not answer: {error.details()}", _HINT
    )
