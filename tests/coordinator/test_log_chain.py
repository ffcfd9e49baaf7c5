"""The chain of the log: honest rows are read back, any change, gap or swap is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator.log_chain import (
    Mark,
    Row,
    body_digest,
    check_links,
    check_rows,
    check_snapshot,
    make_rows,
    read_row,
    snapshot_digest,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId
from support.refusals import refused
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
    with pytest.raises(NovaMeshError) as caught:
        check_rows(rows, Mark())
    assert caught.value.code is Code.CORRUPT
    assert "backup" in caught.value.hint


def test_a_snapshot_stands_at_its_place_and_nowhere_else() -> None:
    names = bytes(64)
    whole = Snapshot(END, names, snapshot_digest(END, names))
    assert check_snapshot(whole, ROWS[-1]) == END
    for snapshot, row in (
        (whole, ROWS[-2]),
        (whole, None),
        (Snapshot(END, names + b" ", whole.digest), ROWS[-1]),
        (Snapshot(Mark(), names, whole.digest), ROWS[-1]),
    ):
        with pytest.raises(NovaMeshError):
            check_snapshot(snapshot, row)


def test_a_body_is_bound_to_its_job() -> None:
    one, two = JobId(bytes(32)), JobId(b"\1" * 32)
    assert body_digest(one, b"sealed") != body_digest(two, b"sealed")
    assert body_digest(one, b"sealed") != body_digest(one, b"sealee")


class Event:
    """A row as a database may give it back: of any type."""

    def __init__(self, row: Row, **changes: object) -> None:
        self.seq, self.kind, self.job = row.seq, row.kind, row.job
        self.body, self.digest = row.body, row.digest
        for name, value in changes.items():
            setattr(self, name, value)


def refusal(rows: list[Any]) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        check_rows(rows, Mark())
    return caught.value


def test_what_is_wrong_with_the_log_is_told_with_its_place() -> None:
    assert refusal(ROWS[1:]).message == "event 1 is missing from the log"
    changed = [*ROWS[:1], replace(ROWS[1], body=b"{}"), *ROWS[2:]]
    assert refusal(changed).message == "event 2 of the log was changed"
    assert refusal([Event(ROWS[0], kind=7)]).message == "event 1 of the log was changed"
    assert refusal([Event(ROWS[0], body="text")]).message == "event 1 of the log was changed"


def test_an_event_of_a_newer_version_is_told_apart_from_damage() -> None:
    row = replace(ROWS[0], kind="JobAuctioned")
    with refused(
        Code.CORRUPT,
        "event 1 is a JobAuctioned, which this version does not know",
        "run the version of novamesh that wrote it, or a newer one",
    ):
        read_row(row)
    last = replace(ROWS[-1], job=JobId(bytes(32)))
    with pytest.raises(NovaMeshError) as caught:
        read_row(last)
    assert caught.value.message == f"event {last.seq} of the log is filed under another job"
    assert read_row(ROWS[0]) == TABLE.log[0]


def test_a_snapshot_of_another_type_or_place_is_told() -> None:
    body, row = bytes(32), ROWS[-1]
    digest = snapshot_digest(END, body)
    changed = f"the snapshot at event {END.seq} was changed"
    lost = f"the log does not hold event {END.seq} as the snapshot knew it"
    text: Any = "text"
    for snapshot, at, said in (
        (Snapshot(Mark(END.seq, text), body, digest), row, changed),
        (Snapshot(END, text, digest), row, changed),
        (Snapshot(END, body, bytes(32)), row, changed),
        (Snapshot(END, body, digest), None, lost),
        (Snapshot(END, body, digest), replace(row, seq=END.seq + 1), lost),
        (Snapshot(END, body, digest), replace(row, digest=bytes(32)), lost),
    ):
        with pytest.raises(NovaMeshError) as caught:
            check_snapshot(snapshot, at)
        assert (caught.value.code, caught.value.message) == (Code.CORRUPT, said)
