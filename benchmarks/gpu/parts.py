"""The order of things: what the card can do, whether we are right, then model after model."""

from __future__ import annotations

import argparse
import sys
import time

import torch
from cpu.figures import save, table

from gpu.bnb import beside_bnb
from gpu.correct import WrongError, check
from gpu.device import CudaCard, Device, Interpreter, UnusableDeviceError
from gpu.shapes import FULL, PHI_MINI, TINY, configs
from gpu.shares import shares
from gpu.speaker import Speaker
from gpu.stage import Stage
from gpu.weights import build
from gpu.whole import decode, energy, needed_bytes, plain, prefill
from novamesh_engine.models.config import ModelConfig

NO_RESULT = "tiny shapes: this shows that the script runs, and no figure of it is a result"


def measure(options: argparse.Namespace) -> int:
    """All that was asked for; the exit status."""
    try:
        device = _open(options)
    except UnusableDeviceError as error:
        hint = "run it where a GPU is, or see whether it works: --tiny --interpret"
        print(f"decode_gpu: {error}\ndecode_gpu: {hint}", file=sys.stderr)
        return 2
    ends = time.monotonic() + 60 * options.minutes
    stage = Stage(device, TINY if options.tiny else FULL, not options.tiny, ends)
    if options.tiny:
        print(NO_RESULT, file=sys.stderr)
    begun = time.monotonic()
    try:
        _play(stage, options)
    except WrongError as error:
        print(f"decode_gpu: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # the card gave up: what it did before is still worth a file
        stage.facts["stopped"] = str(error)
        print(f"decode_gpu: stopped: {error}", file=sys.stderr)
    return _close(stage, options, time.monotonic() - begun)


def _open(options: argparse.Namespace) -> Device:
    return Interpreter() if options.interpret else CudaCard(options.device, not options.untuned)


def _play(stage: Stage, options: argparse.Namespace) -> None:
    """The device, then every kernel at every shape, and only then what is timed."""
    parts, models = set(options.only.split(",")), options.models.split(",")
    chosen = {name: config for name, config in configs(options.tiny).items() if name in models}
    stage.measure_device()
    distances = stage.facts.setdefault("relative distance from float64", {})
    for name, config in chosen.items():
        distances[name] = check(stage.device, name, config)
        worst = max(distances[name], key=distances[name].__getitem__)
        said = f"{len(distances[name])} comparisons with float64 hold"
        print(f"{name}: {said}, the worst {distances[name][worst]:.1e} ({worst})", file=sys.stderr)
    for name, config in chosen.items():
        try:
            _model(stage, name, config, parts, options.tiny)
        except torch.OutOfMemoryError:
            stage.skip(f"{name}: the rest", "the card has no room after all")


def _model(stage: Stage, name: str, config: ModelConfig, parts: set[str], tiny: bool) -> None:
    """The parts of one model, whose memory is free afterwards."""
    need, free = needed_bytes(config), stage.device.free_bytes()
    if need > free:
        stage.skip(name, f"it takes {need / 1e9:.1f} GB, {free / 1e9:.1f} are free")
        return
    if stage.late(name):
        return
    decoder = build(config, stage.device.name)
    if "kernels" in parts:
        shares(stage, name, decoder)
    speaker = Speaker(stage.device, decoder, stage.extent)
    for part, run in (("decode", decode), ("prefill", prefill), ("energy", energy)):
        if part in parts and not stage.late(f"{name}: {part}"):
            run(stage, name, speaker)
    if "bf16" in parts and not stage.late(f"{name}: bf16"):
        plain(stage, name, speaker, config)
    if "bnb" in parts and name == PHI_MINI and not stage.late(f"{name}: bnb"):
        beside_bnb(stage, speaker, tiny)


def _close(stage: Stage, options: argparse.Namespace, took_s: float) -> int:
    """The table, the file, the verdict."""
    facts = {
        "device": stage.device.document(),
        "is a result": stage.counts,
        "seconds": round(took_s, 1),
        **stage.facts,
    }
    print(table(stage.figures))
    for what, why in stage.facts.get("skipped", {}).items():
        print(f"not measured: {what}: {why}")
    if options.tiny:
        print(f"\n{NO_RESULT}")
    if options.out is not None or not options.tiny:
        place = save("decode_gpu", stage.figures, facts, options.out, stage.device.card)
        print(f"\nwritten to {place}")
    missed = any(figure.met is False for figure in stage.figures)
    return int(missed or "stopped" in stage.facts)
