"""The audit: an honest log has nothing wrong, and each forged record is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from novamesh_coordinator.audit import Auditor
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, JobEnded, Record
from novamesh_proto import envelope
from novamesh_proto.messages import FinishReason, JobId, Settlement
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


def test_every_sentence_names_its_job() -> None:
    """All that one forged settlement breaks is told, and nothing else."""
    (paid,) = [r for r in LOG if isinstance(r, AttemptSettled)][:1]
    job = f"job {paid.job.hex()[:12]}"
    begun = [r for r in LOG if not isinstance(r, AttemptSettled)]
    other = next(r for r in LOG if isinstance(r, AttemptSettled) and r.job != paid.job)
    wrong = replace(paid, claim=other.claim, relay_receipt=other.relay_receipt, completion_tokens=4)
    assert audit([*begun, wrong]) == [
        f"{job} was settled by a claim of something else",
        f"{job} was settled by a relay receipt of something else",
        f"the settlement of {job} says something else than the log",
        f"4 tokens of {job} were paid, 3 were relayed",
    ]
    assert audit([*begun, replace(paid, node=COORDINATOR.node_id)]) == [
        f"{job} was settled by a claim of something else"
    ]
    assert audit([*begun, forge(paid)]) == [
        f"the settlement of {job} was not signed by this coordinator"
    ]
    assert audit([*begun, paid, paid]) == [
        f"{job} ended 2 times",
        f"positions of {job} were paid twice",
    ]
    assert audit([paid]) == [
        f"{job} ended and was never admitted",
        f"{job} was settled and never admitted",
    ]


def test_a_job_that_ended_otherwise_may_be_paid_in_part() -> None:
    table = Table()
    client, node = table.client(), table.node()
    for tokens in (2, 0):
        order = table.order(client, node, key=f"cancelled after {tokens}")
        attempt = table.assigned(node)
        if tokens:
            table.send(attempt, attempt.chunk(tokens))
        table.cancel(client, order.id)
        table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    assert [p for record in table.log for p in auditor.take(record)] == []
    assert (auditor.jobs, auditor.settlements, auditor.live()) == (2, 2, ())
    ended = next(r for r in table.log if isinstance(r, JobEnded))
    assert list(auditor.take(ended)) == [f"job {ended.job.hex()[:12]} ended 2 times"]


def test_a_part_that_only_a_checkpoint_vouches_for_is_checked_too() -> None:
    table = Table()
    client, node = table.client(), table.node()
    table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(2))
    table.checkpoint(attempt)
    table.pass_time(16)
    assert isinstance(table.log[-1], AttemptSettled)
    assert audit(table.log) == []


def test_terms_that_nobody_signed_are_found() -> None:
    (admitted, *_) = [r for r in LOG if isinstance(r, JobAdmitted)]
    unsigned = replace(admitted, terms=replace(admitted.terms, payload=b"x"))
    (problem,) = audit([unsigned])
    assert problem.startswith(f"the terms of job {admitted.job.hex()[:12]} do not verify: ")
    (problem,) = audit([replace(admitted, client=COORDINATOR.node_id)])
    assert problem.endswith("is filed under other terms or another client")
