"""Where a model's weights lie: on the device or in the host's memory, decided before any is read.

Three plans: `all` weights on the device; `hot`, where all but the routed experts lie there and of
those as many a layer as fit, the most used first; `none`, where the CPU computes. An expert that is
not on the device is computed where it lies, while the device computes the others: what crosses the
bus is one activation and no weight (Fiddler, arXiv:2402.07033), and which experts are worth the
device's memory is counted, not guessed (KTransformers, SOSP 2025).

Rules: arithmetic only, no torch and nothing read; never more than the memory given; weights count
as an NF4 profile keeps them. Speeds are what memory allows, bytes over bandwidth at batch 1 and
short context (`roofline` says why): kernels reach a share of it. Nobody's bandwidth is known here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Literal, TypeAlias

from novamesh_engine.config import KV_DTYPES
from novamesh_engine.weights.footprint import Footprint
from novamesh_proto.errors import Code, NovaMeshError

Mode: TypeAlias = Literal["all", "hot", "none"]
Counts: TypeAlias = Sequence[Sequence[int]]  # of each layer with experts: how often each was chosen

# CUDA's context, loaded kernels and the handles of torch's libraries: what a process takes before
# its first tensor. An estimate from above; drivers and cards differ.
CONTEXT_BYTES: Final = 600_000_000
# Activations, masks and logits of a step of 512 tokens, recorded graphs, scratch of libraries,
# holes of torch's allocator. Not measured: no GPU was at hand.
WORKSPACE_BYTES: Final = 512_000_000
# Beside them the experts in work: two packed ones of the double buffer that streams experts to the
# device for prompts, and one in 16 bits, which is nearly four packed ones, for a long prompt.
WORKSPACE_EXPERTS: Final = 6
# A context below this refuses most conversations, so weights do not crowd it out.
TOKENS_MIN: Final = 4096

# A newcomer is admitted when it was chosen a quarter more often and then sixteen times: a copy over
# the bus costs many misses, and small counts differ by luck. The same pair can only swap back
# after the counts turned by more than half.
ADMIT_SHARE: Final = 1.25
ADMIT_MORE: Final = 16


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to place a model on: bytes, and bytes a second.

    A bandwidth or a size of the host that is not known is 0. `context_bytes` is 0 where
    `device_bytes` was asked of a device that this process had opened already.

    Raises: NovaMeshError (bad_config) for a number below 0.
    """

    device_bytes: int  # what the device has free for this process
    host_bytes: int = 0  # what the host's memory may hold of the model
    device_read_bytes_per_s: int = 0
    host_read_bytes_per_s: int = 0
    context_bytes: int = CONTEXT_BYTES

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise NovaMeshError(Code.BAD_CONFIG, f"{self} has a size below 0", "0 = not known")


