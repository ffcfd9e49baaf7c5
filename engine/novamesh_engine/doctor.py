"""What the engine needs of this machine, checked one by one, each with a way out.

Rules: a check never raises and changes nothing. It starts without torch, because a machine where
torch is missing is one of those it must explain.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from novamesh_engine.catalogue import BUILTINS, CATALOGUE, GB, choose_entry, locate
from novamesh_engine.config import EngineConfig
from novamesh_engine.weights.place import KVWish, Machine, place
from novamesh_proto.errors import NovaMeshError

COMPILERS: Final = ("c++", "g++", "clang++", "cc", "gcc", "clang")
PACKAGES: Final = ("torch", "safetensors", "tokenizers", "jinja2", "bitsandbytes")


class Status(StrEnum):
    """How a check came out; only `fail` stops the engine from running."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `novamesh doctor`; the hint is empty when nothing need be done."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def doctor_checks() -> list[Check]:
    """The engine's checks: packages, torch, kernels, the card's memory, a compiler, the model."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        hint = "pip install 'novamesh[engine]'"
        return [Check("engine", Status.FAIL, f"not installed: {', '.join(missing)}", hint)]
    kernels = _kernels()
    card = _card_kernels()
    return [_torch(), kernels, *card, *_memory(), _compiler([kernels, *card]), _built_in()]


def _torch() -> Check:
    import torch  # heavy, and missing where only the client is installed

    if torch.cuda.is_available():
        return Check("torch", Status.OK, f"{torch.__version__}, {torch.cuda.get_device_name()}")
    threads = torch.get_num_threads()
    return Check("torch", Status.OK, f"{torch.__version__}, CPU, {threads} threads")


def _kernels() -> Check:
    from novamesh_engine.kernels.choice import look  # imports torch

    found = look()
    if not found.runnable:
        return Check("kernels", Status.WARN, f"torch: {found.why}", found.hint)
    # As a benchmark names them for NF4 weights, which all models of the catalogue have.
    rounded = "-int8" if EngineConfig().precision == "int8" else ""
    why = f"{found.why}, of {', '.join(found.runnable)}"
    return Check("kernels", Status.OK, f"{found.name}{rounded}: {why}")


def _card_kernels() -> list[Check]:
    """Which kernels a card gets; nothing where there is none."""
    import torch

    from novamesh_engine.kernels.cards import choose_for, look_at

    if not torch.cuda.is_available():
        return []
    card = look_at("cuda")
    found = choose_for(card)
    status = Status.OK if found.kernels == "triton" else Status.WARN
    kind = str(found.compute).removeprefix("torch.")
    detail = f"{found.kernels}, {kind}: {found.why}"
    return [Check("card", status, f"{card.name or 'unknown'}: {detail}", found.hint)]


def _memory() -> list[Check]:
    """Where the first choice for this card would lie; nothing where models run from RAM."""
    import torch

    from novamesh_engine.kernels.cards import look_at

    if not torch.cuda.is_available():
        return []
    busy = "close what else uses the card; until then, compute on the processor"
    try:
        free, total = torch.cuda.mem_get_info(0)
    except RuntimeError as error:  # it is full, or lent to one process alone
        said = f"the card does not open: {str(error).partition(chr(10))[0]}"
        return [Check("memory", Status.WARN, said, busy)]
    entry = choose_entry(total)
    if entry is None:
        least = min(each.memory_gb for each in CATALOGUE)
        said = f"{total / GB:.1f} GB, and the catalogue begins at {least} GB: models run from RAM"
        return [Check("memory", Status.OK, said)]
    bandwidth = look_at("cuda").read_bytes_per_s
    machine = Machine(free, device_read_bytes_per_s=bandwidth, context_bytes=0)
    plan = place(entry.footprint, machine, KVWish(entry.max_context))
    fits = plan.mode != "none"
    status = Status.OK if fits else Status.WARN
    return [Check("memory", status, f"{entry.name}, {plan.line}", "" if fits else busy)]


def _compiler(kernels: list[Check]) -> Check:
    """Whether there is a compiler, which only who misses some kernels misses."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is not None:
        return Check("compiler", Status.OK, found)
    if all(each.status is Status.OK for each in kernels):
        return Check("compiler", Status.OK, "none found, and the kernels need none")
    hint = "install gcc or clang; without one the engine uses torch's own kernels"
    return Check("compiler", Status.WARN, "no C compiler found", hint)


def _built_in() -> Check:
    try:
        folder = locate(BUILTINS[0])
    except NovaMeshError as error:
        return Check("model", Status.WARN, error.message, "reinstall novamesh")
    return Check("model", Status.OK, f"{BUILTINS[0]} at {folder}")
