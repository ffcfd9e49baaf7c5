"""Flags of every command that visits the pool's MQTT broker.

Apart from the commands, because they are few and belong together; what they mean is for the
configuration of each part to say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Final

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class BrokerFlags:
    """Each None where it was not given."""

    mqtt: Annotated[
        str | None, Parameter(help="The pool's MQTT broker, such as mqtts://broker.example.org.")
    ] = None
    mqtt_password_file: Annotated[
        str | None, Parameter(help="File with the broker's password.")
    ] = None
    mqtt_ca: Annotated[
        str | None,
        Parameter(help="PEM file of the authority that signed the broker's certificate."),
    ] = None

    def flags(self) -> dict[str, object]:
        """As the configuration takes them."""
        return asdict(self)


NOT_GIVEN: Final = BrokerFlags()
