"""A state in parts: nothing is lost, and what did not change keeps its digest."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator import snapshot_parts
from novamesh_coordinator.core import CoreState
from novamesh_coordinator.ledger import LedgerState, Standing
from novamesh_coordinator.membership import InviteUse, Member, MembershipState
from novamesh_coordinator.snapshot_parts import (
    Encoder,
    cut,
    join,
    names_of,
    part_digest,
    read_parts,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, NodeId
from support.parties import digest
from support.table import Table

_IDS = st.binary(min_size=32, max_size=32)
_PAID = st.lists(st.tuples(_IDS.map(JobId), st.integers(0, 1 << 40)), max_size=400)
_MEMBERS = st.lists(st.builds(Member, _IDS.map(NodeId), st.integers(0, 9)), max_size=300)


def paid(count: int, first: int = 0) -> CoreState:
    """Answers that were paid, one after the other."""
    answers = ((JobId(digest(f"answer {n}")), n) for n in range(first, first + count))
    return CoreState(ledger=LedgerState(paid=tuple(answers), jobs_settled=count))


def write(state: CoreState, encoder: Encoder) -> dict[bytes, bytes]:
    """What has to be written, by its digest."""
    fresh = {}
    for run in cut(state):
        if encoder.keep(run) is None:
            name, body = encoder.encode(run)
            fresh[name] = body
    return fresh


def whole() -> CoreState:
    """A pool's state with all kinds of things in it."""
    table = Table()
    client, node = table.client(), table.node()
    for number in range(3):
        table.order(client, node, key=f"{number}")
        table.answer(table.assigned(node))
    table.order(client, node, key="live")
    state = table.core.state()
    members = replace(state.membership, invites=(InviteUse(b"invite", 5, 1),))
    return replace(state, membership=members)


def test_every_table_of_the_state_is_cut() -> None:
    state = CoreState()
    tables = {
        (owner.name, each.name)
        for owner in fields(state)
        for each in fields(getattr(state, owner.name))
        if getattr(getattr(state, owner.name), each.name) == ()
    }
    assert tables == {(owner, name) for owner, name, *_ in snapshot_parts._TABLES}


@given(paid=_PAID, members=_MEMBERS, fence=st.integers(0, 1 << 60))
def test_parts_are_the_state(paid: Any, members: Any, fence: int) -> None:
    state = CoreState(MembershipState(tuple(members)), ledger=LedgerState((), tuple(paid), 7, 8, 9))
    state = replace(state, jobs=replace(state.jobs, last_fence=fence))
    runs = list(cut(state))
    assert join(run.state for run in runs) == state
    assert all(0 < len(run.items) <= 256 for run in runs[1:])


def test_a_real_state_is_read_back_from_its_parts() -> None:
    state = whole()
    encoded = [Encoder({}).encode(run) for run in cut(state)]
    assert len(encoded) > 5
    assert read_parts(1, [name for name, _ in encoded], [body for _, body in encoded]) == state
    assert join([]) == CoreState()


def test_what_did_not_change_is_not_written_again() -> None:
    first = Encoder({})
    assert len(write(paid(4_000), first)) > 40
    same = Encoder(first.written)
    assert len(write(paid(4_000), same)) == 1  # the numbers
    assert same.written == first.written
    # The oldest go, others come: the runs at both ends are new.
    moved = write(paid(4_000, first=900), Encoder(first.written))
    assert 3 < len(moved) < 25
    assert [part_digest(body) for body in moved.values()] == list(moved)


def test_one_item_that_changed_costs_its_run() -> None:
    standings = tuple(Standing(NodeId(digest(f"node {n}"))) for n in range(1_000))
    first = Encoder({})
    write(CoreState(ledger=LedgerState(standings)), first)
    changed = (*standings[:500], replace(standings[500], jobs_lost=1), *standings[501:])
    after = CoreState(ledger=LedgerState(changed))
    second = Encoder(first.written)
    assert len(write(after, second)) == 2
    assert not (set(second.written) ^ set(first.written)) - {(-1, b"")}


def test_ids_that_end_no_run_do_not_make_a_long_one() -> None:
    ids = (JobId(n.to_bytes(31, "big") + b"\1") for n in range(1_000))
    state = CoreState(ledger=LedgerState(paid=tuple((one, 1) for one in ids)))
    assert [len(run.items) for run in cut(state)] == [0, 256, 256, 256, 1_000 - 768]


def test_a_run_ends_with_its_item_unless_it_is_short() -> None:
    ends = {3, 17, 40}
    ids = [JobId(bytes([n]) * 31 + bytes([0 if n in ends else 1])) for n in range(60)]
    state = CoreState(ledger=LedgerState(paid=tuple((one, 1) for one in ids)))
    assert [len(run.items) for run in cut(state)][1:] == [18, 23, 19]


def test_ids_made_to_end_runs_do_not_make_many() -> None:
    ids = (JobId(n.to_bytes(31, "big") + bytes(1)) for n in range(1_600))
    state = CoreState(ledger=LedgerState(paid=tuple((one, 1) for one in ids)))
    assert len(list(cut(state))) == 1 + 100


def test_what_is_in_no_table_is_a_number_and_nothing_by_default() -> None:
    state = CoreState()
    for owner in fields(state):
        part = getattr(state, owner.name)
        assert all(getattr(part, each.name) in ((), 0) for each in fields(part))


@pytest.mark.parametrize("body", [None, "text", b"{}", 7])
def test_a_part_that_is_not_as_it_was_written_is_told(body: object) -> None:
    name, good = Encoder({}).encode(next(cut(CoreState())))
    with pytest.raises(NovaMeshError) as refused:
        read_parts(12, [name, name], [good, body])
    assert refused.value.code is Code.CORRUPT
    said = "a part of the snapshot at event 12 was changed, or is missing"
    assert refused.value.message == said


def test_names_are_read_from_the_row() -> None:
    names = [digest("one"), digest("two")]
    assert names_of(b"".join(names)) == names
    assert names_of(b"") == []
    assert names_of(names[0] + b"torn") == [names[0], b"torn"]
