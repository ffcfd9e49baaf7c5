"""The node's signed advertisement, renewed before it expires, and the HPKE keys it carries.

Rules: each descriptor has an HPKE key of its own, which lives in memory only: after a restart
nobody, the owner included, can open what was sealed before. A new descriptor overlaps the old one,
whose key stays until no job sealed with it can come any more. Sequences only grow, across restarts
and restored backups too, because they are never below the wall clock in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from novamesh_proto import envelope
from novamesh_proto.envelope import message_id
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import CLOCK_SKEW_MS, CONTROL_LIFE_MS, DESCRIPTOR_LIFE_MS
from novamesh_proto.messages import (
    Envelope,
    Hardware,
    MessageId,
    ModelOffer,
    NodeDescriptor,
    SealedJob,
)
from novamesh_proto.sealing import HpkeKey

RENEW_MS: Final = DESCRIPTOR_LIFE_MS * 3 // 4
KEYS_MAX: Final = 16


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


class Advertiser:
    """Issues descriptors and keeps their keys.

    `next_sequence` gives a number that was never given before, at least the one it is asked with,
    and has stored it when it returns.
    """

    def __init__(
        self,
        key: PrivateKey,
        network: str,
        facts: Facts,
        next_sequence: Callable[[int], int],
    ) -> None:
        self._key = key
        self._network = network
        self._facts = facts
        self._next_sequence = next_sequence
        self._issued: dict[MessageId, _Issued] = {}
        self._changed = False

    def change(self, facts: Facts) -> None:
        """The node is no longer what its newest descriptor says: a new one is due."""
        self._facts, self._changed = facts, True

    def due(self, now_ms: int) -> bool:
        """Whether a new descriptor should be issued; also when the wall clock was set back."""
        if not self._issued or self._changed:
            return True
        age_ms = now_ms - self._newest.issued_at_ms
        return age_ms >= RENEW_MS or age_ms < -CLOCK_SKEW_MS

    def current(self, now_ms: int) -> Envelope:
        """The newest descriptor; a new one if it is due.

        Raises:
            NovaMeshError: STORAGE if its sequence cannot be stored.
        """
        return self.renew(now_ms) if self.due(now_ms) else self._newest.envelope

    def renew(self, now_ms: int) -> Envelope:
        """Issue a new descriptor with a new key.

        Raises:
            NovaMeshError: STORAGE if its sequence cannot be stored.
        """
        hpke_key = HpkeKey.generate()
        descriptor = NodeDescriptor(
            header=envelope.header(self._key, self._network, (), now_ms, DESCRIPTOR_LIFE_MS),
            sequence=self._next_sequence(now_ms),
            hpke_key=hpke_key.public,
            models=self._facts.models,
            hardware=self._facts.hardware,
            engine_build=self._facts.engine_build,
            slots=self._facts.slots,
        )
        sealed = envelope.seal(descriptor, self._key)
        self._forget(now_ms)
        self._issued[message_id(sealed)] = _Issued(hpke_key, sealed, now_ms)
        self._changed = False
        return sealed

    def key_for(self, job: SealedJob) -> HpkeKey:
        """The key that this node's wrap of a job was made for.

        Raises:
            NovaMeshError: CANNOT_OPEN if there is no wrap, or its descriptor is not one of ours.
        """
        hint = "ask for new candidates and seal the job again"
        wrap = next((wrap for wrap in job.wraps if wrap.node == self._key.node_id), None)
        if wrap is None:
            raise NovaMeshError(Code.CANNOT_OPEN, "the body key was not wrapped for us", hint)
        issued = self._issued.get(MessageId(wrap.descriptor))
        if issued is None:
            message = "the body key was wrapped for a descriptor that we no longer have"
            raise NovaMeshError(Code.CANNOT_OPEN, message, hint)
        return issued.key

    @property
    def _newest(self) -> _Issued:
        return next(reversed(self._issued.values()))

    def _forget(self, now_ms: int) -> None:
        """Drop keys that no fresh job can name, and the oldest ones above KEYS_MAX."""
        grace_ms = DESCRIPTOR_LIFE_MS + CONTROL_LIFE_MS + CLOCK_SKEW_MS
        old = [name for name, each in self._issued.items() if each.issued_at_ms + grace_ms < now_ms]
        for name in old:
            del self._issued[name]
        while len(self._issued) >= KEYS_MAX:
            del self._issued[next(iter(self._issued))]
