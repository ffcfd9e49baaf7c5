"""The part of torch.cuda that a node uses: cards by UUID, in CUDA's order, and one that breaks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Properties:
    """What torch says of a card; its UUID comes without the GPU- that NVML puts before it."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 3060"


@dataclass
class Cuda:
    """`cards` are UUIDs as NVML writes them, those this process may see, by CUDA's number."""

    cards: tuple[str, ...] = ()
    broken: set[str] = field(default_factory=set)  # by name: cuda:1
    current: str = "cuda:0"
    waited: list[str] = field(default_factory=list)

    def is_available(self) -> bool:
        return bool(self.cards)

    def device_count(self) -> int:
        return len(self.cards)

    def get_device_properties(self, number: int) -> Properties:
        return Properties(self.cards[number].removeprefix("GPU-"))

    def set_device(self, name: str) -> None:
        self.current = name

    def synchronize(self, name: str) -> None:
        self.waited.append(name)
        if name in self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
