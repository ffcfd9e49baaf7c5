"""The C++ kernels for CPUs, through ctypes: found, checked, and bound to one instruction set.

Rules: the library is looked for beside this package only; one with another ABI version is refused;
the best instruction set that the CPU runs is chosen once, at load (NOVAMESH_ISA names another, for
tests). float32 on the CPU with widths in multiples of 64 goes to C++, which releases the GIL;
everything else falls back to the reference. C++ trusts the sizes it is given, so shapes that do not
fit each other are refused here. What C++ computes for one token does not depend on the
other tokens of the call. One thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.reference import Kernels, Matrix
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix

LIBRARY: Final = "libnovamesh_kernels.so"
ABI_VERSION: Final = 2
ISA_VARIABLE: Final = "NOVAMESH_ISA"
SETS: Final = ("scalar", "avx2", "avx512")  # by their numbers in the library, best last

_KINDS: Final = {torch.float32: 0, torch.float16: 1}
_NF4: Final = 2
_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: Final[dict[str, tuple[type, ...]]] = {
    "nm_linear": (_INT, _INT, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER),
    "nm_experts": (_INT, *[_POINTER] * 9),
    "nm_route": (_INT, *[_POINTER] * 5),
    "nm_rms_norm": (_INT, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER),
    "nm_rotate": (_POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER),
    "nm_attention": (_INT, *[_POINTER] * 7, _FLOAT, _POINTER),
    "nm_set_runs": (_INT,),
    "nm_abi_version": (),
}


class UnusableLibraryError(Exception):
    """Why there are no native kernels; `select` falls back, doctor shows the text."""


def find_library(roots: Sequence[str]) -> Path | None:
    """The library file in the package's folders, if it was built."""
    paths = (Path(root) / LIBRARY for root in roots)
    return next((path for path in paths if path.is_file()), None)


def load_library(path: Path | None) -> ctypes.CDLL:
    """Open the library and check that it speaks this module's ABI.

    Raises: UnusableLibraryError saying why not.
    """
    if path is None:
        raise UnusableLibraryError("not built: no C++ compiler when novamesh was installed")
    try:
        library = ctypes.CDLL(str(path))
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, _INT
        found = library.nm_abi_version()
    except (OSError, AttributeError) as error:
        raise UnusableLibraryError(f"{path} cannot be used: {error}") from error
    if found != ABI_VERSION:
        raise UnusableLibraryError(f"{path} has ABI {found}, not {ABI_VERSION}: install again")
    return library


