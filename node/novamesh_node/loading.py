"""From the models a node is to serve to loaded engines, and what this machine does with them.

Runs before the loop needs the engines, in a thread of its own. Speeds are measured once for a
model, an engine build, a device and a number of threads, and remembered. Rules: every file of a
profile is verified; a model without a profile has no name on the wire and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import torch

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.kernels.choice import look
from novamesh_engine.quant.profile import ModelProfile
from novamesh_node.config import NodeConfig
from novamesh_node.shelf import active_bytes, find_model
from novamesh_node.state import NodeState
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ModelOffer, ProfileDigest

BENCH_PROMPT_TOKENS: Final = 64
BENCH_DECODE_TOKENS: Final = 32
STEP_S: Final = 3.0
STEP_TOKENS_LEAST: Final = 16
STEP_TOKENS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One engine, ready, and how it is offered."""

    engine: Engine
    profile: ModelProfile
    offer: ModelOffer


def engine_build(device: str) -> str:
    """What computes, for descriptors and attestations: "0.1.0 native-avx512vnni"."""
    return f"{version('novamesh')} {look(device).name}"[:128]


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
    name = f"{profile.digest.hex()} {engine_build(config.device)} {config.device} {config.threads}"
    known = state.speed(name)
    engine = _load_engine(profile, config, step_tokens(known[0] if known else 0.0, config.slots))
    prefill, decode = known or _measure(engine)
    if known is None:
        state.save_speed(name, prefill, decode)
        fitting = step_tokens(prefill, config.slots)
        if fitting < engine.config.max_step_tokens:
            engine = _load_engine(profile, config, fitting)
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


def step_tokens(prefill_tokens_per_s: float, slots: int) -> int:
    """Most tokens of one engine step: what this machine computes within STEP_S.

    A step is the least sign of life. One that outlasts the lease would lose every long prompt.
    """
    if prefill_tokens_per_s <= 0:
        return STEP_TOKENS_MAX
    return max(slots, STEP_TOKENS_LEAST, min(STEP_TOKENS_MAX, int(prefill_tokens_per_s * STEP_S)))


def _load_engine(profile: ModelProfile, config: NodeConfig, step: int) -> Engine:
    settings = EngineConfig(
        max_running=config.slots, max_step_tokens=step, threads=config.threads,
        device=config.device,
    )  # fmt: skip
    try:
        engine = Engine.load(profile.path, settings)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise NovaMeshError(
            Code.STORAGE, f"{profile.name} does not fit into this machine's memory",
            "serve a smaller model, or fewer of them",
        ) from error  # fmt: skip
    if engine.profile is None or engine.profile.digest != profile.digest:
        raise NovaMeshError(
            Code.CORRUPT, f"{profile.path} changed while it was loaded", "start the node again"
        )
    return engine


def _measure(engine: Engine) -> tuple[float, float]:
    """Prefill and decode tokens a second of one request."""
    found = engine.benchmark(BENCH_PROMPT_TOKENS, BENCH_DECODE_TOKENS)
    return found.prefill_tokens_per_s, found.decode_tokens_per_s
