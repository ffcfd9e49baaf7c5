"""Where an interrupted training goes on: one safetensors file, replaced atomically.

Rules: no pickle; a checkpoint of another preset, seed or way of computing is refused, because it
could not lead to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from novamesh_engine.recipe.network import Network
from novamesh_engine.recipe.optimizer import Optimizer
from novamesh_proto.errors import Code, NovaMeshError

FILE: Final = "checkpoint.safetensors"
_NETWORK: Final = "network/"
_STATE: Final = "optimizer/"


@dataclass(frozen=True, slots=True)
class Run:
    """What a checkpoint belongs to."""

    preset_digest: str
    seed: int
    backend: str


def save(
    folder: Path, run: Run, step: int, seconds: float, parts: tuple[Network, Optimizer]
) -> None:
    """Write the state after `step` steps; a crash leaves the previous file whole."""
    network, optimizer = parts
    tensors = {_NETWORK + k: v.detach().contiguous() for k, v in network.named_parameters()}
    tensors |= {_STATE + k: v.contiguous() for k, v in optimizer.state.items()}
    metadata = {
        "step": str(step), "seconds": str(round(seconds, 1)), "preset": run.preset_digest,
        "seed": str(run.seed), "backend": run.backend,
    }  # fmt: skip
    partial = folder / (FILE + ".partial")
    save_file(tensors, partial, metadata)
    partial.replace(folder / FILE)


def _check(metadata: dict[str, str], run: Run, path: Path) -> None:
    theirs = (metadata.get("preset"), metadata.get("seed"), metadata.get("backend"))
    if theirs != (run.preset_digest, str(run.seed), run.backend):
        raise NovaMeshError(
            Code.CONFLICT,
            f"{path} belongs to another preset, seed or compute backend",
            "train into another folder, or delete the checkpoint to start over",
        )


def _copy(target: Tensor, source: Tensor, name: str) -> None:
    if target.shape != source.shape or target.dtype != source.dtype:
        raise NovaMeshError(Code.CORRUPT, f"checkpoint tensor {name} has the wrong shape")
    with torch.no_grad():
        target.copy_(source)


def load(folder: Path, run: Run, parts: tuple[Network, Optimizer]) -> tuple[int, float]:
    """Fill network and optimizer; returns steps done and seconds spent.

    Raises:
        NovaMeshError: there is no checkpoint, it is damaged, or it belongs to another run.
    """
    network, optimizer = parts
    path = folder / FILE
    if not path.is_file():
        raise NovaMeshError(
            Code.NOT_FOUND, f"there is no checkpoint in {folder}", "run without --resume"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check(metadata, run, path)
            for name, value in network.named_parameters():
                _copy(value, file.get_tensor(_NETWORK + name), name)
            for name, state in optimizer.state.items():
                _copy(state, file.get_tensor(_STATE + name), name)
        return int(metadata["step"]), float(metadata["seconds"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise NovaMeshError(
            Code.CORRUPT, f"{path} is damaged: {error}", "delete it and train from the start"
        ) from error
