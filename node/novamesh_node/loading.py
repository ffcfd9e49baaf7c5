"""From the models a node is to serve to loaded engines, and what this machine does with them.

Runs before the loop needs the engines, in a thread of its own. Speeds are measured once for a
model, an engine build, a device and a number of threads, and remembered. Rules: every file of a
profile is verified; a model without a profile has no name on the wire and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.kernels import select
from novamesh_engine.quant.profile import ModelProfile
from novamesh_node.config import NodeConfig
from novamesh_node.shelf import active_bytes, find_model
from novamesh_node.state import NodeState
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ModelOffer, ProfileDigest

BENCH_PROMPT_TOKENS: Final = 64
BENCH_DECODE_TOKENS: Final = 32


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One engine, ready, and how it is offered."""

    engine: Engine
    profile: ModelProfile
    offer: ModelOffer


def engine_build(device: str) -> str:
    """What computes, for descriptors and attestations: "0.1.0 native-avx512"."""
    return f"{version('novamesh')} {select(device).name}"[:128]


def load_models(
    config: NodeConfig, state: NodeState, say: Callable[[str], None]
) -> tuple[LoadedModel, ...]:
    """Load every model that the node is to serve and measure it.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND, CORRUPT, UNSUPPORTED, BAD_CONFIG, STORAGE.
    """
    torch.set_num_threads(config.threads)
    profiles = [find_model(name, config.places.models) for name in config.models]
    loaded: dict[bytes, LoadedModel] = {}
    for profile in profiles:
        if profile.digest not in loaded:  # two names of one model
            loaded[profile.digest] = _load(profile, config, state, say)
    return tuple(loaded.values())


def _load(
    profile: ModelProfile, config: NodeConfig, state: NodeState, say: Callable[[str], None]
) -> LoadedModel:
    settings = EngineConfig(max_running=config.slots, device=config.device)
    engine = _load_engine(profile.path, settings)
    if engine.profile is None or engine.profile.digest != profile.digest:
        raise NovaMeshError(
            Code.CORRUPT, f"{profile.path} changed while it was loaded", "start the node again"
        )
    prefill, decode = _measure(engine, config, state)
    say(
        f"{profile.name} {profile.digest_short}, {engine.max_context} tokens of context, "
        f"{decode:.0f} tokens/s"
    )
    offer = ModelOffer(
        model_profile=ProfileDigest(profile.digest),
        name=profile.name,
        context_max=engine.max_context,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        active_bytes=active_bytes(profile),
    )
    return LoadedModel(engine, profile, offer)


def _load_engine(path: Path, settings: EngineConfig) -> Engine:
    try:
        return Engine.load(path, settings)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise NovaMeshError(
            Code.STORAGE, f"{path.name} does not fit into this machine's memory",
            "serve a smaller model, or fewer of them",
        ) from error  # fmt: skip


def _measure(engine: Engine, config: NodeConfig, state: NodeState) -> tuple[float, float]:
    """Prefill and decode tokens a second of one request."""
    build = engine_build(config.device)
    name = f"{engine.digest.hex()} {build} {config.device} {config.threads}"
    known = state.speed(name)
    if known is not None:
        return known
    found = engine.benchmark(BENCH_PROMPT_TOKENS, BENCH_DECODE_TOKENS)
    speeds = found.prefill_tokens_per_s, found.decode_tokens_per_s
    state.save_speed(name, *speeds)
    return speeds
