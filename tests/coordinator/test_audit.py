"""The audit: an honest log has nothing wrong, and each forged record is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from novamesh_coordinator.audit import Auditor
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, Record
from novamesh_proto import envelope
from novamesh_proto.messages import JobId, Settlement
from support.parties import COORDINATOR, NETWORK, party
from support.table import Table


def story() -> list[Record]:
    table = Table()
    client, node = table.client(), table.node()
    for key in ("one", "two"):
        table.order(client, node, key=key)
        table.answer(table.assigned(node), chunks=3)
    return table.log


LOG = story()


def audit(records: list[Record]) -> list[str]:
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    return [problem for record in records for problem in auditor.take(record)]


def settled(change: Callable[[AttemptSettled], AttemptSettled]) -> list[Record]:
    return [change(r) if isinstance(r, AttemptSettled) else r for r in LOG]


def forge(record: AttemptSettled) -> AttemptSettled:
    """The same settlement, signed by somebody else."""
    key = party("forger")
    paid = envelope.open(record.settlement, Settlement, network=NETWORK).message
    header = replace(paid.header, issuer=key.node_id)
    return replace(record, settlement=envelope.seal(replace(paid, header=header), key))


def test_an_honest_log_is_whole() -> None:
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    assert [p for record in LOG for p in auditor.take(record)] == []
    assert (auditor.jobs, auditor.settlements, auditor.live()) == (2, 2, ())


def test_a_job_that_has_not_ended_is_live() -> None:
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    begun = [r for r in LOG if not isinstance(r, AttemptSettled)]
    assert not [p for record in begun for p in auditor.take(record)]
    assert len(auditor.live()) == 2


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([*LOG, *(r for r in LOG if isinstance(r, JobAdmitted))], "admitted twice"),
        ([*LOG, *(r for r in LOG if isinstance(r, AttemptSettled))], "ended 2 times"),
        ([*LOG, *(r for r in LOG if isinstance(r, AttemptSettled))], "paid twice"),
        ([r for r in LOG if isinstance(r, AttemptSettled)], "never admitted"),
        (settled(lambda r: replace(r, completion_tokens=9)), "says something else"),
        (settled(lambda r: replace(r, completion_tokens=9)), "were paid, 3 were relayed"),
        (settled(lambda r: replace(r, attempt=7)), "a claim of something else"),
        (settled(lambda r: replace(r, claim=r.settlement)), "does not verify"),
        (settled(forge), "not signed by this coordinator"),
        (
            [replace(r, job=JobId(bytes(32))) if isinstance(r, JobAdmitted) else r for r in LOG],
            "filed under other terms",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told(records: list[Record], said: str) -> None:
    assert any(said in problem for problem in audit(records)), audit(records)
