"""Whole decoders: single tokens, prompts, energy, and our own bfloat16 weights beside NF4."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cpu.figures import Figure

from gpu.gates import NONE
from gpu.shapes import PHI_MINI
from gpu.speaker import Speaker
from gpu.stage import Stage
from gpu.weights import build
from novamesh_engine.kv_cache import DTYPES, slot_bytes
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.roofline import step_bytes
from novamesh_engine.weights.footprint import Footprint

RESERVE_BYTES: Final = 3 << 29  # caches, logits, scratch, recordings
ENERGY_BATCHES: Final = (1, 16)


def needed_bytes(config: ModelConfig) -> int:
    """Memory that a packed decoder and what it computes with take."""
    return Footprint.of(config).total + RESERVE_BYTES


def decode(stage: Stage, name: str, speaker: Speaker) -> None:
    """Single tokens of several batches in turn, and what a batch of 16 gains."""
    extent = stage.extent
    figures = {
        batch: Figure(
            f"{name}: decode, batch {batch}", "tok/s",
            **(stage.bar(f"decode {name}") if batch == 1 else NONE),
        )
        for batch in extent.batches
    }  # fmt: skip
    line = "batch 16 vs 1" if name == PHI_MINI else ""
    ratio = Figure(f"{name}: decode, batch 16 vs batch 1", "x", **stage.bar(line))
    floors = {batch: floor_s(stage, speaker, batch) for batch in figures}
    for batch in figures:
        speaker.warm(batch)
    for _ in range(extent.rounds):
        reached = {batch: batch / speaker.step_s(batch) for batch in figures}
        for batch, rate in reached.items():
            allowed = batch / floors[batch]
            figures[batch].add(rate, bytes_allow=allowed, percent=100 * rate / allowed)
        allowed = 16 * floors[1] / floors[16]
        ratio.add(reached[16] / reached[1], bytes_allow=allowed)
    for figure in (*figures.values(), ratio):
        stage.show(figure)


def floor_s(stage: Stage, speaker: Speaker, batch: int) -> float:
    """Seconds that a step's bytes take at the speed of a copy."""
    decoder, extent = speaker.decoder, stage.extent
    context = extent.depth + extent.steps / 2
    cached = batch * context * slot_bytes(decoder.config, DTYPES[stage.device.kv[0]])
    return (step_bytes(decoder, batch) + cached) / stage.copy_bytes_s


def prefill(stage: Stage, name: str, speaker: Speaker) -> None:
    """Prompts in one step, beside what their bytes and their products allow."""
    config = speaker.decoder.config
    multiplied = config.active_parameters - 2 * config.vocab_size * config.hidden_size
    for prompt in stage.extent.prompts:
        figure = Figure(f"{name}: prefill {prompt} tokens", "tok/s")
        if stage.extent.warm:
            speaker.prompt_s(prompt)
        read_s = step_bytes(speaker.decoder, prompt) / stage.copy_bytes_s
        for _ in range(stage.extent.rounds):
            figure.add(
                prompt / speaker.prompt_s(prompt),
                bytes_allow=prompt / read_s,
                products_allow=stage.products_s / (2 * multiplied),
            )
        stage.show(figure)


def energy(stage: Stage, name: str, speaker: Speaker) -> None:
    """Joules a token by the card's counter, over seconds of single tokens."""
    device, extent = stage.device, stage.extent
    if device.energy_j() is None:
        stage.skip(f"{name}: energy", "NVML does not count here")
        return
    for batch in ENERGY_BATCHES:
        figure = Figure(f"{name}: energy, batch {batch}", "J/tok")
        speaker.warm(batch)
        for _ in range(2):
            tokens, begun, before = 0, time.perf_counter(), device.energy_j()
            while time.perf_counter() - begun < extent.energy_s / 2:
                speaker.step_s(batch)
                tokens += batch * extent.steps
            spent = (device.energy_j() or 0.0) - (before or 0.0)
            figure.add(spent / tokens, watts=spent / (time.perf_counter() - begun))
        stage.show(figure)


def plain(stage: Stage, name: str, speaker: Speaker, whole: ModelConfig) -> None:
    """NF4 beside our own bfloat16 in turn, reckoned to full depth where that lacks room."""
    device, extent = stage.device, stage.extent
    layers = _plain_layers(whole, device.free_bytes())
    if layers < min(2, whole.layers):
        stage.skip(f"{name}: bf16", "two layers of it do not fit beside NF4")
        return
    config = replace(whole, layers=layers, windows=whole.windows[:layers])
    decoder = build(config, device.name, packed=False)
    depths = (layers,) if layers == whole.layers else (layers // 2, layers)
    if len(depths) > 1:
        stage.facts.setdefault("reckoned", {})[f"{name}: bf16"] = (
            f"{whole.layers} layers from those of {depths[0]} and {depths[1]}"
        )
    others = [
        Speaker(device, replace(decoder, layers=decoder.layers[:depth]), extent)
        for depth in depths
    ]  # fmt: skip
    line = "NF4 vs bf16" if name == PHI_MINI else ""
    ratio = Figure(f"{name}: decode, NF4 vs our bf16", "x", **stage.bar(line))
    for each in (speaker, *others):
        each.warm(1)
    for turn in range(extent.rounds):
        mine = speaker.step_s(1) if turn % 2 == 0 else 0.0
        other = reckon(depths, [each.step_s(1) for each in others], whole.layers)
        mine = mine or speaker.step_s(1)
        allowed = _plain_bytes(whole) / step_bytes(speaker.decoder, 1)
        ratio.add(other / mine, nf4=1 / mine, bf16=1 / other, bytes_allow=allowed)
    stage.show(ratio)


def reckon(depths: Sequence[int], took_s: Sequence[float], layers: int) -> float:
    """Seconds a token of so many layers, from those of the one or two depths that were measured."""
    if len(depths) == 1:
        return took_s[0]
    a_layer = (took_s[1] - took_s[0]) / (depths[1] - depths[0])
    return took_s[1] + (layers - depths[1]) * a_layer


def _plain_layers(config: ModelConfig, free: int) -> int:
    """How many layers of bfloat16 fit."""
    outer = 2 * 2 * config.vocab_size * config.hidden_size
    a_layer = (2 * config.parameters - outer) // config.layers
    return max(0, min(config.layers, (free - outer - RESERVE_BYTES) // a_layer))


def _plain_bytes(config: ModelConfig) -> int:
    """Bytes that one token reads of bfloat16 weights, the embedding's row not counted."""
    return 2 * (config.active_parameters - config.vocab_size * config.hidden_size)
