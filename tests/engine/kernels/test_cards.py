"""Which kernels a device gets, by what is known of it, and what is asked of torch."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

from novamesh_engine.kernels.cards import Card, choose_for, look_at

ADA = Card("cuda", "RTX 4090", (8, 9), triton=True, compiler=True)


@pytest.mark.parametrize(
    ("card", "kernels", "compute", "why"),
    [
        (ADA, "triton", torch.bfloat16, "the best this card has"),
        (replace(ADA, capability=(12, 0)), "triton", torch.bfloat16, "the best"),
        (replace(ADA, capability=(7, 5)), "triton", torch.float16, "the best"),
        (replace(ADA, name="MI300X", capability=(9, 4), rocm=True), "triton", torch.bfloat16, ""),
        (replace(ADA, name="P40", capability=(6, 1)), "torch", torch.float32,
         "P40 has 6.1, Triton needs 7.5"),
        (replace(ADA, triton=False), "torch", torch.float32, "Triton is missing"),
        (replace(ADA, compiler=False), "torch", torch.float32, "Triton needs a C compiler"),
        (Card("cuda", triton=True, compiler=True), "torch", torch.float32, "cannot open"),
        (Card("mps", "M3"), "torch", torch.float32, "no kernels of ours for mps yet"),
    ],
)  # fmt: skip
def test_a_card_gets_what_it_can_run(
    card: Card, kernels: str, compute: torch.dtype, why: str
) -> None:
    found = choose_for(card)
    assert (found.kernels, found.compute) == (kernels, compute)
    assert why in found.why
    improvable = not (card.triton and card.compiler) and card.kind == "cuda"
    assert bool(found.hint) == improvable


def test_without_a_card_nothing_is_known_and_nothing_raised() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    card = look_at("cuda:3")
    assert (card.kind, card.name, card.free_bytes, card.processors) == ("cuda", "", 0, 1)
    assert look_at("mps").kind == "mps"


@dataclass(frozen=True)
class Properties:
    name: str = "RTX 3060"
    major: int = 8
    minor: int = 6
    multi_processor_count: int = 28
    memory_clock_rate: int = 7_501_000
    memory_bus_width: int = 192


def test_torch_is_asked_for_the_card_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda at: asked.append(at) or Properties()
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (5, 12))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/cc" if name == "cc" else None)
    card = look_at("cuda:1")
    assert asked == [1]
    assert (card.capability, card.processors, card.free_bytes) == ((8, 6), 28, 5)
    assert card.read_bytes_per_s == 360_048_000_000
    assert (card.triton, card.compiler) == (False, True)
