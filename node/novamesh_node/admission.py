"""Whether a job is taken, assigned by the pool or asked of this node alone: the checks in order.

size, signature, audience, freshness, terms, governor, policy, capacity, replay: from cheap to dear,
and each refusal has its own code. Rules: whoever asks is asked the same; an attempt is admitted
once in a node's life, restarts included, so no keystream is used twice; what is refused leaves
nothing behind. What was asked of this node alone is remembered apart, so that strangers fill no
memory of the pool's, and for one life of the process: the keys that open it live no longer. Nothing
is decrypted here. What is admitted is opened by the desk. No I/O and no clock: `now_ms` is the wall
clock.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from novamesh_node.attempt import AttemptKey
from novamesh_node.governor import Ruling
from novamesh_node.statements import key_of
from novamesh_proto import envelope
from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.envelope import ReplayWindow, Verified
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.limits import BODY_BYTES_MAX, CLOCK_SKEW_MS
from novamesh_proto.messages import (
    AttachAssignment,
    JobAssignment,
    JobId,
    JobTerms,
    NodeId,
    ProfileDigest,
    SealedJob,
)
from novamesh_proto.names import LABEL_POLICY

RETRY_MS: Final = 1_000
ALONE_REMEMBERED_MAX: Final = 16_384  # jobs that were asked of this node alone
CLIENT_RATE: Final = Rate(2, 8)  # of such jobs by one client


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner refuses: answers longer than that many tokens (0: none), and clients;
    `donates` whether the node also works where there is no coordinator to count it."""

    tokens_max: int = 0
    refused_clients: frozenset[NodeId] = frozenset()
    donates: bool = False

    @property
    def digest(self) -> bytes:
        """What a descriptor says of it, 32 bytes; whom the owner refuses is nobody's business."""
        rules = f"tokens_max={self.tokens_max};donates={int(self.donates)}"
        return hashlib.sha256(LABEL_POLICY + rules.encode()).digest()


@dataclass(frozen=True, slots=True)
class House:
    """What does not change while a node runs: who it is, whom it answers, what it serves."""

    node: NodeId
    coordinator: NodeId
    network: str
    contexts: dict[ProfileDigest, int]  # tokens of prompt plus answer by loaded model
    policy: Policy = Policy()


@dataclass(frozen=True, slots=True)
class Admitted:
    """An assignment that passed every check. Only `Admission.admit` makes one."""

    assignment: Verified[JobAssignment]
    terms: Verified[JobTerms]
    job: SealedJob

    @property
    def key(self) -> AttemptKey:
        """Its attempt."""
        return key_of(self.assignment.message)

    @property
    def remembered_until_ms(self) -> int:
        """When nobody can offer it any more."""
        return _last_ms(self.terms.message)


