"""One model tried out on this machine: loaded, measured, and set beside what memory allows.

Rules: the memory told is the process's after the benchmark ran, before bandwidth is measured, as
that takes memory of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

from novamesh_engine.benchmark import Load
from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.report import Report
from novamesh_engine.roofline import measure_read, resident_bytes


def examine(model: str | Path, config: EngineConfig, load: Load) -> Report:
    """Load a model, measure it, and measure how fast the same threads read memory.

    Raises: NovaMeshError as `Engine.load` and `Engine.benchmark` do.
    """
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
