"""Routed experts of which a device holds only some: it computes those, the CPU the others.

The hits of a step start on the device, then the misses are computed where they lie, by the C++
kernels, and their sum is added: what crosses the bus is one activation each way (Fiddler,
arXiv:2402.07033). A step of many tokens streams the missed experts to the device instead, through
two buffers, so that one is copied while the other is used. Rules: the sum is that of
`reference.experts`; which experts are resident follows their use (`place.swaps`), a few at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.native import Native
from novamesh_engine.quant.codebook import NF4Matrix
from novamesh_engine.weights.place import swaps

# Tokens of a step from which a missed expert is worth its copy: a copy over the bus takes as long
# as the CPU needs to read the expert some ten times, and the CPU reads it once for a few tokens.
STREAM_TOKENS: Final = 64
SWAP_STEPS: Final = 256  # steps between two looks at the counts
SWAPS_MAX: Final = 1  # residents changed at a look: one copy of one expert

Stack = tuple[NF4Matrix, NF4Matrix]


class TieredExperts:
    """The experts of one layer; `host` is gate_up [E, 2F, H] and down [E, H, F] in RAM.

    `buffers` are those of all layers of a model, which stream one after another: empty until a
    prompt needs them.
    """

    def __init__(
        self,
        gpu: Gpu,
        native: Native,
        host: Stack,
        resident: Sequence[int],
        buffers: list[Stack] | None = None,
    ) -> None:
        self._gpu = gpu
        self._native = native
        self._host = host
        self._resident = list(resident)
        self._device = self._pick(self._resident)
        self._buffers: list[Stack] = [] if buffers is None else buffers
        self._steps = 0
        self.counts = [0] * host[0].packed.shape[0]
        self._table = torch.full((len(self.counts),), -1, dtype=torch.int32)
        self._table[self._resident] = torch.arange(len(self._resident), dtype=torch.int32)
        self._device_table = self._table.to(gpu.device)

    @property
    def resident(self) -> tuple[int, ...]:
        """Experts that the device holds."""
        return tuple(sorted(self._resident))

    def __call__(self, x: Tensor, slots: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
        """residual + the experts of normed x float32 [T, H], slots ids int32 and factors [T, k]."""
        ids, factors = slots
        many = x.shape[0] >= STREAM_TOKENS
        # Asked for before the device starts on the hits, so that the CPU need not wait for those.
        wanted = (ids, factors) if many else (ids, factors, x)
        host = [part.to("cpu", non_blocking=True) for part in wanted]
        arrived = _mark(self._gpu.device)
        hits = torch.where(ids >= 0, self._device_table[ids.clamp(min=0).long()], -1).int()
        out = self._multiply(x, (hits, factors), self._device, residual, many)
        arrived()
        ids, weights = host[:2]
        missed = torch.where(ids >= 0, self._table[ids.clamp(min=0).long()] < 0, False)
        if bool(missed.any()):
            left = torch.where(missed, ids, -1)
            if many:
                out = self._stream(x, slots, left, out)
            else:
                added = self._native.experts(host[2], (weights, left.long()), *self._host)
                out = out + _bring(added, self._gpu.device)
        self._count(ids)
        return out

    def _multiply(
        self, x: Tensor, slots: tuple[Tensor, Tensor], stack: Stack, residual: Tensor, many: bool
    ) -> Tensor:
        if many:
            return self._gpu.grouped(x.to(self._gpu.compute), slots, *stack, residual)
        return self._gpu.pairs(x, slots, *stack, residual)

    def _stream(self, x: Tensor, slots: tuple[Tensor, Tensor], left: Tensor, out: Tensor) -> Tensor:
        """The missed experts one after another, each copied while the one before it computes."""
        ids, factors = slots
        rows = x.to(self._gpu.compute)
        for expert, stack in self._arriving(torch.unique(left[left >= 0]).tolist()):
            mine = torch.where(ids == expert, 0, -1).int()
            out = self._gpu.grouped(rows, (mine, factors), *stack, out)
        return out

    def _arriving(self, experts: Sequence[int]) -> Iterator[tuple[int, Stack]]:
        """Each expert as a stack of one on the device, in one of two buffers that take turns.

        Kernels only start when they are launched: while they run, the next expert is copied.
        """
        if not self._buffers:
            self._buffers += [self._pick([0]), self._pick([0])]
        lane = _Lane(self._gpu.device)
        for at, expert in enumerate(experts):
            buffer = self._buffers[at % 2]
            lane.copy(at % 2, _parts(buffer, 0), _parts(self._host, expert))
            yield expert, buffer
            lane.used(at % 2)

    def _count(self, ids: Tensor) -> None:
        """Remember which experts were chosen, and now and then follow it."""
        seen = torch.bincount(ids[ids >= 0], minlength=len(self.counts)).tolist()
        self.counts = [count + more for count, more in zip(self.counts, seen, strict=True)]
        self._steps += 1
        if self._steps % SWAP_STEPS:
            return
        for evict, admit in swaps(self.counts, self._resident, SWAPS_MAX):
            self._swap(evict, admit)
        self.counts = [count // 2 for count in self.counts]  # what was long ago fades

    def _swap(self, evict: int, admit: int) -> None:
        at = self._resident.index(evict)
        for to, source in zip(_parts(self._device, at), _parts(self._host, admit), strict=True):
            to.copy_(source)
        self._resident[at] = admit
        self._table[evict], self._table[admit] = -1, at
        self._device_table.copy_(self._table)

    def _pick(self, experts: Sequence[int]) -> Stack:
        """A stack of these experts on the device."""
        gate_up, down = (
            NF4Matrix(*(tensor[list(experts)].to(self._gpu.device) for tensor in
                        (part.packed, part.absmax)))
            for part in self._host
        )  # fmt: skip
        return gate_up, down


class _Lane:
    """Copies to two buffers beside the kernels that read them; on a CPU one after the other."""

    def __init__(self, device: str) -> None:
        self._stream = _stream(device)
        self._free: list[torch.cuda.Event | None] = [None, None]

    def copy(self, buffer: int, to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
        """Fill a buffer once nobody reads it any more; what is launched next sees it."""
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            free = self._free[buffer]
            if free is not None:
                free.wait()
            for one, other in zip(to, source, strict=True):
                one.copy_(other, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def used(self, buffer: int) -> None:
        """What was launched so far is all that reads the buffer."""
        if self._stream is not None:
            event = _event()
            event.record()
            self._free[buffer] = event


def _bring(tensor: Tensor, device: str) -> Tensor:
    """A host's tensor on a device, by way of memory that the device reads by itself."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _parts(stack: Stack, expert: int) -> list[Tensor]:
    """The four tensors of one expert of a stack."""
    return [tensor[expert] for part in stack for tensor in (part.packed, part.absmax)]


def _stream(device: str) -> torch.cuda.Stream | None:
    """A stream beside the current one, where a device has streams."""
    if torch.device(device).type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _mark(device: str) -> Callable[[], None]:
    """A function that waits for what the device was asked so far, and for nothing after it."""
    if torch.device(device).type != "cuda":
        return lambda: None
    event = _event()
    event.record()
    return event.synchronize
