"""What must hold after every run: ARCHITECTURE's invariants, in the log and in what clients got.

Each check gives sentences for what is wrong; none is good. The log is the coordinator's disk, read
again from its bytes. What can only be seen while it happens is looked at by `witness`: that nothing
leaves before it is on the disk (3), that nothing is readable, that no chunk key is used twice (4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from novamesh.receipts import verify_file
from novamesh_coordinator.check import check
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import (
    AttemptEnded,
    AttemptSettled,
    JobAdmitted,
    JobEnded,
    MemberJoined,
    Record,
)
from novamesh_coordinator.log_chain import read_row
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    ClientReceipt,
    JobId,
    JobState,
    NodeId,
    RelayReceipt,
    StreamAck,
)
from novamesh_proto.names import payload_type
from support.fake_engine import FIRST_TOKEN
from support.parties import COORDINATOR, NETWORK
from support.sim.client import Client, Wish
from support.sim.direct import DirectClient
from support.sim.direct_invariants import DIRECT_CHECKS
from support.sim.disk import DiskStore
from support.sim.pool import IDENTITY
from support.sim.swarm import HEALING_S, Swarm

PATIENT_S = 45.0
SLACK_S = 12.0
ACCUSING = frozenset(
    {Code.BAD_KEY, Code.BAD_REQUEST, Code.BAD_SIGNATURE, Code.CORRUPT, Code.FORBIDDEN,
     Code.INTERNAL, Code.REPLAYED, Code.WRONG_TYPE}
)  # fmt: skip
Check = Callable[[Swarm, tuple[Record, ...]], Iterator[str]]


def broken(swarm: Swarm) -> list[str]:
    """Everything that is wrong after a run; nothing, if all is well."""
    problems = list(dict.fromkeys(swarm.findings))
    problems += _guarded("the log", lambda: _checked(swarm))
    try:
        records = tuple(read_row(row) for row in swarm.coordinator.disk.rows)
    except NovaMeshError as error:
        return [*problems, f"the log cannot be read: {error.message}"]
    for one in CHECKS:
        problems += _guarded(one.__name__, lambda one=one: one(swarm, records))  # type: ignore[misc]
    return problems


def _guarded(what: str, work: Callable[[], Iterator[str]]) -> list[str]:
    try:
        return list(work())
    except Exception as error:
        # What a bug left behind may be such that a check fails on it: that is a finding as well.
        return [f"{what} cannot be judged: {error!r}"]


def _checked(swarm: Swarm) -> Iterator[str]:
    """1, 2, 5: as `novamesh coordinator check` looks: chain, snapshots, jobs, payments, proofs."""
    store = DiskStore(swarm.coordinator.disk)

    async def look() -> tuple[str, ...]:
        try:
            return (await check(IDENTITY, store)).problems
        finally:
            await store.close()

    yield from asyncio.run(look())


def _ended(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: every job came to its one end, and in time: its deadline, or healing, and 15 s."""
    due = {r.job: r.at_ms + r.timeout_ms for r in records if isinstance(r, JobAdmitted)}
    ended = {_job(record): record.at_ms for record in records if _ends(record)}
    for job, due_ms in due.items():
        latest_ms = max(due_ms, swarm.healed_ms) + HEALING_S * 1000
        if job not in ended:
            yield f"job {job.hex()[:8]} has not ended"
        elif ended[job] > latest_ms:
            yield f"job {job.hex()[:8]} ended {(ended[job] - latest_ms) / 1000:.1f} s too late"


