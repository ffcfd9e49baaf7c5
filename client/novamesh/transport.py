"""Dial a coordinator so that its PeerId, and nothing else, says who it is.

To pin: read the server's certificate with the standard ssl module, check its libp2p extension
against the expected PeerId, then let gRPC trust exactly that certificate. The certificate is
ephemeral, so every new channel reads it again: a restarted coordinator is taken, another identity
is PIN_MISMATCH. There is no certificate authority and no client certificate; callers sign what
they say. What is said over a channel is not this module's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio

from novamesh_proto import transport_identity, wire
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError, parse_code
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import ErrorDetail, NodeId
from novamesh_proto.names import ERROR_METADATA, TLS_SERVER_NAME

T = TypeVar("T")
KEEPALIVE_MS: Final = 12_000  # a server of ours allows a ping every 10 s
CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.ssl_target_name_override", TLS_SERVER_NAME),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    # Some NATs forget a stream that was idle for 15 s; without pings neither side would notice.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or a process that stands still is given a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 20_000),
    ("grpc.enable_http_proxy", 0),  # a proxy would see whom we talk to, and break the pin
    ("grpc.use_local_subchannel_pool", 1),  # two channels never share another's certificate
)
LOCAL: Final = "unix:"
_ABORT_GRACE_S: Final = 0.5
_UNREACHABLE_HINT: Final = "is the coordinator running, and is its address right?  novamesh doctor"

# Where a server, or something between, refuses without telling more than a status.
_CODE_OF_STATUS: Final[dict[str, Code]] = {
    "UNAVAILABLE": Code.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Code.EXPIRED,
    "CANCELLED": Code.CANCELLED,
    "UNIMPLEMENTED": Code.UNSUPPORTED,
    "RESOURCE_EXHAUSTED": Code.BUSY,
    "INVALID_ARGUMENT": Code.BAD_REQUEST,
    "NOT_FOUND": Code.NOT_FOUND,
    "PERMISSION_DENIED": Code.FORBIDDEN,
}


@dataclass(frozen=True, slots=True)
class Channel:
    """A ready channel to a proven coordinator, and SHA-256 of its certificate's public key."""

    channel: grpc.aio.Channel
    certificate_key_digest: bytes

    async def close(self) -> None:
        """Close it; calls still under way are cancelled."""
        await self.channel.close(grace=None)


async def open_channel(address: str, coordinator: NodeId, deadline_s: float) -> Channel:
    """A channel that is connected to the coordinator with that PeerId.

    Args:
        address: "host:port", an IPv6 host in brackets; or "unix:PATH", the end of a tunnel in this
            process, which has proved already who answers.
        coordinator: Who must answer there.
        deadline_s: Seconds for all of it.

    Raises:
        NovaMeshError: BAD_REQUEST for no address, UNAVAILABLE if nobody answers in time,
            PIN_MISMATCH if another identity does.
    """
    if address.startswith(LOCAL):
        return await _open_local(address, deadline_s)
    host, port = split_address(address)
    channel: grpc.aio.Channel | None = None
    try:
        async with asyncio.timeout(deadline_s):
            der = await _fetch_certificate(host, port, address)
            certified = transport_identity.check_certificate(der, coordinator)
            credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(der).encode())
            channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
            await channel.channel_ready()
            return Channel(channel, certified.key_digest)
    except BaseException as error:
        # Whatever happened, cancellation included: no half-open channel is left behind.
        if channel is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(channel.close(grace=None), _ABORT_GRACE_S)
        if isinstance(error, TimeoutError):
            raise NovaMeshError(
                Code.UNAVAILABLE,
                f"no coordinator answered at {address} within {deadline_s:g} s",
                _UNREACHABLE_HINT,
            ) from None
        raise


async def _open_local(address: str, deadline_s: float) -> Channel:
    channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    try:
        async with asyncio.timeout(deadline_s):
            await channel.channel_ready()
    except BaseException as error:  # a cancellation too leaves no channel half open
        await channel.close(grace=None)
        if isinstance(error, TimeoutError):
            message = f"nobody answered through the tunnel within {deadline_s:g} s"
            raise NovaMeshError(Code.UNAVAILABLE, message) from None
        raise
    return Channel(channel, b"")


