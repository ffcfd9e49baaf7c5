"""Where a pool's MQTT broker is, and what is told of it: nothing here opens a socket or a file.

Rules: a password is never part of an address, because addresses are shown and logged; it travels
over TLS or on this machine only. A broker that cannot be reached is told of once, and once more
when it is back, however often it was dialled between.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from novamesh_proto.errors import Code, NovaMeshError

PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
PAUSE_LEAST_S: Final = 0.5
PAUSE_MOST_S: Final = 30.0
STEADY_S: Final = 30.0  # a connection that lasted this long makes the next pause short again
_LOOPBACK: Final = ("127.", "localhost", "::1")
_HINT: Final = "such as mqtts://broker.example.org:8883, or mqtt://127.0.0.1:1883 without TLS"


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker's address and how it is entered; empty files and user are none."""

    host: str
    port: int
    tls: bool
    user: str = ""
    password_file: str = ""
    ca_file: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def read_broker(address: str, password_file: str = "", ca_file: str = "") -> Broker | None:
    """The broker of three settings; None where the address is empty.

    Args:
        address: mqtt://HOST:PORT, or mqtts://USER@HOST:PORT over TLS; the port may be left out.
        password_file: Path of a file with the password.
        ca_file: Path of a PEM file with the authorities to trust instead of the system's.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    if not address:
        if password_file or ca_file:
            raise NovaMeshError(Code.BAD_CONFIG, "an MQTT file is set, but no broker", _HINT)
        return None
    broker = _split(address, password_file, ca_file)
    if ca_file and not broker.tls:
        raise NovaMeshError(Code.BAD_CONFIG, f"{broker} has no TLS, so nothing to verify", _HINT)
    if password_file and not broker.tls and not broker.host.startswith(_LOOPBACK):
        raise NovaMeshError(
            Code.BAD_CONFIG, f"a password would travel in the clear to {broker}", "use mqtts://"
        )
    return broker


def _split(address: str, password_file: str, ca_file: str) -> Broker:
    try:
        parts = urlsplit(address)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise _no_address(address) from None
    if parts.password is not None:
        raise NovaMeshError(
            Code.BAD_CONFIG, "a broker's address holds a password, and others can read it",
            "put the password into a file, and name that",
        )  # fmt: skip
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise _no_address(address)
    user = unquote(parts.username or "")
    return Broker(parts.hostname, port, parts.scheme == "mqtts", user, password_file, ca_file)


def _no_address(address: str) -> NovaMeshError:
    return NovaMeshError(Code.BAD_CONFIG, f"{address!r} is no broker's address", _HINT)


class Contact:
    """Whether a broker is reached: what is told of it, and how long to wait for the next try."""

    def __init__(self) -> None:
        self.reached = ""  # the version of MQTT that is spoken; empty while it is not reached
        self.trouble = ""  # why it is not reached; empty before the first try and while it is
        self._told = False
        self._since_s = 0.0
        self._failures = 0

    def found(self, version: str, now_s: float) -> None:
        """A connection stands; `now_s` of any clock that never goes back."""
        self.reached, self.trouble, self._told = version, "", False
        self._since_s = now_s

    def lost(self, trouble: str, now_s: float) -> bool:
        """There is none, or no more; whether that is news."""
        if self.reached and now_s - self._since_s >= STEADY_S:
            self._failures = 0
        self.reached, self.trouble = "", trouble
        self._failures += 1
        news, self._told = not self._told, True
        return news

    def pause_s(self, rng: random.Random) -> float:
        """Seconds to wait now: doubled with each failure, half of it jitter."""
        most = min(PAUSE_MOST_S, PAUSE_LEAST_S * 2.0 ** min(self._failures, 16))
        return max(PAUSE_LEAST_S, most * rng.uniform(0.5, 1.0))

    def describe(self) -> str:
        """For a status line."""
        if self.reached:
            return f"reached (MQTT {self.reached})"
        return f"not reached: {self.trouble}" if self.trouble else "dialling"
