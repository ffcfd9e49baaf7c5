"""One sealed job and everything its pool sends, without any pool: for whoever reads events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from novamesh.job_records import JobRecord
from novamesh.order import draft, order_of
from novamesh.reader import AnswerReader
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.messages import (
    JobAssignment,
    JobState,
    JobView,
    PoolModel,
    WatchResponse,
)
from support.clock import START_MS
from support.fake_answer import NETWORK, PICO, Play, Script, sign
from support.parties import CLIENT, COORDINATOR, NODE, descriptor

MODEL = PoolModel(PICO, "nova-pico", 1, 1, 512)
STARTED_S = 100.0


@dataclass(frozen=True)
class SentAnswer:
    """A job's record at its client, and the events of its stream, the terminal one last."""

    record: JobRecord
    assignment: Verified[JobAssignment]
    events: tuple[WatchResponse, ...]

    def reader(self) -> AnswerReader:
        """A reader that has seen nothing yet, with countable challenges."""
        return AnswerReader(self.record, CLIENT, COORDINATOR.node_id, STARTED_S, _counting())


def send_answer(script: Script | None = None) -> SentAnswer:
    """A job that is answered as the script says."""
    script = script or Script()
    header = envelope.header(CLIENT, NETWORK, (COORDINATOR.node_id,), START_MS)
    made = draft(order_of("nova-pico", "2+3?", {}, 60.0), MODEL, header, CLIENT, 64)
    offer = replace(descriptor().models[0], model_profile=PICO)
    card = envelope.header(NODE, NETWORK, (), START_MS)
    node = sign(descriptor(header=card, models=(offer,)), NODE)
    record = JobRecord(
        model="nova-pico",
        terms=made.terms,
        response_key=made.body.response_key,
        client_seed=made.body.client_seed,
        candidates=(node,),
        submitted_at_ms=START_MS,
    )
    given = assign(record, 1)
    view = JobView(record.job, JobState.SETTLED, 1, NODE.node_id, PICO, START_MS)
    play = Play(script, COORDINATOR, NODE, record.terms, given, made.body)
    events = (WatchResponse(assignment=given.envelope), *play.events(), WatchResponse(job=view))
    return SentAnswer(record, given, events)


def assign(record: JobRecord, attempt: int) -> Verified[JobAssignment]:
    """The coordinator's assignment of an attempt to the node."""
    audience = (NODE.node_id, CLIENT.node_id)
    head = envelope.header(COORDINATOR, NETWORK, audience, START_MS, in_reply_to=record.terms.id)
    made = JobAssignment(head, record.job, NODE.node_id, attempt, 6 + attempt, 15_000)
    return sign(made, COORDINATOR)


def _counting() -> Callable[[int], bytes]:
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(size, "big")

    return random
