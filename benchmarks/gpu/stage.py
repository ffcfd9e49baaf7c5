"""What all parts share: the device, how much is measured, what was found, and the time left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from cpu.figures import Figure

from gpu.device import Device
from gpu.gates import Bar, bar
from gpu.shapes import Extent


@dataclass
class Stage:
    """`counts` is whether figures are results; `ends` is when no part begins any more."""

    device: Device
    extent: Extent
    counts: bool
    ends: float
    facts: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    copy_bytes_s: float = 0.0  # read and written together
    products_s: float = 0.0  # multiplications and additions on tensor cores

    def bar(self, line: str) -> Bar:
        """The gate of a line of the table on this device."""
        return bar(line, self.device.card, self.counts)

    def show(self, figure: Figure) -> None:
        """Keep a figure that is done, and say it."""
        self.figures.append(figure)
        print("  ".join(filter(None, figure.cells())), file=sys.stderr, flush=True)

    def skip(self, what: str, why: str) -> None:
        """Say what is not measured; it stands in the file, too."""
        self.facts.setdefault("skipped", {})[what] = why
        print(f"{what}: skipped, {why}", file=sys.stderr, flush=True)

    def late(self, what: str) -> bool:
        """Whether there is no time left for a part, which is then skipped."""
        if time.monotonic() < self.ends:
            return False
        self.skip(what, "no time was left")
        return True

    def measure_device(self) -> None:
        """What the card can do at most: bytes copied and products of matrices, a second."""
        device, extent = self.device, self.extent
        copy = Figure("device copy, read and written", "GB/s")
        source = torch.zeros(extent.copied_bytes, dtype=torch.uint8, device=device.name)
        target = torch.empty_like(source)
        for took_s in device.cold(lambda: target.copy_(source), extent.runs):
            copy.add(2 * source.nbytes / took_s / 1e9)
        rate = Figure("product of matrices, for the floor of prompts", "TFLOP/s")
        square = torch.randn((extent.product,) * 2, device=device.name).to(device.compute)
        for took_s in device.cold(lambda: square @ square, extent.runs):
            rate.add(2 * extent.product**3 / took_s / 1e12)
        self.copy_bytes_s, self.products_s = copy.median * 1e9, rate.median * 1e12
        self.show(copy)
        self.show(rate)
