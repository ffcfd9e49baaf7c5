"""The node's signed advertisement, renewed before it expires, and the HPKE keys it carries.

It lives for two minutes and says how many slots are free, so a node that falls silent is absent
soon, whoever passes its descriptor on.

Rules: each descriptor has an HPKE key of its own, which lives in memory only: after a restart
nobody, the owner included, can open what was sealed before. A new descriptor overlaps the old one,
whose key stays until no job sealed with it can come any more: so what changes, load or addresses,
is told once in FULL_RENEW_MS at most, or more keys would count than are kept. Sequences only grow,
across restarts and restored backups too, because they are never below the wall clock in
milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from novamesh_proto import envelope
from novamesh_proto.envelope import message_id
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import (
    CLOCK_SKEW_MS,
    CONTROL_LIFE_MS,
    DESCRIPTOR_BYTES_MAX,
    DESCRIPTOR_LIFE_MS,
    ENDPOINTS_MAX,
)
from novamesh_proto.messages import (
    Envelope,
    Hardware,
    MessageId,
    ModelOffer,
    NodeDescriptor,
    SealedJob,
)
from novamesh_proto.sealing import HpkeKey

RENEW_MS: Final = DESCRIPTOR_LIFE_MS // 3  # two may get lost on their way
FULL_RENEW_MS: Final = 5_000  # sooner, where the node became full or free again, or is elsewhere
KEYS_MAX: Final = 256
KEY_LIFE_MS: Final = (
    DESCRIPTOR_LIFE_MS + CONTROL_LIFE_MS + CLOCK_SKEW_MS
)  # jobs may name it so long
assert KEY_LIFE_MS // FULL_RENEW_MS + KEY_LIFE_MS // RENEW_MS + 2 <= KEYS_MAX


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node advertises, beside who it is."""

    models: tuple[ModelOffer, ...]
    hardware: Hardware
    engine_build: str
    slots: int


@dataclass(frozen=True, slots=True)
class _Issued:
    key: HpkeKey
    envelope: Envelope
    issued_at_ms: int
    free_slots: int


class Advertiser:
    """Issues descriptors and keeps their keys.

    `next_sequence` gives a number that was never given before, at least the one it is asked with,
    and has stored it when it returns; `free_slots` tells how many more jobs would be taken now.
    """

    def __init__(
        self,
        key: PrivateKey,
        network: str,
        facts: Facts,
        next_sequence: Callable[[int], int],
        free_slots: Callable[[], int],
        policy_digest: bytes = b"",
    ) -> None:
        self._key = key
        self._network = network
        self._facts = facts
        self._next_sequence = next_sequence
        self._free_slots = free_slots
        self._policy_digest = policy_digest
        self._endpoints: dict[str, tuple[str, ...]] = {}  # by way, in the order they were opened
        self._issued: dict[MessageId, _Issued] = {}
        self._changed = False
        self._early_at_ms: int | None = None  # when one was issued last before its time

    def change(self, facts: Facts) -> None:
        """The node is no longer what its newest descriptor says: a new one is due."""
        self._changed = self._changed or facts != self._facts
        self._facts = facts

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients are told to reach the node, at most ENDPOINTS_MAX."""
        every = dict.fromkeys(one for some in self._endpoints.values() for one in some)
        return tuple(every)[:ENDPOINTS_MAX]

    def listen_at(self, way: str, endpoints: tuple[str, ...]) -> None:
        """Clients reach the node there by that way from now on."""
        before = self.endpoints
        self._endpoints[way] = endpoints
        self._changed = self._changed or before != self.endpoints

    def due(self, now_ms: int) -> bool:
        """Whether a new descriptor should be issued; also when the wall clock was set back."""
        if not self._issued:
            return True
        newest, early_ms = self._newest, self._early_at_ms
        age_ms = now_ms - newest.issued_at_ms
        if age_ms >= RENEW_MS or age_ms < -CLOCK_SKEW_MS:
            return True
        if early_ms is not None and abs(now_ms - early_ms) < FULL_RENEW_MS:
            return False
        turned = (self._free_slots() > 0) != (newest.free_slots > 0)
        return self._changed or (turned and age_ms >= FULL_RENEW_MS)

    def current(self, now_ms: int) -> Envelope:
        """The newest descriptor; a new one if it is due.

        Raises:
            NovaMeshError: STORAGE if its sequence cannot be stored.
        """
        return self.renew(now_ms) if self.due(now_ms) else self._newest.envelope

    def renew(self, now_ms: int) -> Envelope:
        """Issue a new descriptor with a new key.

        Raises:
            NovaMeshError: STORAGE if its sequence cannot be stored, TOO_LARGE if it names too many
                models.
        """
        hpke_key, free = HpkeKey.generate(), self._free_slots()
        descriptor = NodeDescriptor(
            header=envelope.header(self._key, self._network, (), now_ms, DESCRIPTOR_LIFE_MS),
            sequence=self._next_sequence(now_ms),
            hpke_key=hpke_key.public,
            models=self._facts.models,
            hardware=self._facts.hardware,
            engine_build=self._facts.engine_build,
            slots=self._facts.slots,
            endpoints=self.endpoints,
            free_slots=free,
            policy_digest=self._policy_digest,
        )
        sealed = envelope.seal(descriptor, self._key, DESCRIPTOR_BYTES_MAX)
        if self._issued and now_ms - self._newest.issued_at_ms < RENEW_MS:
            self._early_at_ms = now_ms
        self._forget(now_ms)
        self._issued[message_id(sealed)] = _Issued(hpke_key, sealed, now_ms, free)
        self._changed = False
        return sealed

    def key_for(self, job: SealedJob) -> HpkeKey:
        """The key that this node's wrap of a job was made for.

        Raises:
            NovaMeshError: CANNOT_OPEN if there is no wrap, or its descriptor is not one of ours.
        """
        return self._issued_for(job).key

    def _issued_for(self, job: SealedJob) -> _Issued:
        hint = "ask for new candidates and seal the job again"
        wrap = next((wrap for wrap in job.wraps if wrap.node == self._key.node_id), None)
        if wrap is None:
            raise NovaMeshError(Code.CANNOT_OPEN, "the body key was not wrapped for us", hint)
        issued = self._issued.get(MessageId(wrap.descriptor))
        if issued is None:
            message = "the body key was wrapped for a descriptor that we no longer have"
            raise NovaMeshError(Code.CANNOT_OPEN, message, hint)
        return issued

    def sealed_to(self, job: SealedJob) -> Envelope:
        """The descriptor that this node's wrap of a job was made for. Raises CANNOT_OPEN."""
        return self._issued_for(job).envelope

    @property
    def _newest(self) -> _Issued:
        return next(reversed(self._issued.values()))

    def _forget(self, now_ms: int) -> None:
        """Drop keys that no fresh job can name, and the oldest ones above KEYS_MAX."""
        for name, each in list(self._issued.items()):
            if each.issued_at_ms + KEY_LIFE_MS < now_ms:
                del self._issued[name]
        while len(self._issued) >= KEYS_MAX:
            del self._issued[next(iter(self._issued))]
