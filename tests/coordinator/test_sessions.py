"""Presence: the newest stream of a node speaks for it, and remembers why it got no work."""

from __future__ import annotations

import pytest

from novamesh_coordinator import sessions
from novamesh_coordinator.events import Moment
from novamesh_coordinator.sessions import Session, Sessions
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.matching import Cause, Ranked, Ranking, Refused
from novamesh_proto.messages import JobId, NodeLoad
from support.parties import NODE, descriptor, party, sign

NOW, LATER = Moment(1_000, 0), Moment(9_000, 8_000_000)
ONE, TWO = NODE.node_id, party("two").node_id
JOB = JobId(bytes(32))
ADVERT = sign(descriptor(NODE), NODE)


@pytest.fixture
def made() -> Sessions:
    opened = Sessions()
    opened.open(ADVERT, b"first", 4, 500, NOW)
    return opened


def session(made: Sessions) -> Session:
    found = made.get(ONE)
    assert found is not None
    return found


def test_the_newest_stream_speaks_for_its_node(made: Sessions) -> None:
    made.open(ADVERT, b"second", 4, 500, NOW)
    with pytest.raises(NovaMeshError) as refused:
        made.require(ONE, b"first", LATER)
    assert refused.value.code is Code.STALE
    assert not made.close(ONE, b"first")
    assert made.require(ONE, b"second", LATER).seen_ms == LATER.wall_ms
    assert made.close(ONE, b"second")
    assert (made.get(ONE), len(made)) == (None, 0)


def test_free_slots_follow_what_is_known_last(made: Sessions) -> None:
    made.give_back(ONE)
    assert session(made).free == 5
    made.fill(ONE)
    assert session(made).free == 0
    made.set_load(session(made), NodeLoad(2, False, "on battery"))
    assert (session(made).free, session(made).refusal) == (2, "on battery")
    made.give_back(TWO)  # it has gone meanwhile
    made.fill(TWO)
    assert made.get(TWO) is None


def test_a_node_is_told_once_to_stop_and_the_memory_of_it_is_bounded(
    made: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "STOPS_KEPT", 2)
    told = [session(made).stop_once(JOB, attempt) for attempt in (1, 1, 2, 2, 3, 1)]
    assert told == [True, False, True, False, True, True]


def test_reasons_are_counted_by_cause_and_the_last_words_are_kept(made: Sessions) -> None:
    full = [Refused(ONE, Cause.FULL, f"all {n} slots are busy") for n in (4, 3)]
    for refused in (full[0], Refused(ONE, Cause.CONTEXT, "too long"), full[1]):
        made.account(Ranking((), (refused, Refused(TWO, Cause.FULL, "not here any more"))))
    made.account(Ranking((Ranked(ONE, 1.0, "fast"), Ranked(TWO, 0.0, "gone")), ()))
    report = session(made).report()
    assert (report.considered, report.chosen) == (4, 1)
    assert [(r.reason, r.count) for r in report.reasons] == [
        ("all 3 slots are busy", 2),
        ("too long", 1),
    ]


def test_every_open_stream_can_be_listed(made: Sessions) -> None:
    made.open(sign(descriptor(party("two")), party("two")), b"other", 1, 700, LATER)
    listed = [(one.node, one.session, one.free, one.rtt_us, one.attached_ms) for one in made.all()]
    assert listed == [(ONE, b"first", 4, 500, 1_000), (TWO, b"other", 1, 700, 9_000)]
    assert len(made) == 2
    assert not made.close(party("three").node_id, b"")


def test_a_long_reason_is_cut(made: Sessions) -> None:
    made.account(Ranking((), (Refused(ONE, Cause.FULL, "x" * 501),)))
    (reason,) = session(made).report().reasons
    assert reason.reason == "x" * 500
