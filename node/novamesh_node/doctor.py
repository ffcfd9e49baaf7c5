"""What a node needs of this machine, checked, each with a way out.

Rule: a check never raises and changes nothing. Engine, disk and keys are checked by others.
"""

from __future__ import annotations

from typing import Any

import pynvml

from novamesh_engine.doctor import Check, Status
from novamesh_node.hardware import describe, probe_nvidia
from novamesh_proto.errors import NovaMeshError


def doctor_checks() -> list[Check]:
    """All of them, in the order they are shown."""
    return [check_gpu(pynvml)]


def check_gpu(nvml: Any) -> Check:
    """Whether there is a GPU to lend; a node without one works on the processor."""
    try:
        found = probe_nvidia(nvml, "cuda")
    except NovaMeshError as error:
        detail = f"none that NVML knows; work runs on the processor ({error.message})"
        return Check("gpu", Status.WARN, detail)
    counted = "" if found.energy_mj() is not None else ", energy is not counted"
    return Check("gpu", Status.OK, describe(found.hardware, 0) + counted)
