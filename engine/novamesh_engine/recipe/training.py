"""The training loop: pretraining on text, then supervised tuning on the chat form.

Rules: the same preset, seed, backend and machine give the same bytes, interrupted or not; the loop
draws no randomness of its own. It writes checkpoints and nothing else; export is another module.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

from novamesh_engine.heap import keep_freed_memory
from novamesh_engine.recipe import checkpoint
from novamesh_engine.recipe.network import Network, training_loss
from novamesh_engine.recipe.optimizer import Optimizer
from novamesh_engine.recipe.packing import make_shard
from novamesh_engine.recipe.preset import Preset
from novamesh_engine.recipe.vocabulary import train_tokenizer

THREADS: Final = 1
"""Fixed, because the order of a sum depends on it; one, because steps are short and a second thread
that has to share its core with others makes each barrier wait."""
Loss = Callable[[Network, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is."""

    step: int
    steps: int
    phase: str
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Backend:
    """How the loss is computed; part of what the bytes depend on."""

    compiled: bool
    half: bool

    @property
    def name(self) -> str:
        """For checkpoints and the model's own record."""
        precision = "bfloat16" if self.half else "float32"
        return f"{'compiled' if self.compiled else 'eager'}-{precision}-{THREADS}-thread"


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a training."""

    network: Network
    tokenizer: Tokenizer
    seconds: float
    loss: float


def detect_backend() -> Backend:
    """Compiled where there is a C++ compiler, bfloat16 where the processor multiplies it.

    The same steps in eager mode give the same kind of model, slower and not byte for byte.
    """
    compiled = any(shutil.which(name) for name in ("g++", "clang++"))
    # The public API tells AVX512 but not its bfloat16 part.
    half = bool(torch.cpu._is_avx512_bf16_supported())
    return Backend(compiled, half)


def prepare_torch() -> None:
    """Fix what the bytes depend on: threads, deterministic kernels, and keep the heap."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    keep_freed_memory()


def rate_share(preset: Preset, step: int) -> float:
    """Warm-up, constant, then a linear decay to zero; 0…1."""
    decay = preset.steps * preset.decay_share
    return min(1.0, (step + 1) / preset.warmup_steps, (preset.steps - step) / decay)


def _batches(
    preset: Preset, tokenizer: Tokenizer, seed: int, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        number, offset = divmod(first, preset.shard_steps)
        shard = make_shard(preset, tokenizer, seed, number)
        for place in range(offset, preset.shard_steps):
            yield torch.from_numpy(shard.ids[place]), torch.from_numpy(shard.weights[place])
        first += preset.shard_steps - offset


class Trainer:
    """Owns network and optimizer of one run."""

    def __init__(self, preset: Preset, seed: int, folder: Path, backend: Backend) -> None:
        self._preset, self._seed, self._folder = preset, seed, folder
        self._backend = backend
        self._run = checkpoint.Run(preset.digest, seed, backend.name)
        torch.manual_seed(seed)
        self.network = Network(preset)
        self._optimizer = Optimizer(self.network, preset, backend.half)
        self._loss: Loss = torch.compile(training_loss) if backend.compiled else training_loss
        self._done, self._seconds = 0, 0.0

    def resume(self) -> None:
        """Go on from the folder's checkpoint."""
        parts = (self.network, self._optimizer)
        self._done, self._seconds = checkpoint.load(self._folder, self._run, parts)

    def _save(self, seconds: float) -> None:
        parts = (self.network, self._optimizer)
        checkpoint.save(self._folder, self._run, self._done, seconds, parts)

    def _step(self, ids: Tensor, weights: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._backend.half):
            loss = self._loss(self.network, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(self._done, rate_share(self._preset, self._done))
        self.network.zero_grad(set_to_none=True)
        self._done += 1
        return float(loss.detach())

    def run(self, report: Callable[[Progress], None]) -> Trained:
        """Train to the end, with a checkpoint every `checkpoint_steps`."""
        preset = self._preset
        tokenizer = train_tokenizer(preset, self._seed)
        started = time.monotonic() - self._seconds
        batches = _batches(preset, tokenizer, self._seed, self._done)
        loss = 0.0
        while self._done < preset.steps:
            phase = "pretrain" if self._done < preset.pretrain_steps else "sft"
            loss = self._step(*next(batches))
            seconds = time.monotonic() - started
            if self._done % preset.checkpoint_steps == 0 or self._done == preset.steps:
                self._save(seconds)
            report(Progress(self._done, preset.steps, phase, loss, seconds))
        return Trained(self.network, tokenizer, time.monotonic() - started, loss)


def train(
    preset: Preset,
    seed: int,
    folder: Path,
    report: Callable[[Progress], None],
    *,
    resume: bool = False,
    backend: Backend | None = None,
) -> Trained:
    """Train a preset from a seed, writing checkpoints into `folder`.

    Raises:
        NovaMeshError: `resume` without a checkpoint that fits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(preset, seed, folder, backend or detect_backend())
    if resume:
        trainer.resume()
    return trainer.run(report)
