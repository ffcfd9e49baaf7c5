"""What a node needs of this machine, checked, each with a way out.

Rule: a check never raises and changes nothing. Engine, disk and keys are checked by others.
"""

from __future__ import annotations

from typing import Any

import pynvml

from novamesh_engine.doctor import Check, Status
from novamesh_node.devices import list_ids
from novamesh_node.hardware import describe, probe_nvidia
from novamesh_proto.errors import NovaMeshError


def doctor_checks() -> list[Check]:
    """All of them, in the order they are shown."""
    return [check_gpu(pynvml)]


def check_gpu(nvml: Any) -> Check:
    """Which GPUs there are to lend, by id; a node without one works on the processor."""
    try:
        nvml.nvmlInit()
        found = [(card, probe_nvidia(nvml, card)) for card in list_ids(nvml)]
    except (nvml.NVMLError, NovaMeshError) as error:
        detail = f"none that NVML knows; work runs on the processor (NVML: {error})"
        return Check("gpu", Status.WARN, detail)
    if not found:
        return Check("gpu", Status.WARN, "none that NVML knows; work runs on the processor")
    lines = [
        f"{describe(each.hardware, 0)}, {card}"
        + ("" if each.energy_mj() is not None else ", energy is not counted")
        for card, each in found
    ]
    return Check("gpu", Status.OK, "; ".join(lines))
