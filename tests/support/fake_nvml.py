"""The part of NVML's binding that a node uses, for a board of cards."""

from __future__ import annotations

from typing import Any

CARD = "GPU-1a2b3c4d-0000-1111-2222-333344445555"


class Nvml:
    """Cards by UUID, in NVML's order; `missing` names a function that the driver does not support.

    A handle is the card's UUID.
    """

    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        """What the binding raises."""

    def __init__(self, missing: str = "", cards: tuple[str, ...] = (CARD,)) -> None:
        self.cards = cards
        self.energy = dict.fromkeys(cards, 1_000)
        if missing:
            setattr(self, missing, self._fail)

    def _fail(self, *arguments: Any) -> Any:
        raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        return None

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= len(self.cards):
            raise self.NVMLError("Invalid Argument")
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, card: str) -> str:
        if card not in self.cards:
            raise self.NVMLError("Not Found")
        return card

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA GeForce RTX 3060"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return type("Info", (), {"total": 12 * 2**30})

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54"

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return 7501

    def nvmlDeviceGetMemoryBusWidth(self, handle: str) -> int:
        return 192

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.energy[handle] += 5
        return self.energy[handle]
