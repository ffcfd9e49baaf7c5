"""What memory allows: the bytes that one step must read, and how fast this machine reads bytes.

Decoding computes little and reads everything, so that bytes over bandwidth is the least time of a
step (Williams et al. 2009, the roofline model). Rules: weights count as they lie in memory, once a
step however many tokens share them; of the experts those count that `batch` tokens are expected to
choose if they choose evenly; bandwidth is measured, not looked up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from novamesh_engine.kernels.choice import open_native
from novamesh_engine.kernels.library import UnusableLibraryError
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.kernels.stopwatch import measure_copy
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.layers import Linear
from novamesh_engine.models.moe import MLP, MoE
from novamesh_engine.quant.codebook import NF4Matrix

READ_BYTES: Final = 128 << 20  # in all threads together: more than most caches hold
READ_TIMES: Final = 3


def step_bytes(decoder: Decoder, batch: int = 1) -> int:
    """Weight bytes that one decode step of `batch` tokens reads, each expert's matrices once."""
    total = _bytes(decoder.head.weight) + batch * decoder.embedding[0].nbytes
    for layer in decoder.layers:
        total += _linear(layer.attention.qkv) + _linear(layer.attention.output)
        total += _mlp(layer.mlp, batch)
    return total


def _mlp(mlp: MoE | MLP, batch: int) -> int:
    own = _bytes(mlp.gate_up) + _bytes(mlp.down)
    if isinstance(mlp, MLP):
        return own
    shared = mlp.shared
    common = mlp.router.weight.nbytes
    if shared is not None:
        common += _bytes(shared.gate_up) + _bytes(shared.down) + shared.gate.nbytes
    experts = mlp.router.weight.shape[0]
    untouched = (1 - mlp.router.experts_per_token / experts) ** batch
    return common + round(own * (1 - untouched))


def _linear(linear: Linear) -> int:
    return _bytes(linear.weight) + (0 if linear.bias is None else linear.bias.nbytes)


def _bytes(matrix: Matrix) -> int:
    if isinstance(matrix, NF4Matrix):
        return matrix.packed.nbytes + matrix.absmax.nbytes
    assert isinstance(matrix, Tensor)
    return matrix.nbytes


def measure_read(threads: int, device: str = "cpu") -> int:
    """Bytes a second that `threads` threads read from memory, the best of a few tries.

    Of a CUDA device, what it moves when it copies: the field's measure of one.
    """
    if torch.device(device).type == "cuda":
        return measure_copy(device)
    share = np.ones(READ_BYTES // threads // 8, dtype=np.int64)
    parts = [share.copy() for _ in range(threads)]
    read = _reader(threads)
    best_s = float("inf")
    for _ in range(READ_TIMES):
        begun = time.perf_counter()
        read(parts)
        best_s = min(best_s, time.perf_counter() - begun)
    return int(sum(part.nbytes for part in parts) / best_s)


def _reader(threads: int) -> Callable[[Sequence[NDArray[np.int64]]], None]:
    """What reads fastest here: the kernels' own pass, else numpy's reductions."""
    try:
        native = open_native(threads)
    except UnusableLibraryError:
        return lambda parts: _reduce(parts, threads)

    def read(parts: Sequence[NDArray[np.int64]]) -> None:
        for part in parts:
            native.read(torch.from_numpy(part))

    return read


def _reduce(parts: Sequence[NDArray[np.int64]], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.max, parts))  # reductions release the interpreter's lock


def resident_bytes() -> int:
    """Memory that this process holds, mapped files included; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
