"""One model tried out on this machine: loaded, measured, and set beside what memory allows.

Rules: a device that is not there is refused before anything is loaded; the memory told is the
process's after the benchmark ran, before bandwidth is measured, as that takes memory of its own.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Final

import torch

from novamesh_engine.benchmark import Load
from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.report import Report
from novamesh_engine.roofline import measure_read, resident_bytes
from novamesh_proto.errors import Code, NovaMeshError

_CUDA: Final = re.compile(r"cuda(?::(?P<number>\d{1,3}))?")
_ON_CPU: Final = "measure the processor:  novamesh engine bench --device cpu"


def examine(model: str | Path, config: EngineConfig, load: Load) -> Report:
    """Load a model, measure it, and measure how fast the same threads read memory.

    Raises: NovaMeshError as `Engine.load`, `Engine.benchmark` and `check_device` do.
    """
    check_device(config.device, torch.cuda)
    begun = time.perf_counter()
    engine = Engine.load(model, config)
    load_s = time.perf_counter() - begun
    result = engine.benchmark(load.prompt_tokens, load.decode_tokens, load.requests)
    resident = resident_bytes()
    return Report(
        model=str(model),
        plan=engine.plan,
        load_s=load_s,
        resident_bytes=resident,
        read_bytes_per_s=measure_read(engine.plan.threads, engine.config.device),
        step_bytes=engine.step_bytes(result.load.requests),
        result=result,
    )


def check_device(name: str, cuda: Any) -> None:
    """Whether a name is the CPU's or that of a card which is there; `cuda` is torch.cuda.

    Raises: NovaMeshError (bad_request) naming what there is.
    """
    if name == "cpu":
        return
    try:
        count = cuda.device_count() if cuda.is_available() else 0
    except RuntimeError as error:  # what torch makes of CUDA's errors
        said = str(error).partition("\n")[0]
        raise NovaMeshError(
            Code.BAD_REQUEST, f"torch cannot look at the GPUs of this machine: {said}", _ON_CPU
        ) from error
    found = _CUDA.fullmatch(name)
    if found is not None and int(found["number"] or 0) < count:
        return
    there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
    raise NovaMeshError(
        Code.BAD_REQUEST, f"this machine has no device {name!r} that torch can use",
        f"it has {there}",
    )  # fmt: skip
