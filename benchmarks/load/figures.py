"""A figure as a benchmark tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Figure:
    """One figure and, where there is one, the bar it must hold."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it is on the wrong side of its bar."""
        above = self.most is not None and self.value > self.most
        return above or (self.least is not None and self.value < self.least)

    def __str__(self) -> str:
        bar = "" if self.most is None else f"  (at most {self.most:g})"
        bar = bar if self.least is None else f"  (at least {self.least:g})"
        return f"{self.name:42}{self.value:10.2f} {self.unit}{bar}{'  MISSED' * self.missed}"
