"""Hostile messages of members to each method, and the one refusal that each must get.

What each kind is refused with, the same at every method that takes a signed message:

    truncated        bad_request    bytes that end too early are no message of the method
    cut payload      bad_signature  the signature is over the whole
    oversized        too_large      envelope above 64 KiB, message above 1 MiB, headers above 8 KiB
    wrong audience   wrong_audience
    wrong network    wrong_network
    expired          not_fresh      one code, because the answer is the same, a right clock; the
    future           not_fresh      message says which way, and by how much
    duplicated       replayed       at once; what may be repeated without harm is answered twice
    replayed         replayed       later, over another connection; likewise
    reordered        not_found      before the job that it is about
    forged           bad_signature  one bit
    mistyped         wrong_type     a valid message of another kind
    stranger         not_a_member   right in all but who says it
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from novamesh_proto import wire
from novamesh_proto.envelope import Signable
from novamesh_proto.errors import Code
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import (
    BanOrder,
    CancelOrder,
    ClientReceipt,
    DescriptorsQuery,
    Envelope,
    Header,
    JobId,
    JobQuery,
    JobsQuery,
    JoinClaim,
    MatchQuery,
    ModelsQuery,
    NodesQuery,
    ProfileDigest,
    ReceiptVerdict,
    SealedJob,
    StreamAck,
    WatchQuery,
)
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.actors import Actor
from support.hostile.honest import Done
from support.hostile.twists import TWISTS, header, loose, twist, varint
from support.parties import COORDINATOR, party

POOL: Final = "/novamesh.v1.PoolService/"
ADMIN: Final = "/novamesh.v1.AdminService/"


@dataclass(frozen=True)
class Shot:
    """One message, or the same one several times, and what must come back."""

    kind: str
    method: str
    data: bytes
    answers: tuple[Code | None, ...]  # one for each time it is sent, in any order; None = taken
    words: str = ""  # what a refusal says
    headers: tuple[tuple[str, str], ...] = ()
    elsewhere: bool = False  # each time over another connection, one after the other


@dataclass(frozen=True)
class Method:
    """One method: what it is asked, how that is wrapped, and what a right question gets."""

    path: str
    make: Callable[[Header, Done], Signable]
    wrap: Callable[[Any, Done], Any]
    answer: Code | None = None
    once: bool = True  # a repetition is REPLAYED
    by_owner: bool = False
    of_a_job: bool = False
    for_members: bool = True


def _query(request: Any) -> Callable[[Any, Done], Any]:
    return lambda sealed, done: request(query=sealed)


def _terms(header: Header, done: Done) -> Signable:
    return replace(done.order.terms.message, header=header)


def _resubmit(sealed: Any, done: Done) -> Any:
    """The job as it was sealed, under these terms."""
    job = wire.to_pb(
        SealedJob(done.order.terms.envelope, done.order.job.body, done.order.job.wraps)
    )
    job.terms.CopyFrom(sealed)
    return pb.SubmitRequest(job=job)


def _ack(header: Header, done: Done) -> Signable:
    given = done.assignment.message
    ids = (given.job, given.attempt, given.fence)
    return StreamAck(header, *ids, 1, 1, bytes(32), bytes(16))


def _receipt(header: Header, done: Done) -> Signable:
    given = done.assignment.message
    return ClientReceipt(
        header, given.job, given.attempt, given.fence, bytes(32), 1, 1, 1, 1, 1, ReceiptVerdict.OK
    )


def _no_model(header: Header, done: Done) -> Signable:
    return MatchQuery(header, ProfileDigest(bytes(32)), prompt_bytes=40, max_tokens=100)


METHODS: Final = (
    Method(
        POOL + "Join", lambda h, d: JoinClaim(h, b""), lambda e, d: pb.JoinRequest(claim=e),
        once=False, for_members=False,
    ),
    Method(POOL + "ListModels", lambda h, d: ModelsQuery(h), _query(pb.ListModelsRequest)),
    Method(
        POOL + "ListDescriptors", lambda h, d: DescriptorsQuery(h),
        _query(pb.ListDescriptorsRequest),
    ),
    Method(POOL + "Match", _no_model, _query(pb.MatchRequest), Code.MODEL_NOT_FOUND),
    Method(POOL + "Submit", _terms, _resubmit, Code.CONFLICT, once=False),
    Method(
        POOL + "Watch", lambda h, d: WatchQuery(h, d.order.id, 0, 0), _query(pb.WatchRequest),
        of_a_job=True,
    ),
    Method(
        POOL + "Acknowledge", _ack, lambda e, d: pb.AcknowledgeRequest(ack=e),
        once=False, of_a_job=True,
    ),
    Method(
        POOL + "SubmitReceipt", _receipt, lambda e, d: pb.SubmitReceiptRequest(receipt=e),
        once=False, of_a_job=True,
    ),
    Method(
        POOL + "Cancel", lambda h, d: CancelOrder(h, d.order.id),
        lambda e, d: pb.CancelRequest(order=e), once=False, of_a_job=True,
    ),
    Method(
        POOL + "GetJob", lambda h, d: JobQuery(h, d.order.id), _query(pb.GetJobRequest),
        of_a_job=True,
    ),
    Method(POOL + "ListJobs", lambda h, d: JobsQuery(h, 5), _query(pb.ListJobsRequest)),
    Method(ADMIN + "ListNodes", lambda h, d: NodesQuery(h), _query(pb.ListNodesRequest),
           by_owner=True),
    Method(
        ADMIN + "Ban", lambda h, d: BanOrder(h, party("nobody").node_id, "noise"),
        lambda e, d: pb.BanRequest(order=e), by_owner=True,
    ),
)  # fmt: skip


class Gun:
    """Makes the shots of one member, who has had one job; the same seed gives the same ones."""

    def __init__(self, done: Done, rng: random.Random) -> None:
        self._done = done
        self._rng = rng
        self._owner = Actor("coordinator", COORDINATOR.node_id)
        self._stranger = Actor("stranger", COORDINATOR.node_id)

    def load(self) -> Shot:
        """Any kind at any method that it applies to."""
        kind = self._rng.choice(KINDS)
        methods = [method for method in METHODS if applies(kind, method)]
        return self.aim(kind, self._rng.choice(methods))

    def aim(self, kind: str, method: Method) -> Shot:
        """This kind at this method."""
        who = self._owner if method.by_owner else self._done.client
        if kind == "truncated":
            return self._truncate(method, who)
        if kind == "oversized" and self._rng.random() < 0.4:
            return self._oversize(method, who)
        if kind in TWISTS:
            wrong = twist(kind, who, lambda head: method.make(head, self._done), self._rng)
            return self._shot(kind, method, wrong.sealed, wrong.code, words=wrong.words)
        if kind in ("duplicated", "replayed"):
            again = Code.REPLAYED if method.once else method.answer
            sealed = self._sign(method, who)
            elsewhere = kind == "replayed"
            return self._shot(kind, method, sealed, method.answer, again, elsewhere=elsewhere)
        if kind == "reordered":
            right: Any = method.make(header(who, self._rng), self._done)
            early = who.sign(replace(right, job=JobId(self._rng.randbytes(32))))
            return self._shot(kind, method, early, Code.NOT_FOUND)
        if kind == "mistyped":
            other = self._rng.choice([one for one in METHODS if one is not method])
            return self._shot(kind, method, self._sign(other, who), Code.WRONG_TYPE)
        assert kind == "stranger"
        return self._shot(kind, method, self._sign(method, self._stranger), Code.NOT_A_MEMBER)

    def _sign(self, method: Method, who: Actor) -> Envelope:
        return who.sign(method.make(header(who, self._rng), self._done))

    def _shot(
        self, kind: str, method: Method, sealed: Envelope, *answers: Code | None, **more: Any
    ) -> Shot:
        data = method.wrap(loose(sealed), self._done).SerializeToString()
        return Shot(kind, method.path, data, answers, **more)

    def _truncate(self, method: Method, who: Actor) -> Shot:
        whole = method.wrap(loose(self._sign(method, who)), self._done).SerializeToString()
        data = whole[: self._rng.randrange(1, min(len(whole), 250))]
        return Shot("truncated", method.path, data, (Code.BAD_REQUEST,), "not the message")

    def _oversize(self, method: Method, who: Actor) -> Shot:
        """More than gRPC takes, as a message or as headers."""
        if self._rng.random() < 0.2:
            data = b"\x7a" + varint(MESSAGE_BYTES_MAX) + bytes(MESSAGE_BYTES_MAX)
            return Shot("oversized", method.path, data, (Code.TOO_LARGE,), "larger than max")
        padding = "x" * (METADATA_BYTES_MAX + self._rng.randrange(1_000))
        more: dict[str, Any] = {"words": "metadata", "headers": (("x-padding", padding),)}
        return self._shot("oversized", method, self._sign(method, who), Code.TOO_LARGE, **more)


KINDS: Final = (
    "truncated", *TWISTS, "duplicated", "replayed", "reordered", "mistyped", "stranger",
)  # fmt: skip


def applies(kind: str, method: Method) -> bool:
    """Whether a kind can be told from a right message at a method."""
    if kind == "reordered":
        return method.of_a_job
    return kind != "stranger" or (method.for_members and not method.by_owner)
