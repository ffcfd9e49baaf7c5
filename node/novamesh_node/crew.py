"""The devices of a node at work, with the engines on each: who takes the next attempt, who is out.

Every device has its own engine of every model that fits it, and a worker for each engine. An
attempt goes to the device with the least at work, of those that have its model; of equals to the
fastest. Rules: no device gets more attempts than the owner lends of it, and of those at most half,
so none of one, are donated; one that failed is out for the rest of this process's life, because its
memory cannot be trusted; what is advertised is what one answer meets at worst, so each model has
the speed and the context of its slowest device. On the loop only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from novamesh_node.attestor import Machine
from novamesh_node.descriptor import Facts
from novamesh_node.devices import Device
from novamesh_node.hardware import combine, describe
from novamesh_node.request import Encoder, Shape
from novamesh_node.worker import Worker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware, ModelOffer, ProfileDigest

RETRY_MS: Final = 1_000
_BUILD_CHARS_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Served:
    """A model on one device: how it is offered, its worker, its tokenizer, what it can take."""

    offer: ModelOffer
    worker: Worker
    encoder: Encoder
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """One device at work. `hardware` is the device, `machine` what attestations say of it."""

    device: Device
    hardware: Hardware
    machine: Machine
    served: dict[ProfileDigest, Served]
    slots: int
    threads: int = 0

    @property
    def workers(self) -> list[Worker]:
        """One a model."""
        return [each.worker for each in self.served.values()]

    @property
    def line(self) -> str:
        """The device, for people."""
        return describe(self.hardware, self.threads)


@dataclass(frozen=True, slots=True)
class Opening:
    """What the choice of a device looks at: attempts at work, of how many, and its speed.

    `alive`: its engine is known to make progress. `speed`: decode tokens a second. `donated`: how
    many of those at work are donated.
    """

    running: int
    slots: int
    alive: bool
    speed: float
    donated: int = 0

    def has_room(self, donated: bool) -> bool:
        """Whether one more attempt, donated or of the pool, may go there."""
        return self.running < self.slots and not (donated and self.donated >= share(self.slots))


def share(slots: int) -> int:
    """How many of the slots of one device may be donated at the same time."""
    return slots // 2


def choose(openings: Sequence[Opening], *, donated: bool = False) -> int | None:
    """Which of them takes the next attempt; None if none has a slot for it.

    A device whose step does not end takes an attempt only where there is no other: it may be stuck.
    """
    free = [number for number, each in enumerate(openings) if each.has_room(donated)]
    if not free:
        return None

    def rank(number: int) -> tuple[bool, float, float]:
        one = openings[number]
        return not one.alive, one.running / one.slots, -one.speed

    return min(free, key=rank)


class Crew:
    """Owns how many attempts are on each station, and which stations are out and why.

    `slots_max`: more than that many attempts are never at work on a node.
    """

    def __init__(self, stations: Sequence[Station], slots_max: int) -> None:
        self._stations = tuple(stations)
        self._slots_max = slots_max
        self._running = dict.fromkeys(self._stations, 0)
        self._donated = dict.fromkeys(self._stations, 0)  # of these
        self._faults: dict[Station, NovaMeshError] = {}

    @property
    def stations(self) -> tuple[Station, ...]:
        """All of them, those that are out too."""
        return self._stations

    @property
    def slots(self) -> int:
        """Attempts that all devices together take; 0 when the last one is out."""
        return min(self._slots_max, sum(each.slots for each in self._able))

    def assign(self, profile: ProfileDigest, *, donated: bool = False) -> Station:
        """The station for one more attempt of a model; `release` it when the attempt has ended.

        Raises:
            NovaMeshError: BUSY if the devices with this model are full, UNAVAILABLE if they are
                out, POLICY if none of them has a slot to donate.
        """
        able = [each for each in self._able if profile in each.served]
        if not able:
            raise NovaMeshError(
                Code.UNAVAILABLE, "no device of this node that has this model works any more"
            )
        if donated and not any(share(each.slots) for each in able):
            raise NovaMeshError(
                Code.POLICY, "each device's only slot is its pool's", "ask another node"
            )
        chosen = choose([self._opening(each, profile) for each in able], donated=donated)
        if chosen is None:
            raise NovaMeshError(
                Code.BUSY, "every device of this node that has this model is at work",
                retry_after_ms=RETRY_MS,
            )  # fmt: skip
        self._running[able[chosen]] += 1
        self._donated[able[chosen]] += donated
        return able[chosen]

    def release(self, station: Station, *, donated: bool = False) -> None:
        """An attempt on it ended."""
        self._running[station] -= 1
        self._donated[station] -= donated

    def fail(self, station: Station, fault: NovaMeshError) -> bool:
        """Take a station out and end what is on it; False if it was out before."""
        if station in self._faults:
            return False
        self._faults[station] = fault
        for worker in station.workers:
            worker.condemn(fault)
        return True

    def facts(self) -> Facts:
        """What the node advertises now."""
        able = self._able
        builds = dict.fromkeys(each.machine.engine_build for each in able)
        return Facts(
            models=self._offers(),
            hardware=combine([each.hardware for each in able]),
            engine_build=" + ".join(builds)[:_BUILD_CHARS_MAX],
            slots=self.slots,
        )

    def inventory(self) -> dict[str, Any]:
        """What a status says of machine, models and devices."""
        able = self._able or self._stations
        one = able[0].line if len(able) == 1 else ""
        return {
            "hardware": one or describe(combine([each.hardware for each in able]), 0),
            "models": [_model_fields(offer) for offer in self._offers()],
            "devices": [self._device_fields(each) for each in self._stations],
        }

    @property
    def _able(self) -> tuple[Station, ...]:
        return tuple(each for each in self._stations if each not in self._faults)

    def _opening(self, station: Station, profile: ProfileDigest) -> Opening:
        served = station.served[profile]
        speed = served.offer.decode_tokens_per_s
        return Opening(
            self._running[station], station.slots, served.worker.alive, speed,
            self._donated[station],
        )  # fmt: skip

    def _offers(self) -> tuple[ModelOffer, ...]:
        """Each model once, as its slowest device offers it."""
        found: dict[ProfileDigest, ModelOffer] = {}
        for station in self._able:
            for profile, served in station.served.items():
                found[profile] = _worst(found.get(profile, served.offer), served.offer)
        return tuple(found.values())

    def _device_fields(self, station: Station) -> dict[str, Any]:
        fault = self._faults.get(station)
        return {
            "id": station.device.id,
            "hardware": station.line,
            "slots": 0 if fault else station.slots,
            "running": self._running[station],
            "models": [each.offer.name for each in station.served.values()],
            "fault": "" if fault is None else fault.message,
        }


def _worst(one: ModelOffer, other: ModelOffer) -> ModelOffer:
    return replace(
        one,
        context_max=min(one.context_max, other.context_max),
        decode_tokens_per_s=min(one.decode_tokens_per_s, other.decode_tokens_per_s),
        prefill_tokens_per_s=min(one.prefill_tokens_per_s, other.prefill_tokens_per_s),
    )


def _model_fields(offer: ModelOffer) -> dict[str, Any]:
    return {
        "name": offer.name,
        "digest": f"sha256:{offer.model_profile.hex()}",
        "context_max": offer.context_max,
        "decode_tokens_per_s": round(offer.decode_tokens_per_s, 1),
        "prefill_tokens_per_s": round(offer.prefill_tokens_per_s, 1),
    }
