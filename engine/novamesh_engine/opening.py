"""Opens a model for an engine: where its weights lie, what computes, how large its cache may be.

Rules: on the CPU everything is mapped from the file and nothing is planned; on a device `place`
decides, and what it decides is kept to. A model that a device cannot hold, or whose kernels are
missing where it lies on two sides, runs on the CPU and says why: a volunteer who gave a card that
is too small still serves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from novamesh_engine.config import EngineConfig
from novamesh_engine.kernels.cards import Card, choose_for, look_at
from novamesh_engine.kernels.choice import Forward, bind, look
from novamesh_engine.kernels.threads import physical_cores
from novamesh_engine.roofline import measure_read
from novamesh_engine.weights.footprint import Footprint
from novamesh_engine.weights.load import LoadedModel, PackedSource, assemble, open_source
from novamesh_engine.weights.place import KVWish, Machine, Placement, place

HOST_SHARE: Final = 0.8  # of the host's memory, as the system and others need some


@dataclass(frozen=True, slots=True)
class Opened:
    """A model and what computes it; the config has the device and the cache that were decided.

    `placement` is None where nothing had to be placed: on the CPU, and for unpacked checkpoints.
    """

    model: LoadedModel
    forward: Forward
    config: EngineConfig
    placement: Placement | None


def open_model(folder: Path, config: EngineConfig) -> Opened:
    """Open a model folder as a config says.

    Raises: NovaMeshError (model_not_found, corrupt, unsupported, bad_config).
    """
    source, profile = open_source(folder, config.verify)
    placement = None
    if config.device != "cpu" and isinstance(source, PackedSource):
        placement = plan(Footprint.of(source.config), source.config.max_context, config)
        config = settle(config, placement)
    hot = placement is not None and placement.mode == "hot"
    apart = placement is not None and not placement.embedding_on_device
    decoder = assemble(source, config.device, experts_apart=hot, embedding_apart=apart)
    resident = placement.resident if placement is not None and hot else ()
    forward = bind(
        decoder, config.device, config.threads, config.precision, resident, config.tuning
    )
    return Opened(LoadedModel(source.config, decoder, profile), forward, config, placement)


def plan(model: Footprint, max_context: int, config: EngineConfig) -> Placement:
    """Where a packed model lies on the config's device, which is not the CPU."""
    card = look_at(config.device)
    wish = KVWish(
        config.context(max_context) * config.max_running, config.kv_bytes_max,
        ("bf16", "int8") if config.kv_dtype == "bf16" else (config.kv_dtype,),
    )  # fmt: skip
    machine = Machine(
        config.device_bytes or card.free_bytes, host_bytes(), card.read_bytes_per_s,
        context_bytes=0,  # look_at opened it
    )  # fmt: skip
    found = place(model, machine, wish)
    if found.mode == "hot" and not splits(card):
        # Torch's own kernels take all experts or none.
        why = f"{found.line}; but {choose_for(card).why}, and the CPU's kernels: {look().why}"
        return replace(place(model, Machine(0, machine.host_bytes), wish), reason=why)
    if found.mode == "hot":
        read = measure_read(config.threads or physical_cores())
        found = place(model, replace(machine, host_read_bytes_per_s=read), wish)
    return found


def splits(card: Card) -> bool:
    """Whether experts can be computed on both sides: kernels of ours are on both."""
    return choose_for(card).kernels == "triton" and bool(look().runnable)


def settle(config: EngineConfig, placement: Placement) -> EngineConfig:
    """The config as a placement allows it."""
    if placement.mode == "none":
        return replace(config, device="cpu")
    return replace(config, kv_dtype=placement.kv_dtype, kv_bytes_max=placement.kv_bytes)


def host_bytes() -> int:
    """What the host's memory may hold of a model."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
    return int(total * HOST_SHARE)