def runnable_sets(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that this CPU and this build can run, best last."""
    return tuple(name for index, name in enumerate(SETS) if library.nm_set_runs(index))


def choose_set(runnable: Sequence[str], wanted: str | None) -> str:
    """The set asked for, or the best one.

    Raises: UnusableLibraryError if the set asked for cannot run here.
    """
    if wanted is None:
        return runnable[-1]
    if wanted not in runnable:
        raise UnusableLibraryError(
            f"{ISA_VARIABLE}={wanted} cannot run here, {', '.join(runnable)} can"
        )
    return wanted


def load_kernels(roots: Sequence[str], isa: str | None = None) -> Kernels:
    """Native kernels of an instruction set: `isa`, else the environment's, else the best.

    Raises: UnusableLibraryError saying why there are none.
    """
    library = load_library(find_library(roots))
    name = choose_set(runnable_sets(library), isa or os.environ.get(ISA_VARIABLE) or None)
    native = NativeKernels(library, SETS.index(name))
    return Kernels(
        f"native-{name}", native.rms_norm, native.rotate, native.linear, native.route,
        native.experts, native.attention,
    )  # fmt: skip


class _ExpertsShape(ctypes.Structure):
    _fields_ = [(name, _LONG) for name in ("tokens", "slots", "experts", "hidden", "size", "kind")]


class _AttentionShape(ctypes.Structure):
    _fields_ = [
        (name, _LONG)
        for name in (
            "sequences", "heads", "kv_heads", "width", "blocks", "block_size", "table_width",
            "query_stride",
        )
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """The operations of `Kernels`, each defined by the reference function of its name."""

    library: ctypes.CDLL
    set_index: int

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Bound: relative 1e-5 of the reference."""
        if not (_is_plain(x) and _is_plain(weight)):
            return reference.rms_norm(x, weight, eps)
        _fit(weight.shape == x.shape[1:])
        out = torch.empty_like(x)
        _done(self.library.nm_rms_norm(
            self.set_index, x.data_ptr(), weight.data_ptr(), eps, x.shape[0], x.shape[1],
            out.data_ptr(),
        ))  # fmt: skip
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Bound: relative 1e-6 of the reference."""
        tokens, heads, width = x.shape
        packed = x.stride(2) == 1 and x.stride(1) == width and x.dtype == torch.float32
        if not (packed and x.device.type == "cpu" and _is_plain(cos) and _is_plain(sin)):
            return reference.rotate(x, cos, sin)
        _fit(cos.shape == sin.shape == (tokens, width // 2) and width % 2 == 0)
        out = torch.empty((tokens, heads, width))
        _done(self.library.nm_rotate(
            x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), tokens, heads, width,
            out.data_ptr(),
        ))  # fmt: skip
        return out

    def linear(self, x: Tensor, weight: Matrix) -> Tensor:
        """Bound: 1e-6 of the sum of the magnitudes, whatever cancels."""
        parts, (tokens, width) = _parts(weight), x.shape
        if parts is None or width % BLOCK or not _is_plain(x):
            return reference.linear(x, weight)
        _fit(weight.shape[1:] == x.shape[1:])
        (kind, data, scales), rows = parts, weight.shape[0]
        out = torch.empty((tokens, rows))
        _done(self.library.nm_linear(
            self.set_index, kind, x.data_ptr(), tokens, data, scales, rows, width,
            out.data_ptr(),
        ))  # fmt: skip
        return out

    def route(self, x: Tensor, router: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor]:
        """Bound: relative 1e-5; equal chances go to the lower id."""
        tokens, hidden = x.shape
        if hidden % BLOCK or not (_is_plain(x) and _is_plain(router)):
            return reference.route(x, router, experts_per_token)
        _fit(router.shape[1:] == x.shape[1:])
        weights = torch.empty((tokens, experts_per_token))
        ids = torch.empty((tokens, experts_per_token), dtype=torch.int64)
        shape = _ExpertsShape(tokens, experts_per_token, router.shape[0], hidden, 0, 0)
        _done(self.library.nm_route(
            self.set_index, ctypes.addressof(shape), x.data_ptr(), router.data_ptr(),
            weights.data_ptr(), ids.data_ptr(),
        ))  # fmt: skip
        return weights, ids

    def experts(
        self, x: Tensor, routing: tuple[Tensor, Tensor], gate_up: Matrix, down: Matrix
    ) -> Tensor:
        """Bound: relative 1e-5."""
        (weights, ids), wide, narrow = routing, _parts(gate_up), _parts(down)
        count, hidden, size = down.shape
        if wide is None or narrow is None or wide[0] != narrow[0] or not _is_plain(x):
            return reference.experts(x, routing, gate_up, down)
        if hidden % BLOCK or size % BLOCK or not _is_plain(weights):
            return reference.experts(x, routing, gate_up, down)
        _fit(x.shape == (ids.shape[0], hidden) and weights.shape == ids.shape)
        _fit(gate_up.shape == (count, 2 * size, hidden))
        _fit(ids.dtype == torch.int64 and ids.is_contiguous())
        shape = _ExpertsShape(ids.shape[0], ids.shape[1], count, hidden, size, wide[0])
        out = torch.empty_like(x)
        _done(self.library.nm_experts(
            self.set_index, ctypes.addressof(shape), x.data_ptr(), ids.data_ptr(),
            weights.data_ptr(), *wide[1:], *narrow[1:], out.data_ptr(),
        ))  # fmt: skip
        return out

    def attention(
        self, query: Tensor, keys: Tensor, values: Tensor, batch: ForwardBatch, scale: float
    ) -> Tensor:
        """Bound: 1e-5 of the values seen. Caches that are not float32 go to the reference."""
        tokens, heads, width = query.shape
        packed = query.stride(2) == 1 and query.stride(1) == width and _is_plain(keys)
        if not (packed and query.dtype == torch.float32 and _is_plain(values)):
            return reference.attention(query, keys, values, batch, scale)
        _fit(keys.shape == values.shape and keys.shape[3] == width and heads % keys.shape[2] == 0)
        _fit(batch.positions.shape[0] == tokens)
        shape = _AttentionShape(
            batch.block_tables.shape[0], heads, keys.shape[2], width, keys.shape[0],
            keys.shape[1], batch.block_tables.shape[1], query.stride(0),
        )  # fmt: skip
        out = torch.empty((tokens, heads, width))
        _done(self.library.nm_attention(
            self.set_index, ctypes.addressof(shape), query.data_ptr(), keys.data_ptr(),
            values.data_ptr(), batch.sequence_starts.data_ptr(), batch.positions.data_ptr(),
            batch.block_tables.data_ptr(), scale, out.data_ptr(),
        ))  # fmt: skip
        return out


def _is_plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_contiguous() and x.device.type == "cpu"


def _parts(matrix: Matrix) -> tuple[int, int, int | None] | None:
    """A matrix, or a stack, as C++ takes it: kind, address, address of the scales.

    None if C++ cannot take it: another element type, another device, not contiguous.
    """
    if isinstance(matrix, NF4Matrix):
        data, scales = matrix.packed, matrix.absmax
        usable = scales.is_contiguous() and data.is_contiguous() and data.device.type == "cpu"
        usable = usable and scales.dtype == torch.float16 and data.dtype == torch.uint8
        if usable:
            _fit(scales.shape[:-1] == data.shape[:-1])
            _fit(scales.shape[-1] * BLOCK == data.shape[-1] * 2)
        return (_NF4, data.data_ptr(), scales.data_ptr()) if usable else None
    kind = _KINDS.get(matrix.dtype)
    if kind is None or not matrix.is_contiguous() or matrix.device.type != "cpu":
        return None
    return kind, matrix.data_ptr(), None


def _fit(fits: bool) -> None:
    if not fits:
        raise ValueError("a native kernel was given shapes that do not fit each other")


def _done(status: int) -> None:
    if status == -1:
        raise MemoryError("a native kernel found no memory")
    assert status == 0, f"a native kernel was called wrongly: {status}"
