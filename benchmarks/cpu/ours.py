"""Our engine as a player: a model folder, loaded once with so many threads.

    python -m cpu.ours MODEL THREADS [KV]

read BYTES TIMES                passes over so many bytes of mapped weights that only read them
decode TOKENS DEPTH STREAMS     single tokens after prompts of DEPTH, so many streams together
prefill TOKENS                  a prompt, until its first token
gemv TIMES                      experts' matrices times a vector, beside reads of as many bytes
attend BITS TIMES               attention over a full context of such elements, beside reads
memory                          what the process holds
"""

from __future__ import annotations

import ctypes
import itertools
import random
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from cpu.attention import Attention
from cpu.shape import EXPERTS_PER_TOKEN
from cpu.turns import Verb, play
from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.kernels.choice import open_native
from novamesh_engine.kernels.native import Native, stack
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.roofline import resident_bytes
from novamesh_engine.weights.load import load_model

STREAMS_MAX: Final = 8
CONTEXT: Final = 1024
STEP_TOKENS: Final = 512


class Ours:
    """One engine, and the passes that are set beside it."""

    def __init__(self, model: Path, threads: int, kv: str) -> None:
        begun = time.perf_counter()
        config = EngineConfig(
            max_running=STREAMS_MAX, max_step_tokens=STEP_TOKENS, max_context=CONTEXT,
            threads=threads, kv_dtype=kv,
        )  # fmt: skip
        self.engine = Engine.load(model, config)
        self.load_s = time.perf_counter() - begun
        self._names = itertools.count()
        self._random = random.Random(0)

    def ready(self) -> dict[str, object]:
        """What was loaded, and how."""
        plan = self.engine.plan
        return {
            "load_s": self.load_s,
            "resident_bytes": resident_bytes(),
            "step_bytes": self.engine.step_bytes(1),
            "kernels": plan.kernels,
            "precision": plan.precision,
            "threads": plan.threads,
            "kv": plan.kv,
        }

    def decode(self, tokens: int, depth: int, streams: int) -> dict[str, object]:
        """Greedy decoding through the engine's own loop, sampling and text included."""
        for _ in range(streams):
            self._submit(depth, tokens + 1)
        spoken = 0
        while spoken < streams:
            spoken += sum(len(output.token_ids) for output in self.engine.step())
        different, steps, begun = 0, 0, time.perf_counter()
        while self.engine.has_work:
            said = [token for output in self.engine.step() for token in output.token_ids]
            different += len(set(said))
            steps += 1
        took = time.perf_counter() - begun
        return {"seconds": took, "tokens": tokens * streams, "different": different / steps}

    def prefill(self, tokens: int) -> dict[str, object]:
        """Until the first token of an answer to a prompt."""
        begun = time.perf_counter()
        self._submit(tokens, 1)
        while self.engine.has_work:
            self.engine.step()
        return {"seconds": time.perf_counter() - begun, "tokens": tokens}

    def memory(self) -> dict[str, object]:
        """What the process holds now."""
        return {"resident_bytes": resident_bytes()}

    def _submit(self, prompt: int, tokens: int) -> None:
        """Tokens at random, so that no stream follows another one's experts."""
        vocab = self.engine.model.vocab_size
        drawn = tuple(self._random.randrange(vocab) for _ in range(prompt))
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self.engine.submit(Request(f"{next(self._names)}", drawn, sampling))


class Passes:
    """Reads and products over the engine's own weights, on threads of their own."""

    def __init__(self, model: Path, threads: int) -> None:
        self._model = model
        self._threads = threads
        self._random = random.Random(0)
        self._attention: dict[int, Attention] = {}

    @cached_property
    def _native(self) -> Native:
        return open_native(self._threads)

    @cached_property
    def _experts(self) -> list[MoE]:
        """The layers' experts; mapped when first asked for, so that memory can be told without."""
        layers = load_model(self._model, verify=False).decoder.layers
        found = [layer.mlp for layer in layers if isinstance(layer.mlp, MoE)]
        for matrix in (matrix for moe in found for matrix in (moe.gate_up, moe.down)):
            assert isinstance(matrix, NF4Matrix)
            self._native.read(matrix.packed)  # maps its pages now
            self._native.read(matrix.absmax)
        return found

    @cached_property
    def _packed(self) -> Iterator[Tensor]:
        """All experts' packed weights, one matrix after another, for ever."""
        matrices = [moe.gate_up for moe in self._experts] + [moe.down for moe in self._experts]
        stacks = [matrix.packed for matrix in matrices if isinstance(matrix, NF4Matrix)]
        return itertools.cycle([one for stack in stacks for one in stack])

    def read(self, count: int, times: int) -> dict[str, object]:
        """So many bytes, so many times; never the same ones soon again."""
        pieces = []
        while sum(piece.nbytes for piece in pieces) < count * times:
            pieces.append(next(self._packed))
        begun = time.perf_counter()
        for piece in pieces:
            self._native.read(piece)
        took = time.perf_counter() - begun
        held = sum(piece.nbytes for piece in pieces)
        return {"seconds": took, "tokens": held / count}

    def attend(self, bits: int, times: int) -> dict[str, object]:
        """A lone token's attention over cold pages, and reads of the same bytes."""
        if bits not in self._attention:
            self._attention = {bits: Attention(bits)}  # one kind at a time is enough to hold
        return self._attention[bits].play(self._native, times)

    def gemv(self, times: int) -> dict[str, object]:
        """Two random experts of every layer times one vector, and a read of as many bytes."""
        hidden = self._experts[0].down.shape[1]
        x, out, weights = torch.randn(1, hidden), torch.zeros(1, hidden), torch.full((1, 2), 0.5)
        native, stacks = self._native, [stack(moe.gate_up, moe.down) for moe in self._experts]
        took = 0.0
        for _ in range(times):
            ids = [torch.tensor(self._random.sample(range(each.experts), 2)) for each in stacks]
            begun = time.perf_counter()
            for each, chosen in zip(stacks, ids, strict=True):
                native.done(native.library.nm_experts(
                    native.handle, ctypes.addressof(each), x.data_ptr(), 1, 2, chosen.data_ptr(),
                    weights.data_ptr(), out.data_ptr(),
                ))  # fmt: skip
            took += time.perf_counter() - begun
        count = sum(_bytes(moe.gate_up) + _bytes(moe.down) for moe in self._experts)
        read = self.read(count, times)
        seconds, passes = float(str(read["seconds"])), float(str(read["tokens"]))
        return {"gemv_s": took, "bytes": count * times, "read_s": seconds * times / passes}


def _bytes(matrix: Matrix) -> int:
    """What two experts of a stack take."""
    assert isinstance(matrix, NF4Matrix)
    whole = matrix.packed.nbytes + matrix.absmax.nbytes
    return whole * EXPERTS_PER_TOKEN // matrix.packed.shape[0]


def prepare() -> tuple[Mapping[str, object], Mapping[str, Verb]]:
    """Load, run every path once, and say what was loaded."""
    model, threads, *kv = sys.argv[1:]
    ours = Ours(Path(model), int(threads), *(kv or ["bf16"]))
    passes = Passes(Path(model), int(threads))
    ours.prefill(STEP_TOKENS)  # touches every expert, so that no turn maps pages
    ours.decode(4, 4, 1)
    verbs = {
        "decode": ours.decode,
        "prefill": ours.prefill,
        "memory": ours.memory,
        "read": passes.read,
        "gemv": passes.gemv,
        "attend": passes.attend,
    }
    return ours.ready(), verbs


if __name__ == "__main__":
    play(prepare)
