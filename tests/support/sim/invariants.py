"""What must hold after every run: DESIGN's invariants, read from the log and from what clients got.

Each check gives sentences for what is wrong; none is good. The log is the coordinator's disk, read
again from its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from novamesh.receipts import verify_file
from novamesh_coordinator.audit import Auditor
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import AttemptSettled, JobAdmitted, MemberJoined, Record
from novamesh_coordinator.log_chain import Mark, check_rows
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_engine import FIRST_TOKEN
from support.parties import COORDINATOR, NETWORK
from support.sim.parties import IDENTITY, Client, Wish
from support.sim.swarm import Swarm

PATIENT_S = 45.0
ACCUSING = frozenset(
    {Code.BAD_KEY, Code.BAD_REQUEST, Code.BAD_SIGNATURE, Code.CORRUPT, Code.FORBIDDEN,
     Code.INTERNAL, Code.REPLAYED, Code.WRONG_TYPE}
)  # fmt: skip


def broken(swarm: Swarm) -> list[str]:
    """Everything that is wrong after a run; nothing, if all is well."""
    records, _ = check_rows(swarm.coordinator.disk.rows, Mark())
    return [
        *_audited(swarm, records),
        *_replayed(swarm, records),
        *_acknowledged(swarm, records),
        *(problem for client in swarm.clients for problem in _delivered(swarm, client)),
        *(problem for client in swarm.clients for problem in _served(swarm, client)),
        *(f"unhandled: {problem}" for problem in swarm.surprises),
    ]


def _audited(swarm: Swarm, records: tuple[Record, ...]) -> Iterator[str]:
    """1 and 5, as `novamesh coordinator check` looks for them; and nothing is left undone."""
    auditor = Auditor(COORDINATOR.node_id, NETWORK)
    for record in records:
        yield from auditor.take(record)
    for job in auditor.live():
        yield f"job {job.hex()[:8]} has not ended"
    if swarm.unfinished:
        yield f"not over in time: {', '.join(swarm.unfinished)}"


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


def _served(swarm: Swarm, client: Client) -> Iterator[str]:
    """Where nothing breaks and nobody lies, whoever waits long enough is answered."""
    for wish in client.wishes if swarm.calm else ():
        patient = wish.stop_after is None and wish.deadline_s >= PATIENT_S
        if patient and wish.completion is None:
            yield f"all is well, and {client.name} was not answered: {wish.error}"


def _proved(client: Client, wish: Wish) -> Iterator[str]:
    completion = wish.completion
    assert completion is not None
    if len(completion.token_ids) != wish.tokens:
        yield f"{client.name} holds {len(completion.token_ids)} of {wish.tokens} tokens as a whole"
    try:
        verify_file(completion.receipt_path, COORDINATOR.node_id, client.key.node_id)
    except NovaMeshError as error:
        yield f"a receipt of {client.name} does not verify: {error.message}"