class Admission:
    """Holds the attempts that were admitted, until nobody can offer them again."""

    def __init__(self, house: House, replays: ReplayWindow) -> None:
        self._house = house
        self._replays = replays
        self._replays_alone = ReplayWindow(ALONE_REMEMBERED_MAX)
        self._clients = Buckets(CLIENT_RATE)

    def verify(self, offer: AttachAssignment) -> Verified[JobAssignment]:
        """The coordinator's own assignment for this node: what a signed decision can answer.

        Raises:
            NovaMeshError: TOO_LARGE, WRONG_TYPE, BAD_KEY, BAD_SIGNATURE, WRONG_NETWORK,
                WRONG_AUDIENCE.
            PeerError: FORBIDDEN if another than the coordinator signed it.
        """
        if len(offer.job.body) > BODY_BYTES_MAX:
            raise _too_large(offer.job)
        house = self._house
        assignment = envelope.open(
            offer.assignment, JobAssignment, network=house.network, audience=house.node
        )
        if assignment.issuer != house.coordinator:
            issuer = format_node_id(assignment.issuer)
            raise PeerError(Code.FORBIDDEN, "only the coordinator assigns work here", issuer)
        if assignment.message.node != house.node:
            other = short(assignment.message.node)
            raise NovaMeshError(Code.WRONG_AUDIENCE, f"this assignment is for {other}")
        return assignment

    def admit(
        self, offer: AttachAssignment, assignment: Verified[JobAssignment], ruling: Ruling,
        now_ms: int,
    ) -> Admitted:  # fmt: skip
        """The admitted job of a verified assignment; from now on it counts as run.

        Raises:
            NovaMeshError: NOT_FRESH; as `envelope.open` for the terms; EXPIRED, BAD_REQUEST,
                MODEL_NOT_FOUND, TOO_LARGE for the terms; UNAVAILABLE by the owner's rules; POLICY;
                BUSY without a free slot; REPLAYED.
        """
        house = self._house
        envelope.open(offer.assignment, JobAssignment, network=house.network, now_ms=now_ms)
        terms = envelope.open(
            offer.job.terms, JobTerms, network=house.network, audience=house.coordinator
        )
        last_ms = _last_ms(terms.message)
        _check_time(terms.message, last_ms, now_ms)
        self._check_wanted(terms, assignment.message, offer.job, ruling)
        self._replays.admit(key_of(assignment.message).digest, last_ms, now_ms)
        return Admitted(assignment, terms, offer.job)

    def check_donating(self) -> None:
        """Raises POLICY if the owner donates nothing."""
        if not self._house.policy.donates:
            raise NovaMeshError(
                Code.POLICY,
                "this node works for its pool only",
                "ask through the pool, or ask a node that donates work",
            )

    def verify_alone(self, job: SealedJob, now_ms: int) -> Verified[JobTerms]:
        """Fresh terms that name this node and nobody else: work without a coordinator.

        Raises:
            NovaMeshError: TOO_LARGE; POLICY if the owner donates nothing; WRONG_AUDIENCE if anybody
                else is named; BUSY if this client asks too often; and as `envelope.open`.
        """
        house = self._house
        self.check_donating()
        if len(job.body) > BODY_BYTES_MAX:
            raise _too_large(job)
        terms = envelope.open(
            job.terms, JobTerms, network=house.network, audience=house.node, now_ms=now_ms
        )
        if terms.message.header.audience != (house.node,):
            raise NovaMeshError(
                Code.WRONG_AUDIENCE,
                "these terms name others beside this node",
                "name exactly one node in the terms, so that the work is done once",
            )
        self._clients.take(terms.issuer, now_ms / 1000)
        return terms

    def admit_alone(
        self, job: SealedJob, terms: Verified[JobTerms], assignment: Verified[JobAssignment],
        ruling: Ruling, now_ms: int,
    ) -> Admitted:  # fmt: skip
        """The admitted job of terms that name this node alone; from now on it counts as run.

        Raises:
            NovaMeshError: as `admit`.
        """
        self._check_wanted(terms, assignment.message, job, ruling)
        last_ms = _last_ms(terms.message)
        self._replays_alone.admit(key_of(assignment.message).digest, last_ms, now_ms)
        return Admitted(assignment, terms, job)

    def _check_wanted(
        self, terms: Verified[JobTerms], given: JobAssignment, job: SealedJob, ruling: Ruling
    ) -> None:
        self._check_terms(terms, given, job)
        if not ruling.accepting:
            raise NovaMeshError(Code.UNAVAILABLE, ruling.reason)
        self._check_policy(terms)
        if ruling.free_slots < 1:
            raise NovaMeshError(
                Code.BUSY, "every slot of this node is at work", retry_after_ms=RETRY_MS
            )

    def _check_terms(self, terms: Verified[JobTerms], given: JobAssignment, job: SealedJob) -> None:
        wanted, house = terms.message, self._house
        if given.job != JobId(terms.id):
            raise NovaMeshError(Code.BAD_REQUEST, "the assignment names another job than the terms")
        context = house.contexts.get(wanted.model_profile)
        if context is None:
            short_digest = wanted.model_profile.hex()[:12]
            raise NovaMeshError(
                Code.MODEL_NOT_FOUND, f"model {short_digest} is not loaded on this node",
                "ask the pool what it serves:  novamesh pool models",
            )  # fmt: skip
        if wanted.start_position >= min(context, wanted.sampling.max_tokens + 1):
            raise NovaMeshError(
                Code.TOO_LARGE, f"position {wanted.start_position} is beyond what may be answered"
            )
        if wanted.body_bytes != len(job.body):
            raise NovaMeshError(Code.BAD_REQUEST, "the body is not as long as the terms say")

    def _check_policy(self, terms: Verified[JobTerms]) -> None:
        policy, sampling = self._house.policy, terms.message.sampling
        if terms.issuer in policy.refused_clients:
            raise NovaMeshError(Code.POLICY, "the owner of this node refuses this client")
        if policy.tokens_max and sampling.max_tokens > policy.tokens_max:
            raise NovaMeshError(
                Code.POLICY,
                f"the owner of this node takes answers up to {policy.tokens_max} tokens",
            )


def _too_large(job: SealedJob) -> NovaMeshError:
    return NovaMeshError(
        Code.TOO_LARGE, f"the sealed body has {len(job.body)} bytes",
        f"at most {BODY_BYTES_MAX} are taken",
    )  # fmt: skip


def _check_time(terms: JobTerms, last_ms: int, now_ms: int) -> None:
    """The coordinator admitted the terms while they were fresh; here the job's own time counts."""
    if now_ms > last_ms:
        late_s = (now_ms - last_ms) / 1000
        raise NovaMeshError(Code.EXPIRED, f"this job's time ended {late_s:.0f} s ago")
    ahead_ms = terms.header.issued_at_ms - now_ms
    if ahead_ms > CLOCK_SKEW_MS:
        raise NovaMeshError(
            Code.NOT_FRESH, f"these terms were issued {ahead_ms / 1000:.1f} s ahead of this clock",
            "set the clock of the machine that is wrong (timedatectl set-ntp true)",
        )  # fmt: skip


def _last_ms(terms: JobTerms) -> int:
    """When a job that was submitted at the last moment would end."""
    return terms.header.expires_at_ms + CLOCK_SKEW_MS + terms.timeout_ms
