"""The C++ library of CPU kernels: found beside this package, checked, and its C interface.

Rules: it is looked for beside this package only; one with another ABI version is refused. The
structures here are those of engine/native/decoder.h, field for field. C++ trusts what it is given:
whoever fills a structure has checked shapes, types and contiguity.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LIBRARY: Final = "libnovamesh_kernels.so"
ABI_VERSION: Final = 3
# By number; of those that a CPU runs, the last is the best.
SETS: Final = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "neon")

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class UnusableLibraryError(Exception):
    """Why there are no native kernels; the reference is used instead, doctor shows the text."""


def _fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Matrix(ctypes.Structure):
    """A matrix, or the first of a stack."""

    _fields_ = [*_fields(_POINTER, "weights", "scales", "bias"),
                *_fields(_LONG, "rows", "width", "kind")]  # fmt: skip


class Norm(ctypes.Structure):
    """A normalisation; no weight says that there is none."""

    _fields_ = [*_fields(_POINTER, "weight", "bias"), *_fields(_LONG, "width", "centred"),
                ("eps", _FLOAT)]  # fmt: skip


class Router(ctypes.Structure):
    """A router; no weights say that the layer is dense."""

    _fields_ = [
        ("weights", _POINTER),
        *_fields(_LONG, "experts", "slots", "hidden", "sparsemixer", "renormalise"),
        ("jitter", _FLOAT),
    ]


class Stack(ctypes.Structure):
    """SwiGLU experts; a dense network is a stack of one."""

    _fields_ = [*_fields(Matrix, "gate_up", "down"), ("experts", _LONG)]


class Layer(ctypes.Structure):
    """One layer of a decoder."""

    _fields_ = [
        *_fields(Norm, "attention_norm", "query_norm", "key_norm", "mlp_norm"),
        *_fields(Matrix, "qkv", "output"), ("router", Router),
        *_fields(Stack, "experts", "shared"), ("shared_gate", _POINTER), ("window", _LONG),
        ("clip", _FLOAT),
    ]  # fmt: skip


class Decoder(ctypes.Structure):
    """A whole decoder."""

    _fields_ = [
        *_fields(_LONG, "layer_count", "hidden", "heads", "kv_heads", "width", "vocab"),
        ("layers", ctypes.POINTER(Layer)), ("norm", Norm), *_fields(Matrix, "embedding", "head"),
    ]  # fmt: skip


class Cache(ctypes.Structure):
    """The pages of all layers."""

    _fields_ = [*_fields(_POINTER, "keys", "values", "key_scales", "value_scales"),
                *_fields(_LONG, "kind", "blocks", "block_size")]  # fmt: skip


class Step(ctypes.Structure):
    """One batch, and where its logits go."""

    _fields_ = [
        *_fields(_LONG, "tokens", "sequences", "table_width", "rows"),
        *_fields(_POINTER, "ids", "positions", "slots", "logit_rows", "starts", "tables",
                 "cosines", "sines", "logits"),
    ]  # fmt: skip


class KvLayer(ctypes.Structure):
    """The pages of one layer."""

    _fields_ = [("kind", ctypes.c_int32),
                *_fields(_POINTER, "keys", "values", "key_scales", "value_scales")]  # fmt: skip


class AttentionShape(ctypes.Structure):
    """What one layer's attention reads."""

    _fields_ = [
        *_fields(_LONG, "heads", "kv_heads", "width", "blocks", "block_size", "table_width",
                 "sequences", "tokens", "window"),
        ("scale", _FLOAT),
    ]  # fmt: skip


class AttentionBatch(ctypes.Structure):
    """Which tokens are whose, and where their keys and values are."""

    _fields_ = _fields(_POINTER, "starts", "positions", "tables", "slots")


_SIGNATURES: Final[dict[str, tuple[type | None, tuple[type, ...]]]] = {
    "nm_abi_version": (_INT, ()),
    "nm_set_runs": (_INT, (_INT,)),
    "nm_open": (_POINTER, (_INT, _INT, _INT)),
    "nm_close": (None, (_POINTER,)),
    "nm_forward": (_INT, (_POINTER,) * 4),
    "nm_linear": (_INT, (_POINTER, _POINTER, _POINTER, _LONG, _POINTER)),
    "nm_route": (_INT, (_POINTER, _POINTER, _POINTER, _LONG, _POINTER, _POINTER)),
    "nm_experts": (_INT, (_POINTER, _POINTER, _POINTER, _LONG, _LONG, *[_POINTER] * 3)),
    "nm_normalise": (_INT, (_POINTER, _POINTER, _POINTER, _LONG, _POINTER)),
    "nm_attend": (_INT, (_POINTER,) * 6),
    "nm_write_kv": (_INT, (_POINTER,) * 6),
    "nm_read": (ctypes.c_uint64, (_POINTER, _POINTER, _LONG)),
}


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
        found = library.nm_abi_version()
        if found != ABI_VERSION:
            raise UnusableLibraryError(f"{path} has ABI {found}, not {ABI_VERSION}: install again")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UnusableLibraryError(f"{path} cannot be used: {error}") from error
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
        message = f"instruction set {wanted} cannot run here, {', '.join(runnable)} can"
        raise UnusableLibraryError(message)
    return wanted
