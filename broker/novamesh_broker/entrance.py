"""How a broker is entered: what its settings name, read once at the start."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError

SECRET_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Entrance:
    """A broker, with the password and the authorities that its files hold."""

    broker: Broker
    password: str | None
    tls: ssl.SSLContext | None


def open_entrance(broker: Broker) -> Entrance:
    """Read the files that a broker's settings name.

    Raises:
        NovaMeshError: BAD_CONFIG if a file cannot be read or is none of its kind.
    """
    password, tls = None, None
    try:
        if broker.password_file:
            with Path(broker.password_file).expanduser().open(encoding="utf-8") as file:
                password = file.read(SECRET_BYTES_MAX).strip("\r\n")
        if broker.tls:
            own = broker.ca_file and str(Path(broker.ca_file).expanduser())
            tls = ssl.create_default_context(cafile=own or None)
    except (OSError, ValueError) as error:
        named = broker.password_file if password is None and broker.password_file else ""
        raise NovaMeshError(
            Code.BAD_CONFIG, f"cannot use {named or broker.ca_file or broker}: {error}",
            "mqtt_password_file holds a password, mqtt_ca certificates in PEM",
        ) from error  # fmt: skip
    return Entrance(broker, password, tls)
