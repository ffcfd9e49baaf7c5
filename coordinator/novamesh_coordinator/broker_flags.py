"""Flags of `coordinator serve` about the pool's MQTT broker: the usual ones, and a small broker's.

What they mean is `config`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from cyclopts import Parameter

from novamesh_broker.flags import BrokerFlags


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ServeBrokerFlags(BrokerFlags):
    """Each None where it was not given."""

    embedded_broker: Annotated[
        bool | None, Parameter(negative="", help="Run a small MQTT broker here, open to everybody.")
    ] = None
    broker_listen: Annotated[str | None, Parameter(help="HOST:PORT of that small broker.")] = None


NOT_GIVEN: Final = ServeBrokerFlags()