class Dialer:
    """Where the coordinators of one pool may be, of which one serves at a time.

    Each address is tried in turn with its share of the time, first the one that answered last.
    """

    def __init__(self, addresses: str, coordinator: NodeId) -> None:
        """`addresses` is "host:port", or up to four of them with commas between."""
        self._addresses = addresses.split(",")
        self._coordinator = coordinator

    async def open(self, deadline_s: float) -> Channel:
        """A channel to whichever serves, within `deadline_s` seconds for all of them.

        Raises:
            NovaMeshError: as `open_channel`; of several that failed the most telling.
        """
        clock = asyncio.get_running_loop().time
        ends_s = clock() + deadline_s
        refusals: list[NovaMeshError] = []
        for tried, address in enumerate(tuple(self._addresses)):
            share_s = (ends_s - clock()) / (len(self._addresses) - tried)
            try:
                channel = await open_channel(address, self._coordinator, share_s)
            except NovaMeshError as error:
                if error.code is Code.BAD_REQUEST:
                    raise
                refusals.append(error)
            else:
                self._addresses.remove(address)
                self._addresses.insert(0, address)
                return channel
        telling = [error for error in refusals if error.code is not Code.UNAVAILABLE] or refusals
        if len(telling) == 1:
            raise telling[0]
        problems = "; ".join(error.message for error in telling)
        raise NovaMeshError(telling[0].code, problems, telling[0].hint)


def split_address(address: str, port_least: int = 1) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"; port 0, where it is allowed, is any free one.

    Raises:
        NovaMeshError: BAD_REQUEST if it is neither.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    good = port.isdecimal() and port_least <= int(port) < 65536
    if not host or (":" in host) != bracketed or not good:
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"{address!r} is no address",
            "write host:port, such as pool.example.org:7700 or [::1]:7700",
        )
    return host, int(port)


def error_from_rpc(error: grpc.aio.AioRpcError) -> NovaMeshError:
    """Our error for a failed call: from its ErrorDetail, or from the bare status."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA and isinstance(value, bytes):
            with contextlib.suppress(NovaMeshError):
                detail = wire.decode(ErrorDetail, value)
                code = parse_code(detail.code)
                return NovaMeshError(code, detail.message, detail.hint, detail.retry_after_ms)
    details = error.details() or "no details"
    code = _CODE_OF_STATUS.get(error.code().name, Code.INTERNAL)
    # gRPC has one status for a queue that is full, which heals, and a message that never will fit.
    if code is Code.BUSY and any(words in details for words in _TOO_LARGE):
        code = Code.TOO_LARGE
    return NovaMeshError(code, f"{_SENTENCES[code]}: {details}", _HINTS.get(code, ""))


def require_message(came: T | None) -> T:
    """What came with a call; gRPC gives None for bytes that are no such message.

    Raises:
        NovaMeshError: BAD_REQUEST.
    """
    if came is None:
        raise NovaMeshError(
            Code.BAD_REQUEST, "the coordinator sent bytes that are no message", _VERSIONS_HINT
        )
    return came


_TOO_LARGE: Final = ("message larger than max", "metadata size exceeds")
_SENTENCES: Final[dict[Code, str]] = {
    **dict.fromkeys(MEANINGS, "the coordinator refused"),
    Code.TOO_LARGE: "a message of this call is too large",
    Code.UNAVAILABLE: "the coordinator cannot be reached",
    Code.EXPIRED: "the coordinator did not answer in time",
    Code.CANCELLED: "the call was cancelled",
    Code.UNSUPPORTED: "the coordinator does not know this call",
    Code.INTERNAL: "the coordinator failed",
}
_VERSIONS_HINT: Final = "do both sides run the same version?  novamesh pool show"
_HINTS: Final[dict[Code, str]] = {
    Code.UNAVAILABLE: _UNREACHABLE_HINT,
    Code.EXPIRED: "is the pool overloaded?  try again, or allow more time",
    Code.BUSY: "try again in a moment",
    Code.TOO_LARGE: "shorten the prompt or ask for fewer tokens",
    Code.BAD_REQUEST: _VERSIONS_HINT,
    Code.UNSUPPORTED: _VERSIONS_HINT,
    Code.INTERNAL: "try again; if it fails the same way, tell the pool's owner",
}


async def _fetch_certificate(host: str, port: int, address: str) -> bytes:
    """The server's certificate, DER, as nobody has verified it yet."""
    try:
        _, writer = await asyncio.open_connection(
            host, port, ssl=_unverified(), server_hostname=TLS_SERVER_NAME
        )
    except ssl.SSLError as error:
        raise NovaMeshError(
            Code.UNAVAILABLE,
            f"what listens at {address} does not speak TLS as a coordinator does",
            "is this the port of its gRPC service?  the join code names it",
        ) from error
    except OSError as error:
        plain = isinstance(error, ConnectionError) and error.errno
        reason = os.strerror(error.errno or 0) if plain else error.strerror or error
        raise NovaMeshError(
            Code.UNAVAILABLE, f"cannot reach {address}: {reason}", _UNREACHABLE_HINT
        ) from error
    try:
        session: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = session.getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    if not der:
        raise NovaMeshError(Code.PIN_MISMATCH, f"{address} showed no certificate")
    return der


def _unverified() -> ssl.SSLContext:
    """TLS that believes anybody: only to read the certificate, which is checked afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context
