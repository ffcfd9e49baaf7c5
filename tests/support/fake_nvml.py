"""The part of NVML's binding that a node uses, for one card."""

from __future__ import annotations

from typing import Any


class Nvml:
    """One card; `missing` names a function that the driver does not support."""

    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        """What the binding raises."""

    def __init__(self, missing: str = "") -> None:
        self.energy = 1_000
        if missing:
            setattr(self, missing, self._fail)

    def _fail(self, *arguments: Any) -> Any:
        raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        return None

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA GeForce RTX 3060"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Info", (), {"total": 12 * 2**30})

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54"

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 7501

    def nvmlDeviceGetMemoryBusWidth(self, handle: int) -> int:
        return 192

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.energy += 5
        return self.energy
