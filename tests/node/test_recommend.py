"""The model for a machine: the card's memory first, else most of its own, and a reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from novamesh_node import recommend
from novamesh_node.recommend import Memory, choose, measure_memory


@dataclass
class Card:
    """What torch.cuda says of a machine."""

    total_memory: int = 0
    name: str = "NVIDIA GeForce RTX 4090"

    def is_available(self) -> bool:
        return self.total_memory > 0

    def get_device_properties(self, device: int) -> Card:
        assert device == 0
        return self


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [
        (0.5, "nova-pico"),
        (5.0, "nova-pico"),
        (5.9, "phi-tiny-moe-instruct"),
        (7.9, "phi-mini-moe-instruct"),
        (12.0, "phi-mini-moe-instruct"),
        (16.0, "phi-mini-moe-instruct"),
        (25.3, "qwen3-30b-a3b-instruct-2507"),
        (200.0, "qwen3-30b-a3b-instruct-2507"),
    ],
)
def test_the_choice_follows_the_memory_and_says_why(gigabytes: float, name: str) -> None:
    choice = choose(Memory(int(gigabytes * 1e9), f"{gigabytes} GB of a card"))
    assert choice.name == name
    assert f"{gigabytes} GB of a card" in choice.reason
    assert name in choice.reason


def test_a_usable_card_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_memory(Card(25_300_000_000))
    assert found == Memory(25_300_000_000, "25.3 GB of NVIDIA GeForce RTX 4090")


def test_without_one_three_quarters_of_the_machine_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recommend, "_LIMITS", (tmp_path / "none",))
    total = psutil.virtual_memory().total
    found = measure_memory(Card())
    assert found.usable_bytes == int(total * 0.75)
    assert "three quarters" in found.reason


@pytest.mark.parametrize(("limit", "usable"), [("8000000000\n", 6_000_000_000), ("max\n", None)])
def test_a_containers_limit_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, usable: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(recommend, "_LIMITS", (tmp_path / "memory.max",))
    total = psutil.virtual_memory().total
    expected = min(usable or total, int(total * 0.75))
    assert measure_memory(Card()).usable_bytes == expected
