"""Muon for matrices, AdamW for the rest, as one step over a network.

Rules: every matrix of a layer is orthogonalised by itself, experts one by one; matrices of one
shape go through Newton-Schulz together. State is a flat dictionary of tensors, so that a checkpoint
needs no pickle. Muon: Keller Jordan, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.recipe.network import Network
from novamesh_engine.recipe.preset import Preset

_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_ROUNDS: Final = 5
_MOMENTUM: Final = 0.95
_BETAS: Final = (0.9, 0.99)
_EPS: Final = 1e-8
_SPLITS: Final = {"qkv": ("rows", 3), "out": ("rows", 1), "gate": ("rows", 0), "up": ("rows", 0),
                  "down": ("columns", 0)}  # fmt: skip
"""How a fused parameter divides into matrices; 0 stands for the number of experts."""


def orthogonalize(stack: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices of a stack [n, rows, columns], rows <= columns.

    Computed in `dtype`; the singular values end within about 0.7 and 1.2.
    """
    a, b, c = _NEWTON_SCHULZ
    x: Tensor = (stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(_ROUNDS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


@dataclass(frozen=True, slots=True)
class _Fused:
    """One fused parameter and its place in the stacks."""

    name: str
    value: Tensor
    by_columns: bool
    parts: int

    def split(self, whole: Tensor) -> Tensor:
        """The matrices of the parameter [parts, short, long]."""
        if self.by_columns:
            return whole.view(whole.shape[0], self.parts, -1).permute(1, 2, 0)
        return whole.view(self.parts, -1, whole.shape[1])

    def merge(self, parts: Tensor) -> Tensor:
        """The opposite of `split`."""
        if self.by_columns:
            return parts.permute(2, 0, 1).reshape(self.value.shape)
        return parts.reshape(self.value.shape)


class Optimizer:
    """Owns the optimizer's state and changes the network's parameters in place."""

    def __init__(self, network: Network, preset: Preset, half: bool = False) -> None:
        self._preset = preset
        self._dtype = torch.bfloat16 if half else torch.float32
        self._fused: list[_Fused] = []
        self._plain: dict[str, Tensor] = {}
        self.state: dict[str, Tensor] = {}
        for name, value in network.named_parameters():
            split = _SPLITS.get(name.rsplit(".", 1)[-1])
            if split is None:
                self._plain[name] = value
                self.state[f"{name}/mean"] = torch.zeros_like(value)
                self.state[f"{name}/square"] = torch.zeros_like(value)
            else:
                kind, parts = split
                fused = _Fused(name, value, kind == "columns", parts or preset.experts)
                self._fused.append(fused)
                self.state[f"{name}/momentum"] = torch.zeros_like(value)

    @torch.no_grad()
    def step(self, number: int, share: float) -> None:
        """One update; `share` of the preset's rates, `number` counts from zero."""
        self._step_muon(share * self._preset.muon_rate)
        self._step_adam(number, share * self._preset.adam_rate)

    def _gradient(self, value: Tensor) -> Tensor:
        assert value.grad is not None, "backward ran before the step"
        return value.grad

    def _step_muon(self, rate: float) -> None:
        shapes: dict[tuple[int, ...], list[tuple[_Fused, Tensor]]] = {}
        for fused in self._fused:
            momentum = self.state[f"{fused.name}/momentum"]
            gradient = self._gradient(fused.value)
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            parts = fused.split(torch.lerp(gradient, momentum, _MOMENTUM))
            shapes.setdefault(tuple(parts.shape[1:]), []).append((fused, parts))
        for group in shapes.values():
            updates = orthogonalize(torch.cat([parts for _, parts in group]), self._dtype)
            sizes = [parts.shape[0] for _, parts in group]
            for (fused, _), update in zip(group, torch.split(updates, sizes), strict=True):
                fused.value.mul_(1 - rate * self._preset.weight_decay)
                fused.value.sub_(fused.merge(update), alpha=rate)

    def _step_adam(self, number: int, rate: float) -> None:
        first, second = _BETAS
        for name, value in self._plain.items():
            mean, square = self.state[f"{name}/mean"], self.state[f"{name}/square"]
            gradient = self._gradient(value)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (square / (1 - second ** (number + 1))).sqrt_().add_(_EPS)
            if value.ndim > 1:
                value.mul_(1 - rate * self._preset.weight_decay)
            value.addcdiv_(mean / (1 - first ** (number + 1)), size, value=-rate)
