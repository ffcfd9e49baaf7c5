"""How an engine is set up: one frozen value, every field with its unit, range and reason.

Rules: a value out of range is refused when the config is made. Nothing here reads a file or the
environment; whoever builds an engine decides.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

from novamesh_proto.errors import Code, NovaMeshError

KV_DTYPES: Final = ("fp32", "bf16", "int8")
PRECISIONS: Final = ("int8", "exact")


def _setting(default: int, low: int, high: int, unit: str, why: str) -> Any:
    """A whole number within [low, high]; the metadata is what help texts and checks read."""
    return field(default=default, metadata={"low": low, "high": high, "unit": unit, "why": why})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes that bound an engine's memory and the work of one step.

    Raises: NovaMeshError (bad_config) naming the field that is out of range.
    """

    block_size: int = _setting(
        16, 1, 1024, "tokens", "one page of the cache; small pages waste little at a tail"
    )
    kv_bytes_max: int = _setting(
        1 << 30, 1, 1 << 42, "bytes", "most memory that keys and values may take"
    )
    max_running: int = _setting(8, 1, 1024, "requests", "requests that share one step")
    max_waiting: int = _setting(64, 0, 65536, "requests", "requests that may queue")
    max_step_tokens: int = _setting(
        512, 1, 1 << 16, "tokens", "tokens of one step; longer prompts are prefilled in chunks"
    )
    max_context: int = _setting(
        0, 0, 1 << 24, "tokens", "longest prompt with its answer; 0 = what the model can"
    )
    kv_dtype: str = "bf16"  # of keys and values: one of KV_DTYPES; int8 takes about half of bf16
    prefix_cache: bool = True  # keep what was computed for later requests of the same scope
    threads: int = _setting(
        0, 0, 1024, "threads", "CPU threads of the kernels; 0 = the physical cores"
    )
    precision: str = "int8"  # of activations that meet NF4 on a CPU: int8, or exact float32
    device: str = "cpu"  # or cuda, cuda:N
    device_bytes: int = _setting(
        0, 0, 1 << 44, "bytes", "memory of the device that the engine may take; 0 = what is free"
    )
    tuning: str = ""  # folder for what was measured of a device's kernels; "" = measure nothing
    verify: bool = True  # hash a profile's files against its manifest before use

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check(setting, getattr(self, setting.name))
        if self.precision not in PRECISIONS:
            message = f"precision is {self.precision!r}"
            raise NovaMeshError(Code.BAD_CONFIG, message, f"choose one of {', '.join(PRECISIONS)}")
        if self.kv_dtype not in KV_DTYPES:
            message = f"kv_dtype is {self.kv_dtype!r}"
            raise NovaMeshError(Code.BAD_CONFIG, message, f"choose one of {', '.join(KV_DTYPES)}")
        if self.max_step_tokens < self.max_running:
            message = f"max_step_tokens {self.max_step_tokens} < max_running {self.max_running}"
            raise NovaMeshError(Code.BAD_CONFIG, message, "every running request needs one token")

    def blocks(self, slot_bytes: int, model_context: int) -> int:
        """Blocks of a pool whose slots take `slot_bytes` each over all layers.

        Never more than `max_running` full contexts need.
        Raises: NovaMeshError (bad_config) if not even one block fits.
        """
        fitting = self.kv_bytes_max // (slot_bytes * self.block_size)
        if fitting < 1:
            needed = slot_bytes * self.block_size
            message = f"kv_bytes_max {self.kv_bytes_max} holds no block of {needed} bytes"
            raise NovaMeshError(Code.BAD_CONFIG, message, "raise kv_bytes_max")
        context = self.context(model_context)
        return min(fitting, self.max_running * -(-context // self.block_size))

    def context(self, model_context: int) -> int:
        """Longest context in tokens: the model's, or less if `max_context` says so."""
        return min(model_context, self.max_context) if self.max_context else model_context


def _check(setting: Field[Any], value: Any) -> None:
    if "low" not in setting.metadata:
        return
    low, high = setting.metadata["low"], setting.metadata["high"]
    if not low <= value <= high:
        message = f"{setting.name} is {value}, not within {low} and {high}"
        hint = f"{setting.name} ({setting.metadata['unit']}): {setting.metadata['why']}"
        raise NovaMeshError(Code.BAD_CONFIG, message, hint)
