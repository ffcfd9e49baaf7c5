"""Every gRPC method of a coordinator: what members, nodes and the owner may say, rightly signed.

Samples have blank signatures, which are made after the edits, or real ones, which edits break. A
stage serves until something was logged, then the next example gets a new one; now and then, and at
the end, an honest job must still be done on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from novamesh_proto import wire
from novamesh_proto.envelope import Signable
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    BanOrder,
    DescriptorsQuery,
    IdleQuery,
    JobProgress,
    NodeLoad,
    NodesQuery,
)
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import node_pb2
from support.actors import NodeActor
from support.clock import START_MS
from support.fuzz import tree
from support.fuzz.sealing import ASSIGNMENT, NONCE, blank, complete
from support.fuzz.stage import ADMIN, ATTACH, CLIENT, OWNER, POOL, Line, Stage, orders
from support.fuzz.target import Target
from support.fuzz.tree import Shape, frames
from support.parties import COORDINATOR, party

KEYS: Final = {
    key.node_id: key for key in (COORDINATOR, party("client"), party("node"), party("stranger"))
}
ATTACHED: Final = frames("stream of a node", message=node_pb2.AttachRequest)
HONEST_EVERY: Final = 25  # stages

Work = Callable[[Stage, bytes], object]


class Stages:
    """Feeds one way in, with a stage as it was made; `once`: what is refused uses it up too."""

    def __init__(self, work: Work, once: bool = False) -> None:
        self._work = work
        self._once = once
        self._stage: Stage | None = None
        self._used = 0

    def feed(self, data: bytes) -> object:
        """Feed it. Raises as `Target.feed`."""
        stage = self._stage = self._stage or Stage()
        refused = False
        try:
            return self._work(stage, data)
        except NovaMeshError:
            refused = True
            raise
        finally:
            if stage.changed or self._once or not refused:
                self._used += 1
                self._leave(check=self._used % HONEST_EVERY == 0)

    def close(self) -> None:
        """An honest job is still done."""
        self._stage = self._stage or Stage()
        self._leave(check=True)

    def _leave(self, check: bool) -> None:
        stage, self._stage = self._stage, None
        assert stage is not None
        try:
            if check:
                stage.serve_honest_job()
        finally:
            stage.close()


def method_targets() -> tuple[Target, ...]:
    """All of them."""
    stage = Stage()
    try:
        unary, streams = _requests(stage), _streams(stage)
        assert {*unary, ATTACH} == stage.methods
    finally:
        stage.close()
    made = [_unary(method, requests) for method, requests in unary.items()]
    opened = Stages(_attach)
    at_work = Stages(_go_on, once=True)
    return (
        *made,
        Target("Attach", opened.feed, streams[0], ATTACHED, opened.close),
        Target("Attach at work", at_work.feed, streams[1], ATTACHED, at_work.close),
    )


def _unary(method: str, requests: tuple[Any, ...]) -> Target:
    shape = tree.shape_of(requests[0].DESCRIPTOR)
    stages = Stages(partial(_ask, method, shape))
    signed = [request.SerializeToString() for request in requests]
    samples = dict.fromkeys([*(blank(data, shape) for data in signed), *signed])
    name = method.rpartition("/")[2]
    return Target(name, stages.feed, tuple(samples), shape, stages.close)


def _ask(method: str, shape: Shape, stage: Stage, data: bytes) -> object:
    return stage.ask(method, complete(data, shape, KEYS, {}))


def _requests(stage: Stage) -> dict[str, tuple[Any, ...]]:
    """What each method takes."""
    now_ms, made = START_MS, orders()
    one, two = made.one.id, made.two.id
    sealed = wire.to_pb

    def owner(message: Callable[..., Signable], **more: Any) -> Any:
        return sealed(OWNER.sign(message(OWNER.header(now_ms), **more)))

    goes_on = CLIENT.seal([made.node.descriptor(now_ms)], now_ms, "job-4", parent=one, held=3)
    stranger = party("stranger").node_id
    pool = {
        "Hello": (pb.HelloRequest(),),
        "Join": (pb.JoinRequest(claim=sealed(CLIENT.claim(now_ms))),),
        "ListModels": (pb.ListModelsRequest(query=sealed(CLIENT.ask_models(now_ms))),),
        "ListDescriptors": (
            pb.ListDescriptorsRequest(
                query=sealed(CLIENT.sign(DescriptorsQuery(CLIENT.header(now_ms))))
            ),
        ),
        "Match": (
            pb.MatchRequest(query=sealed(CLIENT.match(now_ms))),
            pb.MatchRequest(query=sealed(CLIENT.match(now_ms, count=1, excluded=(stranger,)))),
        ),
        "Submit": (
            pb.SubmitRequest(job=sealed(made.three.job), reservations=[bytes(16)]),
            pb.SubmitRequest(job=sealed(goes_on.job)),
        ),
        "Watch": (
            pb.WatchRequest(query=sealed(CLIENT.watch(one, now_ms))),
            pb.WatchRequest(query=sealed(CLIENT.watch(one, now_ms, attempt=1, from_chunk=1))),
        ),
        "Acknowledge": (
            pb.AcknowledgeRequest(ack=sealed(CLIENT.acknowledge(stage.attempt_two, now_ms))),
        ),
        "SubmitReceipt": (
            pb.SubmitReceiptRequest(receipt=sealed(CLIENT.countersign(stage.attempt_one, now_ms))),
        ),
        "Cancel": tuple(
            pb.CancelRequest(order=sealed(CLIENT.cancel(job, now_ms))) for job in (two, one)
        ),
        "GetJob": (pb.GetJobRequest(query=sealed(CLIENT.ask(one, now_ms))),),
        "ListJobs": (pb.ListJobsRequest(query=sealed(CLIENT.ask_all(now_ms))),),
    }
    admin = {
        "ListNodes": (pb.ListNodesRequest(query=owner(NodesQuery)),),
        "Ban": (
            pb.BanRequest(order=owner(BanOrder, member=stranger, reason="it floods")),
            pb.BanRequest(order=owner(BanOrder, member=stranger, lift=True)),
            pb.BanRequest(order=owner(BanOrder, member=made.node.id)),
        ),
    }
    found = {POOL + name: requests for name, requests in pool.items()}
    return found | {ADMIN + name: requests for name, requests in admin.items()}


def _streams(stage: Stage) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """What a node says: from its hello on, and on the line on which it was just given job TWO."""
    now_ms, made, given = START_MS, orders(), stage.attempt_two
    node = NodeActor("node", COORDINATOR.node_id, advert=made.node.advert, sequence=2)
    hello = node.hello(NONCE, stage.door.key_digest, now_ms, (given.running,))
    newcomer = node.hello(NONCE, stage.door.key_digest, now_ms)
    load = AttachRequest(load=NodeLoad(1, True))
    accept = AttachRequest(decision=given.decide(now_ms))
    decline = AttachRequest(decision=given.decide(now_ms, accepted=False))
    first, second = AttachRequest(chunk=given.chunk(2)), AttachRequest(chunk=given.chunk(1))
    point = AttachRequest(checkpoint=given.checkpoint(now_ms))
    failed = AttachRequest(failure=given.fail(now_ms))
    last = AttachRequest(chunk=given.chunk(0, final=True))
    claim = AttachRequest(attestation=given.attest(now_ms))
    prefill = AttachRequest(progress=JobProgress(**given.ids, prompt_tokens_done=5))
    renewed = AttachRequest(descriptor=node.descriptor(now_ms))
    idle = AttachRequest(idle_query=IdleQuery())
    answer = (prefill, first, second, point, last, claim)
    from_hello = (
        (AttachRequest(hello=newcomer), load, idle, renewed),
        (AttachRequest(hello=hello), load, *answer),
    )
    at_work = (
        (accept, *answer, load),
        (accept, prefill, first, second, point, failed),
        (decline, load),
    )
    written = partial(_written, given.assignment.id)
    return tuple(map(written, from_hello)), tuple(map(written, at_work))


def _written(assignment: bytes, messages: tuple[AttachRequest, ...]) -> bytes:
    data = tree.join(ATTACHED, [(1, wire.encode(message)) for message in messages])
    return blank(data, ATTACHED).replace(assignment, ASSIGNMENT)


def _attach(stage: Stage, data: bytes) -> object:
    line = stage.open_line()
    challenge = stage.run(line.next("challenge"))
    stand_ins = {NONCE: challenge.nonce, ASSIGNMENT: stage.attempt_two.assignment.id}
    return _say(stage, line, data, stand_ins)


def _go_on(stage: Stage, data: bytes) -> object:
    stand_ins = {ASSIGNMENT: stage.attempt_two.assignment.id}
    return _say(stage, stage.line, data, stand_ins)


def _say(stage: Stage, line: Line, data: bytes, stand_ins: dict[bytes, bytes]) -> object:
    """Everything a stream holds, then its end."""
    for _, message in tree.split(complete(data, ATTACHED, KEYS, stand_ins), ATTACHED):
        if not line.say(message):
            break
    line.end()
    stage.run(stage.over(line.task, line.context))
    stopped = [order for order in line.messages("cancel") if order.code == Code.STALE]
    if stopped:
        raise NovaMeshError(Code.STALE, "the node was told to stop an attempt")
    return line
