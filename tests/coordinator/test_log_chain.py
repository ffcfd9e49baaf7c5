"""The chain of the log: honest rows are read back, any change, gap or swap is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator.core import Core
from novamesh_coordinator.log_chain import (
    Mark,
    Row,
    body_digest,
    check_links,
    check_rows,
    check_snapshot,
    make_rows,
    snapshot_digest,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId
from support.table import Table


def story() -> Table:
    table = Table()
    client, node = table.client(), table.node()
    table.order(client, node)
    table.answer(table.assigned(node), chunks=2)
    return table


TABLE = story()
ROWS, END = make_rows(TABLE.log, Mark())


class Snapshot:
    """A snapshot as a database gives it back."""

    def __init__(self, at: Mark, body: bytes, digest: bytes) -> None:
        self.seq, self.log_digest, self.body, self.digest = at.seq, at.digest, body, digest


def test_rows_are_read_back() -> None:
    records, mark = check_rows(ROWS, Mark())
    assert records == tuple(TABLE.log)
    assert mark == END == Mark(len(ROWS), ROWS[-1].digest)


def test_rows_go_on_from_any_place() -> None:
    part, place = make_rows(TABLE.log[:3], Mark())
    rest, end = make_rows(TABLE.log[3:], place)
    assert [*part, *rest] == ROWS
    assert check_links(rest, place) == end == END


@pytest.mark.parametrize(
    "damage",
    [
        lambda rows: rows[1:],
        lambda rows: [*rows[:1], *rows[2:]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [replace(rows[0], kind="MemberBanned"), *rows[1:]],
        lambda rows: [replace(rows[0], body=rows[0].body + b" "), *rows[1:]],
        lambda rows: [replace(rows[0], body="text"), *rows[1:]],
        lambda rows: [replace(rows[0], digest=bytes(32)), *rows[1:]],
        lambda rows: [*rows[:-1], replace(rows[-1], job=JobId(bytes(32)))],
    ],
)
def test_damage_is_found(damage: object) -> None:
    rows: list[Row] = damage(ROWS)  # type: ignore[operator]
    with pytest.raises(NovaMeshError) as refused:
        check_rows(rows, Mark())
    assert refused.value.code is Code.CORRUPT
    assert "backup" in refused.value.hint


def test_a_snapshot_stands_at_its_place_and_nowhere_else() -> None:
    core = Core(TABLE.identity)
    core.replay(TABLE.log)
    whole = Snapshot(END, core.dump(), snapshot_digest(END, core.dump()))
    state, mark = check_snapshot(whole, ROWS[-1])
    assert (state, mark) == (core.state(), END)
    for snapshot, row in (
        (whole, ROWS[-2]),
        (whole, None),
        (Snapshot(END, core.dump() + b" ", whole.digest), ROWS[-1]),
        (Snapshot(Mark(), core.dump(), whole.digest), ROWS[-1]),
    ):
        with pytest.raises(NovaMeshError):
            check_snapshot(snapshot, row)


def test_a_body_is_bound_to_its_job() -> None:
    one, two = JobId(bytes(32)), JobId(b"\1" * 32)
    assert body_digest(one, b"sealed") != body_digest(two, b"sealed")
    assert body_digest(one, b"sealed") != body_digest(one, b"sealee")
