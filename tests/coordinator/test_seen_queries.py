"""Replay windows by member: nobody takes another one's room, and all of it is bounded."""

from __future__ import annotations

import pytest

from novamesh_coordinator.seen_queries import FEW, SeenQueries
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import ModelsQuery
from support.actors import ClientActor
from support.clock import START_MS
from support.parties import COORDINATOR, NETWORK

ONE, TWO = (ClientActor(name, COORDINATOR.node_id) for name in ("one", "two"))


def query(client: ClientActor, at_ms: int = START_MS) -> Verified[ModelsQuery]:
    return envelope.open(client.ask_models(at_ms), ModelsQuery, network=NETWORK)


def refused(seen: SeenQueries, asked: Verified[ModelsQuery], now_ms: int = START_MS) -> Code:
    with pytest.raises(NovaMeshError) as error:
        seen.admit(asked, now_ms)
    return error.value.code


def test_a_member_fills_its_own_window_only() -> None:
    seen = SeenQueries(each_max=3)
    for _ in range(3):
        seen.admit(query(ONE), START_MS)
    assert refused(seen, query(ONE)) is Code.BUSY
    seen.admit(query(TWO), START_MS)
    assert len(seen) == 4


def test_when_all_is_full_whoever_asks_little_gets_in() -> None:
    seen = SeenQueries(all_max=FEW)
    for _ in range(FEW):
        seen.admit(query(ONE), START_MS)
    assert refused(seen, query(ONE)) is Code.BUSY
    for _ in range(FEW):
        seen.admit(query(TWO), START_MS)
    assert refused(seen, query(TWO)) is Code.BUSY


def test_what_expired_is_forgotten_and_does_not_come_back() -> None:
    seen, old = SeenQueries(), query(ONE)
    seen.admit(old, START_MS)
    later_ms = old.message.header.expires_at_ms + CLOCK_SKEW_MS + 1
    seen.admit(query(TWO, later_ms), later_ms)
    assert len(seen) == 1
    assert refused(seen, old) is Code.NOT_FRESH


def test_a_refused_query_takes_no_room() -> None:
    seen, asked = SeenQueries(), query(ONE)
    seen.admit(asked, START_MS)
    assert refused(seen, asked) is Code.REPLAYED
    assert len(seen) == 1
