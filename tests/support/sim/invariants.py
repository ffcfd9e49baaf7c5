"""What must hold after every run: DESIGN's invariants, read from the log and from what clients got.

Each check gives sentences for what is wrong; none is good. The log is the coordinator's disk, read
again from its bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from novamesh.receipts import verify_file
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, JobEnded, MemberJoined, Record
from novamesh_coordinator.log_chain import Mark, check_rows
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    ChunkCheckpoint,
    InferenceAttestation,
    JobId,
    JobState,
    JobTerms,
    RelayReceipt,
    Settlement,
)
from novamesh_proto.names import payload_type
from support.fake_engine import FIRST_TOKEN
from support.parties import COORDINATOR, NETWORK
from support.sim.parties import IDENTITY, Client, Wish
from support.sim.swarm import Swarm

ACCUSING = frozenset(
    {Code.BAD_KEY, Code.BAD_REQUEST, Code.BAD_SIGNATURE, Code.CORRUPT, Code.FORBIDDEN,
     Code.INTERNAL, Code.REPLAYED, Code.WRONG_TYPE}
)  # fmt: skip


def broken(swarm: Swarm) -> list[str]:
    """Everything that is wrong after a run; nothing, if all is well."""
    records, _ = check_rows(swarm.coordinator.disk.rows, Mark())
    return [
        *_one_end(swarm, records),
        *_paid_once(records),
        *_replayed(swarm, records),
        *_acknowledged(swarm, records),
        *_verified(records),
        *(problem for client in swarm.clients for problem in _delivered(swarm, client)),
        *(f"unhandled: {problem}" for problem in swarm.surprises),
    ]


def _one_end(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1: every accepted job reaches exactly one terminal state."""
    admitted = [r.job for r in records if isinstance(r, JobAdmitted)]
    if len(set(admitted)) != len(admitted):
        yield "a job was admitted twice"
    ends: Counter[JobId] = Counter()
    for record in records:
        settled = isinstance(record, AttemptSettled) and record.outcome is JobState.SETTLED
        if settled or isinstance(record, JobEnded):
            ends[record.job] += 1  # type: ignore[union-attr]
    for job in admitted:
        if ends[job] != 1:
            yield f"job {job.hex()[:8]} has {ends[job]} ends"
    for job in ends.keys() - set(admitted):
        yield f"job {job.hex()[:8]} ended and was never admitted"
    if swarm.unfinished:
        yield f"not over in time: {', '.join(swarm.unfinished)}"


def _paid_once(records: tuple[Record, ...]) -> Iterator[str]:
    """1: every token position is paid at most once, and none that was not relayed."""
    roots = {r.job: r.root for r in records if isinstance(r, JobAdmitted)}
    paid: dict[JobId, set[int]] = {}
    for record in records:
        if isinstance(record, AttemptSettled):
            start, count = record.start_position, record.completion_tokens
            span = set(range(start, start + count))
            seen = paid.setdefault(roots[record.job], set())
            if seen & span:
                yield f"positions of job {record.job.hex()[:8]} were paid twice"
            seen |= span
            relayed = envelope.open(record.relay_receipt, RelayReceipt, network=NETWORK).message
            if count > relayed.tokens:
                yield f"{count} tokens were paid, {relayed.tokens} relayed"


def _replayed(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """2: the log gives the same state, byte for byte."""
    core = Core(IDENTITY)
    core.replay(records)
    assert swarm.coordinator.door is not None
    if core.dump() != swarm.coordinator.door.sequencer.core.dump():
        yield "the log gives another state than the coordinator has"


def _acknowledged(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """3: what a client was told is in the log."""
    members = {r.member for r in records if isinstance(r, MemberJoined)}
    admitted = {r.job for r in records if isinstance(r, JobAdmitted)}
    settled = {r.settlement for r in records if isinstance(r, AttemptSettled)}
    for client in swarm.clients:
        done = [w.completion for w in (*client.wishes, *client.resumed) if w.completion]
        if done and client.key.node_id not in members:
            yield f"{client.name} was served and is no member"
        for completion in done:
            if completion.job not in admitted:
                yield f"{client.name} holds an answer to a job that the log does not know"
            if completion.receipt.settlement not in settled:
                yield f"{client.name} holds a settlement that the log does not know"


def _verified(records: tuple[Record, ...]) -> Iterator[str]:
    """5: what was settled rests on statements that verify, each of exactly that attempt."""
    terms = {
        r.job: envelope.open(r.terms, JobTerms, network=NETWORK)
        for r in records
        if isinstance(r, JobAdmitted)
    }
    for record in records:
        if not isinstance(record, AttemptSettled):
            continue
        attested = record.claim.payload_type == payload_type("InferenceAttestation")
        kind = InferenceAttestation if attested else ChunkCheckpoint
        claim = envelope.open(record.claim, kind, network=NETWORK)  # type: ignore[type-var]
        said = claim.message
        same = (said.job, said.attempt, said.fence) == (record.job, record.attempt, record.fence)
        if claim.issuer != record.node or not same:
            yield f"job {record.job.hex()[:8]} was settled by a claim of something else"
        paid = envelope.open(record.settlement, Settlement, network=NETWORK)
        if paid.issuer != COORDINATOR.node_id or paid.message.client != terms[record.job].issuer:
            yield f"the settlement of job {record.job.hex()[:8]} is not the coordinator's"


def _delivered(swarm: Swarm, client: Client) -> Iterator[str]:
    """6: a client gets a prefix of the attested chain, in order, without gap or repeat."""
    for wish in (*client.wishes, *client.resumed):
        got = [token for piece in wish.pieces for token in piece.token_ids]
        if got != list(range(FIRST_TOKEN, FIRST_TOKEN + len(got))) or len(got) > wish.tokens:
            yield f"{client.name} got tokens {got}"
        if wish.completion is not None:
            yield from _proved(client, wish)
        if swarm.honest and wish.error is not None and wish.error.code in ACCUSING:
            yield f"everybody is honest, and {client.name} was told: {wish.error.message}"


def _proved(client: Client, wish: Wish) -> Iterator[str]:
    completion = wish.completion
    assert completion is not None
    if len(completion.token_ids) != wish.tokens:
        yield f"{client.name} holds {len(completion.token_ids)} of {wish.tokens} tokens as a whole"
    try:
        verify_file(completion.receipt_path, COORDINATOR.node_id, client.key.node_id)
    except NovaMeshError as error:
        yield f"a receipt of {client.name} does not verify: {error.message}"
