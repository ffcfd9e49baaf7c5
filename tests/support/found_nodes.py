"""Descriptors of nodes that serve nova-pico, as they come by whatever way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import DESCRIPTOR_LIFE_MS
from novamesh_proto.messages import Envelope
from novamesh_proto.node_table import Source
from support.clock import START_MS
from support.fake_answer import NETWORK, PICO
from support.parties import descriptor


def advert(
    key: PrivateKey,
    *endpoints: str,
    now_ms: int = START_MS,
    life_ms: int = DESCRIPTOR_LIFE_MS,
    network: str = NETWORK,
    **changes: Any,
) -> Envelope:
    """What a node says of itself, signed."""
    header = envelope.header(key, network, (), now_ms, life_ms)
    offer = replace(descriptor().models[0], model_profile=PICO)
    made = descriptor(
        key, key.node_id.hex(), header=header, models=(offer,), endpoints=endpoints, free_slots=2
    )
    return envelope.seal(replace(made, **changes), key)


class Way:
    """A way by which these descriptors come; each None breaks it off once."""

    def __init__(self, source: Source, *told: Envelope | None) -> None:
        self.source = source
        self.opened = 0
        self._told = list(told)

    async def descriptors(self) -> AsyncGenerator[Envelope]:
        self.opened += 1
        while self._told:
            sealed = self._told.pop(0)
            if sealed is None:
                raise NovaMeshError(Code.UNAVAILABLE, "this way is closed")
            yield sealed
        await asyncio.Event().wait()
