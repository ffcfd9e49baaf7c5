"""From the models a node is to serve to loaded engines, and what this machine does with them.

Runs before the loop needs the engines, in a thread of its own. Every device gets its own engine of
every model. Speeds are measured once for a model, an engine build, a device and a number of
threads, and remembered; a device is remembered by its id, so that a card in another slot of the
board keeps its measurements. Rules: every file of a profile is verified; a model without a profile
has no name on the wire and is refused; what does not fit one of several devices is left out there
and said, what fits none ends the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import torch

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.heap import give_back_memory
from novamesh_engine.kernels.choice import look
from novamesh_engine.quant.profile import ModelProfile
from novamesh_node import hardware
from novamesh_node.config import NodeConfig
from novamesh_node.devices import Device, DeviceLostError, check, hold
from novamesh_node.hardware import Probe
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


@dataclass(frozen=True, slots=True)
class LoadedDevice:
    """A device, what it is, and the engines on it."""

    device: Device
    probe: Probe
    models: tuple[LoadedModel, ...]


class DoesNotFitError(NovaMeshError):
    """A device has not enough memory for a model."""

    def __init__(self, profile: ModelProfile) -> None:
        message = f"{profile.name} does not fit into this machine's memory"
        super().__init__(Code.STORAGE, message, "serve a smaller model, or fewer of them")


Say = Callable[[str, str], None]  # a headline and a line


def engine_build(device: str) -> str:
    """What computes, for descriptors and attestations: "0.1.0 native-avx512vnni"."""
    return f"{version('novamesh')} {look(device).name}"[:128]


def load_devices(
    config: NodeConfig, devices: Sequence[Device], state: NodeState, say: Say
) -> tuple[LoadedDevice, ...]:
    """Look at every device, load on it what the node is to serve, and measure that.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND, CORRUPT, UNSUPPORTED, BAD_CONFIG, STORAGE.
    """
    torch.set_num_threads(config.threads)
    profiles = _find_profiles(config)
    loaded, several = [], len(devices) > 1
    lost: DeviceLostError | None = None
    for device in devices:
        try:
            loaded.append(_load_device(device, config, profiles, state, say, several))
        except DeviceLostError as error:
            lost = error.with_traceback(None)
            say("lost", f"{device.label} is left out: {error.message}")
    served = {model.profile.digest for device in loaded for model in device.models}
    for profile in profiles:
        if profile.digest not in served:
            raise lost or DoesNotFitError(profile)
    return tuple(each for each in loaded if each.models)


def _load_device(
    device: Device, config: NodeConfig, profiles: Sequence[ModelProfile], state: NodeState,
    say: Say, several: bool,
) -> LoadedDevice:  # fmt: skip
    """One device with the models that fit it; one that stands alone must take them all.

    Raises:
        DeviceLostError: it fails while it is loaded.
        NovaMeshError: as `load_devices`.
    """
    where = f" on {device.label}" if several else ""
    probe = _look(device, config, state)
    line = hardware.describe(probe.hardware, config.threads)
    say(probe.hardware.kind, f"{line}, {device.label}" if several else line)
    models = []
    for profile in profiles:
        try:
            hold(device, torch.cuda)
            model = _load(profile, config, device, state)
        except DoesNotFitError:
            if not several:
                raise
            say("model", f"{profile.name} does not fit{where} and is not served there")
            continue
        except RuntimeError:  # CUDA's, or any other: only a device that does not answer is lost
            check(device, torch.cuda)
            raise
        say("model", _describe(model) + where)
        models.append(model)
    return LoadedDevice(device, probe, tuple(models))


def _find_profiles(config: NodeConfig) -> tuple[ModelProfile, ...]:
    """What is to be served, once each: two names may mean one model."""
    found = [find_model(name, config.places.models) for name in config.models]
    return tuple({profile.digest: profile for profile in found}.values())


def _look(device: Device, config: NodeConfig, state: NodeState) -> Probe:
    """A device at its best."""
    probe = hardware.probe(device, config.threads)
    name = f"{device.id} {config.threads} {probe.hardware.name}"
    best = state.best_bandwidth(name, probe.hardware.bandwidth_bytes_per_s)
    return hardware.with_bandwidth(probe, best)


def _load(
    profile: ModelProfile, config: NodeConfig, device: Device, state: NodeState
) -> LoadedModel:
    build = engine_build(device.name)
    name = f"{profile.digest.hex()} {build} {device.id} {config.threads}"
    known = state.speed(name)
    step = step_tokens(known[0] if known else 0.0, config.slots)
    engine = _load_engine(profile, config, device, step)
    prefill, decode = known or _measure(engine)
    if known is None:
        state.save_speed(name, prefill, decode)
        fitting = step_tokens(prefill, config.slots)
        if fitting < engine.config.max_step_tokens:
            del engine  # the device need not hold two of them
            give_back_memory()  # the plan of the second would count what torch keeps of it
            engine = _load_engine(profile, config, device, fitting)
    offer = ModelOffer(
        model_profile=ProfileDigest(profile.digest),
        name=profile.name,
        context_max=engine.max_context,
        decode_tokens_per_s=decode,
        prefill_tokens_per_s=prefill,
        active_bytes=active_bytes(profile),
    )
    return LoadedModel(engine, profile, offer)


def _describe(model: LoadedModel) -> str:
    return (
        f"{model.profile.name} {model.profile.digest_short}, "
        f"{model.engine.max_context} tokens of context, "
        f"{model.offer.decode_tokens_per_s:.0f} tokens/s"
    )


def step_tokens(prefill_tokens_per_s: float, slots: int) -> int:
    """Most tokens of one engine step: what this machine computes within STEP_S.

    A step is the least sign of life. One that outlasts the lease would lose every long prompt.
    """
    if prefill_tokens_per_s <= 0:
        return STEP_TOKENS_MAX
    return max(slots, STEP_TOKENS_LEAST, min(STEP_TOKENS_MAX, int(prefill_tokens_per_s * STEP_S)))


def _load_engine(profile: ModelProfile, config: NodeConfig, device: Device, step: int) -> Engine:
    settings = EngineConfig(
        max_running=config.slots, max_step_tokens=step, threads=config.threads,
        device=device.name, tuning=str(config.places.kernels),
    )  # fmt: skip
    try:
        engine = Engine.load(profile.path, settings)
    except (MemoryError, torch.OutOfMemoryError) as error:
        give_back_memory()
        raise DoesNotFitError(profile) from error
    if engine.profile is None or engine.profile.digest != profile.digest:
        raise NovaMeshError(
            Code.CORRUPT, f"{profile.path} changed while it was loaded", "start the node again"
        )
    return engine


def _measure(engine: Engine) -> tuple[float, float]:
    """Prefill and decode tokens a second of one request."""
    found = engine.benchmark(BENCH_PROMPT_TOKENS, BENCH_DECODE_TOKENS)
    return found.prefill_tokens_per_s, found.decode_tokens_per_s