def _replayed(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """2: the log gives the same state, byte for byte."""
    core = Core(IDENTITY)
    core.replay(records)
    door = swarm.coordinator.door
    if door is None:
        yield "pool does not serve at the end"
    elif core.state() != door.sequencer.core.state():
        yield "the log gives another state than the coordinator has"


def _acknowledged(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """3: what a client was told is in the log."""
    members = {r.member for r in records if isinstance(r, MemberJoined)}
    admitted = {r.job for r in records if isinstance(r, JobAdmitted)}
    settled = {r.settlement for r in records if isinstance(r, AttemptSettled)}
    for client in swarm.clients:
        got = [w.completion for w in (*client.wishes, *client.resumed) if w.completion]
        done = [completion for completion in got if completion.receipt.settlement is not None]
        if done and client.key.node_id not in members:
            yield f"{client.name} was served and is no member"
        for completion in done:
            if completion.job not in admitted:
                yield f"{client.name} holds an answer to a job that the log does not know"
            if completion.receipt.settlement not in settled:
                yield f"{client.name} holds a settlement that the log does not know"


def _just(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1, 5: honest nodes are paid all that they sent, once, and are accused of nothing."""
    honest = {node.key.node_id: node.name for node in swarm.nodes if node.honest}
    roots = {r.job: r.root for r in records if isinstance(r, JobAdmitted)}
    starts = {r.job: r.start_position for r in records if isinstance(r, JobAdmitted)}
    paid: dict[JobId, int] = {}
    settled = {r.job for r in records if isinstance(r, AttemptSettled)}
    nodes: dict[JobId, NodeId] = {}
    for record in records:
        if isinstance(record, AttemptEnded) and record.node in honest and record.code in ACCUSING:
            yield f"{honest[record.node]} is honest, and the log says that {record.message}"
        if isinstance(record, AttemptSettled):
            root = roots[record.job]
            end = _seen_until(record, starts[record.job])
            owed = max(0, end - max(starts[record.job], paid.get(root, 0)))
            whole = record.outcome is JobState.SETTLED and record.node in honest
            if whole and record.completion_tokens != owed:
                name, got = honest[record.node], record.completion_tokens
                yield f"{name} sent {owed} tokens that nobody had paid, and was paid {got}"
            last = record.start_position + record.completion_tokens
            paid[root] = max(paid.get(root, 0), last)
        if hasattr(record, "node") and hasattr(record, "job"):
            nodes[record.job] = record.node
        ended = isinstance(record, JobEnded) and record.tokens > 0 and swarm.quiet
        if ended and nodes.get(_job(record)) in honest and _job(record) not in settled:
            yield f"{honest[nodes[_job(record)]]} sent a part of an answer and was not paid"


def _seen_until(record: AttemptSettled, start: int) -> int:
    """Position up to which the relay, or in its place the client, saw the answer."""
    if record.relay_receipt is not None:
        seen = envelope.open(record.relay_receipt, RelayReceipt, network=NETWORK)
        return start + seen.message.tokens
    assert record.witness is not None
    if record.witness.payload_type == payload_type("StreamAck"):
        return envelope.open(record.witness, StreamAck, network=NETWORK).message.position
    got = envelope.open(record.witness, ClientReceipt, network=NETWORK).message
    return start + got.completion_tokens


def _ends(record: Record) -> bool:
    settled = isinstance(record, AttemptSettled) and record.outcome is JobState.SETTLED
    return settled or isinstance(record, JobEnded)


def _job(record: Record) -> JobId:
    job: JobId = record.job  # type: ignore[union-attr]
    return job


def _delivered(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """6: a client gets a prefix of the attested chain, in order, without gap or repeat."""
    del records
    for client in swarm.clients:
        for wish in (*client.wishes, *client.resumed):
            got = [token for piece in wish.pieces for token in piece.token_ids]
            whole = list(range(FIRST_TOKEN, FIRST_TOKEN + len(got)))
            if got != whole or len(got) > wish.tokens:
                yield f"{client.name} got tokens {got}"
            if wish.completion is not None:
                yield from _proved(client, wish)


def _accused(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """5: where every node is honest, no honest client is told that somebody cheats."""
    del records
    for client in swarm.clients if swarm.honest else ():
        for wish in (*client.wishes, *client.resumed) if client.honest else ():
            if wish.error is not None and wish.error.code in ACCUSING:
                yield f"everybody is honest, and {client.name} was told: {wish.error.message}"
            for lost in wish.survived:
                # Of what a node brought itself, it may be lost before the pool hears of it.
                again = "began the answer again" in lost.message and not reaches_nodes(client)
                if lost.code in ACCUSING or again:
                    yield f"everybody is honest, and {client.name} survived: {lost.message}"


def reaches_nodes(client: Client) -> bool:
    """Whether not all that it gets passes the pool."""
    return isinstance(client, DirectClient)


def _served(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """Where nothing breaks and nobody lies, whoever waits long enough is answered."""
    del records
    for client in swarm.clients if swarm.calm else ():
        for wish in client.wishes:
            # Whatever node the job came to, that one had the time for all of it, and some more.
            paces = [node.pace for node in swarm.nodes]
            work_s = max(pace.prefill_s + wish.tokens * pace.token_s for pace in paces)
            enough = wish.deadline_s >= max(PATIENT_S, work_s + SLACK_S)
            patient = wish.stop_after is None and enough
            if patient and wish.completion is None:
                yield f"all is well, and {client.name} was not answered: {wish.error}"


def _proved(client: Client, wish: Wish) -> Iterator[str]:
    completion = wish.completion
    assert completion is not None
    if len(completion.token_ids) != wish.tokens:
        yield f"{client.name} holds {len(completion.token_ids)} of {wish.tokens} tokens as a whole"
    try:
        proof = verify_file(completion.receipt_path, None, client.key.node_id)
        if proof.coordinator not in (COORDINATOR.node_id, proof.node):
            yield f"a receipt of {client.name} is by nobody who could assign its job"
    except NovaMeshError as error:
        yield f"a receipt of {client.name} does not verify: {error.message}"


def _blameless(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: for what the pool's or the broker's absence did, no node's record is worse."""
    honest = {node.key.node_id: node.name for node in swarm.nodes if node.honest}
    for record in records if swarm.nodes_spared else ():
        if isinstance(record, AttemptEnded) and record.lost and record.node in honest:
            yield f"no node was away, and {honest[record.node]} is blamed: {record.message}"


def _prompt(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: nobody waits for longer than the deadline that was given, and 15 s."""
    del records
    for client in swarm.clients:
        for wish in (*client.wishes, *client.resumed):
            if wish.took_s > wish.deadline_s + HEALING_S:
                late_s = wish.took_s - wish.deadline_s
                yield f"{client.name} was told {late_s:.1f} s after the deadline"


CHECKS: tuple[Check, ...] = (
    _ended, _replayed, _acknowledged, _just, _delivered, _accused, _served, _blameless, _prompt,
    *DIRECT_CHECKS,
)  # fmt: skip