@dataclass(frozen=True, slots=True)
class KVWish:
    """What keys and values should get: at least min(tokens_min, context), at most `bytes_max`.

    `dtypes` are those that may be used, the preferred one first; whoever insists names one.

    Raises: NovaMeshError (bad_config) for a number below 1 or a dtype that is not in KV_DTYPES.
    """

    context: int  # tokens of the longest request
    bytes_max: int = 1 << 30
    dtypes: tuple[str, ...] = ("bf16", "int8")
    tokens_min: int = TOKENS_MIN

    def __post_init__(self) -> None:
        if min(self.context, self.bytes_max, self.tokens_min) < 1:
            raise NovaMeshError(Code.BAD_CONFIG, f"{self} has a number below 1", "raise it")
        if not self.dtypes or not {*self.dtypes} <= {*KV_DTYPES}:
            hint = f"choose of {', '.join(KV_DTYPES)}"
            raise NovaMeshError(Code.BAD_CONFIG, f"KV dtypes are {self.dtypes}", hint)

    def least_bytes(self, slot: int) -> int:
        """Bytes of the fewest tokens that will do; `slot` is what one token takes."""
        return slot * min(self.tokens_min, self.context, self.bytes_max // slot)


@dataclass(frozen=True, slots=True)
class Placement:
    """What lies where. Sizes in bytes; `reserve_bytes` is for the context and scratch.

    `kv_dtype` is the one to use: not the preferred one if only another makes everything fit.
    """

    mode: Mode
    model: Footprint
    memory_bytes: int  # what the device has
    embedding_on_device: bool = False
    resident: tuple[tuple[int, ...], ...] = ()  # of each layer with experts: which are on it
    kv_dtype: str = ""
    kv_tokens: int = 0
    reserve_bytes: int = 0
    disk_bytes: int = 0  # what neither device nor host holds, so that it is read again and again
    tokens_per_s: float | None = None  # what memory allows; None where a bandwidth is not known
    reason: str = ""  # why the device computes nothing

    @property
    def experts_resident(self) -> int:
        """How many experts of each layer are on the device."""
        return len(self.resident[0]) if self.resident else 0

    @property
    def weight_bytes(self) -> int:
        """Weights on the device."""
        if self.mode == "none":
            return 0
        experts = self.experts_resident * self.model.expert_row
        return self.model.core + experts + self.embedding_on_device * self.model.embedding

    @property
    def kv_bytes(self) -> int:
        """Keys and values on the device."""
        return self.kv_tokens * self.model.slot(self.kv_dtype) if self.kv_tokens else 0

    @property
    def device_bytes(self) -> int:
        """Everything on the device: never more than it has."""
        return self.weight_bytes + self.kv_bytes + self.reserve_bytes

    @property
    def host_bytes(self) -> int:
        """Weights that the device does not have."""
        return self.model.total - self.weight_bytes

    @property
    def line(self) -> str:
        """One line for people."""
        parts = [f"{self.mode}: {self._where()}"]
        if self.mode != "none":
            kv = f"{self.kv_tokens} tokens, {self.kv_dtype}"
            parts.append(f"{_gb(self.device_bytes)} of {_gb(self.memory_bytes)}")
            parts.append(f"of it KV {_gb(self.kv_bytes)} ({kv})")
        if self.disk_bytes:
            parts.append(f"{_gb(self.disk_bytes)} read from the disk again and again")
        if self.tokens_per_s is not None:
            digits = 0 if self.tokens_per_s >= 10 else 1
            parts.append(f"memory allows about {self.tokens_per_s:.{digits}f} tokens/s")
        return ", ".join(parts)

    def _where(self) -> str:
        if self.mode == "none":
            return f"the CPU computes, for {self.reason}"
        if self.mode == "hot":
            held = f"{self.experts_resident} of {self.model.experts} experts a layer"
            return f"{held} on the device"
        apart = self.model.embedding and not self.embedding_on_device
        return f"every weight{' but the embedding' if apart else ''} on the device"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def place(model: Footprint, machine: Machine, kv: KVWish, counts: Counts = ()) -> Placement:
    """Decide what lies on the device.

    `counts` say how often each expert of each layer with experts was chosen; without them every
    expert counts as chosen as often as any other, and the first ones are taken.
    """
    assert not counts or [len(of_layer) for of_layer in counts] == (
        [model.experts] * model.sparse_layers
    ), "counts are of another model"
    planner = _Planner(model, machine, kv, counts)
    return planner.all() or planner.hot() or planner.none()


@dataclass(frozen=True, slots=True)
class _Planner:
    model: Footprint
    machine: Machine
    kv: KVWish
    counts: Counts

    @property
    def reserve_bytes(self) -> int:
        scratch = WORKSPACE_BYTES + WORKSPACE_EXPERTS * self.model.expert
        return self.machine.context_bytes + scratch

    def room(self, weights: int, kv_dtype: str) -> int:
        """Bytes left beside weights, reserve and the least KV; below 0 if they do not fit."""
        taken = self.reserve_bytes + weights + self.kv.least_bytes(self.model.slot(kv_dtype))
        return self.machine.device_bytes - taken

    def all(self) -> Placement | None:
        """Everything; rather without the embedding, of which little is read, than int8 KV."""
        model = self.model
        for dtype in self.kv.dtypes:
            for embedding in (True, False):
                room = self.room(model.total - (not embedding) * model.embedding, dtype)
                if room >= 0:
                    return self._placement("all", model.experts, dtype, room, embedding)
        return None

    def hot(self) -> Placement | None:
        """As many experts as fit with the preferred KV.

        Another dtype would make room for experts just where KV is wished so large that none fits:
        more KV must never mean more experts.
        """
        dtype, row = self.kv.dtypes[0], self.model.expert_row
        room = self.room(self.model.core, dtype)
        if row == 0 or room < row:
            return None
        return self._placement("hot", room // row, dtype, room % row, embedding=False)

    def none(self) -> Placement:
        """The CPU computes, and its cache is its own business."""
        model, device = self.model, self.machine.device_bytes
        rooms = [self.room(model.total - model.embedding, dtype) for dtype in self.kv.dtypes]
        rooms.append(self.room(model.core + model.expert_row, self.kv.dtypes[0]))
        least_mb = -((max(rooms) - device) // 10**6)
        reason = f"at least {least_mb} MB must fit on the device, which has {device // 10**6}"
        disk, host = self._disk_bytes(model.total), self.machine.host_read_bytes_per_s
        rate = host / model.step if host and not disk else None
        return Placement(
            "none", model, device, disk_bytes=disk, tokens_per_s=rate, reason=reason
        )  # fmt: skip

    def _placement(
        self, mode: Mode, experts: int, kv_dtype: str, room: int, embedding: bool
    ) -> Placement:
        """A plan that leaves `room` bytes, into which KV grows as far as it may."""
        slot = self.model.slot(kv_dtype)
        tokens = min(self.kv.bytes_max, self.kv.least_bytes(slot) + room) // slot
        resident = self._resident(experts)
        weights = self.model.core + experts * self.model.expert_row
        weights += embedding * self.model.embedding
        disk = self._disk_bytes(self.model.total - weights)
        return Placement(
            mode, self.model, self.machine.device_bytes, embedding, resident, kv_dtype, tokens,
            self.reserve_bytes, disk, self._tokens_per_s(resident, disk),
        )  # fmt: skip

    def _resident(self, experts: int) -> tuple[tuple[int, ...], ...]:
        if self.counts:
            return tuple(hot_experts(of_layer, experts) for of_layer in self.counts)
        return (tuple(range(experts)),) * self.model.sparse_layers

    def _disk_bytes(self, on_host: int) -> int:
        return max(0, on_host - self.machine.host_bytes) if self.machine.host_bytes else 0

    def _tokens_per_s(self, resident: tuple[tuple[int, ...], ...], disk: int) -> float | None:
        """What memory allows, or None if it is not known or the disk is in the way."""
        device, host = self.machine.device_read_bytes_per_s, self.machine.host_read_bytes_per_s
        missed = self._missed(resident)
        if disk or not device or (any(missed) and not host):
            return None
        hit_s = self.model.expert / device
        miss_s = self.model.expert / host if host else 0.0
        chosen = self.model.experts_per_token
        experts_s = sum(_layer_s(chosen, share, hit_s, miss_s) for share in missed)
        return 1 / (self.model.core / device + experts_s)

    def _missed(self, resident: tuple[tuple[int, ...], ...]) -> list[float]:
        """Of each layer with experts, the share of choices that are not on the device."""
        evenly = [1] * self.model.experts
        counts = [of_layer if any(of_layer) else evenly for of_layer in self.counts]
        pairs = zip(counts or [evenly] * len(resident), resident, strict=True)
        return [1 - sum(seen[one] for one in held) / sum(seen) for seen, held in pairs]


def _layer_s(chosen: int, missed: float, hit_s: float, miss_s: float) -> float:
    """Seconds that one token's experts of a layer are expected to take.

    Device and host work side by side and the slower one counts, which depends on how many of the
    token's experts happen to be missed: so the mean is over their number, each choice by itself.
    """
    if missed == 0:
        return chosen * hit_s
    total = 0.0
    for misses in range(chosen + 1):
        hits = chosen - misses
        ways = math.lgamma(chosen + 1) - math.lgamma(misses + 1) - math.lgamma(hits + 1)
        odds = misses * math.log(missed) + hits * math.log1p(-missed)  # never all are missed
        total += math.exp(ways + odds) * max(hits * hit_s, misses * miss_s)
    return total


def hot_experts(counts: Sequence[int], most: int) -> tuple[int, ...]:
    """The `most` experts that were chosen most often, in ascending order; ties to the lower id."""
    ranked = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
    return tuple(sorted(ranked[:most]))


def swaps(counts: Sequence[int], resident: Collection[int], most: int) -> list[tuple[int, int]]:
    """At most `most` pairs (evict, admit) of one layer that are worth a copy, the best first.

    The least chosen resident goes for the most chosen outsider, if that one was chosen clearly
    more often (ADMIT_SHARE, ADMIT_MORE): with the same counts a second call finds nothing to undo.
    """
    inside = sorted(resident, key=lambda expert: (counts[expert], -expert))
    outside = sorted(
        {*range(len(counts))} - {*resident}, key=lambda expert: (-counts[expert], expert)
    )
    pairs = list(zip(inside, outside, strict=False))[: max(0, most)]
    return [
        (evict, admit)
        for evict, admit in pairs
        if counts[admit] > counts[evict] * ADMIT_SHARE + ADMIT_MORE
    ]
