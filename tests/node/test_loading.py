"""Loading: each model once, measured once, refused where it is not what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from novamesh.config import Pool
from novamesh_engine import roofline
from novamesh_node import loading
from novamesh_node.config import NodeConfig, load_node_config
from novamesh_node.devices import PROCESSOR, Device, DeviceLostError
from novamesh_node.loading import (
    STEP_S,
    STEP_TOKENS_LEAST,
    STEP_TOKENS_MAX,
    LoadedModel,
    engine_build,
    load_devices,
    step_tokens,
)
from novamesh_node.state import NodeState
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from support.parties import COORDINATOR, NETWORK
from support.tiny_profile import save_tiny_profile

POOL = Pool("127.0.0.1:7700", format_node_id(COORDINATOR.node_id), NETWORK)


# Two cards that torch does not know: their ids are those of cards, and the processor computes.
ONE, TWO = Device("GPU-1a2b3c4d-0000", "cpu"), Device("GPU-9f8e7d6c-0000", "cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(home: Path, *models: Path) -> NodeConfig:
    env = {
        f"NOVAMESH_POOL_{key.upper()}": getattr(POOL, key)
        for key in ("address", "coordinator", "network")
    }
    flags = {"models": ",".join(map(str, models)), "threads": 1, "slots": 2}
    return load_node_config(home, env, flags)


def load(settings: NodeConfig, state: NodeState) -> tuple[LoadedModel, ...]:
    (device,) = load_devices(settings, (PROCESSOR,), state, lambda headline, text: None)
    return device.models


def test_a_model_is_loaded_measured_and_offered(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    said: list[tuple[str, str]] = []
    (device,) = load_devices(
        config(tmp_path, tmp_path / "tiny", tmp_path / "tiny" / "."),
        (PROCESSOR,),
        NodeState(tmp_path / "node"),
        lambda *line: said.append(line),
    )
    (loaded,) = device.models
    offer = loaded.offer
    assert (offer.model_profile, offer.name, offer.context_max) == (profile.digest, "tiny", 256)
    assert offer.decode_tokens_per_s > 0
    assert offer.prefill_tokens_per_s > 0
    assert loaded.engine.config.max_running == 2
    assert loaded.engine.config.tuning == str(tmp_path / "cache" / "kernels")
    assert not loaded.engine.has_work
    assert [headline for headline, _ in said] == ["cpu", "model"]
    assert said[1][1].startswith("tiny ")
    assert said[1][1].endswith(" tokens/s")
    assert device.probe.hardware.bandwidth_bytes_per_s > 0
    assert engine_build("cpu").startswith("0.")


@given(st.floats(0, 1e6), st.integers(1, 48))
def test_a_step_never_takes_much_longer_than_it_may(speed: float, slots: int) -> None:
    tokens = step_tokens(speed, slots)
    assert max(slots, STEP_TOKENS_LEAST) <= tokens <= STEP_TOKENS_MAX
    if speed > 0 and tokens > max(slots, STEP_TOKENS_LEAST):
        assert tokens <= speed * STEP_S


def test_a_slow_machine_takes_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_profile(tmp_path / "tiny")
    monkeypatch.setattr(loading, "_measure", lambda engine: (20.0, 2.0))
    state = NodeState(tmp_path / "node")
    for _ in range(2):  # measured, then remembered
        (loaded,) = load(config(tmp_path, tmp_path / "tiny"), state)
        assert loaded.engine.config.max_step_tokens == 60


def test_it_is_measured_once(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    state = NodeState(tmp_path / "node")
    state.save_speed(f"{profile.digest.hex()} {engine_build('cpu')} cpu 1", 111.0, 22.0)
    (loaded,) = load(config(tmp_path, tmp_path / "tiny"), state)
    assert loaded.offer.prefill_tokens_per_s == 111.0
    assert loaded.offer.decode_tokens_per_s == 22.0


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    save_tiny_profile(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(NovaMeshError) as caught:
        load(config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path))
    assert caught.value.code is Code.CORRUPT
    assert "model.safetensors" in caught.value.message


def test_an_unknown_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save_tiny_profile(tmp_path / "tiny")
    said: list[str] = []
    with pytest.raises(NovaMeshError) as caught:
        load_devices(
            config(tmp_path, tmp_path / "tiny", tmp_path / "no"), (PROCESSOR,),
            NodeState(tmp_path), lambda _, text: said.append(text),
        )  # fmt: skip
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert said == []


def test_every_device_has_engines_and_measurements_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_profile(tmp_path / "tiny")
    speeds = iter([(500.0, 50.0), (900.0, 90.0)])
    monkeypatch.setattr(loading, "_measure", lambda engine: next(speeds))
    said: list[str] = []
    settings, state = config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path / "node")
    first, second = load_devices(settings, (ONE, TWO), state, lambda _, text: said.append(text))
    assert (first.device, second.device) == (ONE, TWO)
    assert first.models[0].engine is not second.models[0].engine
    assert first.models[0].offer.decode_tokens_per_s == 50.0
    assert second.models[0].offer.decode_tokens_per_s == 90.0
    assert [line.rpartition(" ")[2] for line in said] == [
        "GPU-1a2b3c4d", "GPU-1a2b3c4d", "GPU-9f8e7d6c", "GPU-9f8e7d6c",
    ]  # fmt: skip
    # The cards change places: each keeps what was measured on it, and nothing is measured again.
    moved = load_devices(settings, (TWO, ONE), state, lambda headline, text: None)
    assert [each.models[0].offer.decode_tokens_per_s for each in moved] == [90.0, 50.0]


def short_of_memory(monkeypatch: pytest.MonkeyPatch, *fits: bool) -> None:
    """Loads come in order; one that does not fit runs out of memory."""
    answers, really = iter(fits), loading.Engine.load

    def try_it(*arguments: object) -> object:
        if not next(answers):
            raise torch.OutOfMemoryError
        return really(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loading.Engine, "load", try_it)
    monkeypatch.setattr(loading, "_measure", lambda engine: (9e9, 9.0))


def test_what_does_not_fit_one_device_is_served_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_profile(tmp_path / "tiny")
    short_of_memory(monkeypatch, False, True)
    said: list[str] = []
    settings, state = config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path / "node")
    (only,) = load_devices(settings, (ONE, TWO), state, lambda _, text: said.append(text))
    assert only.device == TWO
    assert "tiny does not fit on GPU-1a2b3c4d and is not served there" in said


@pytest.mark.parametrize("devices", [(PROCESSOR,), (ONE, TWO)])
def test_what_fits_nowhere_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[Device, ...]
) -> None:
    save_tiny_profile(tmp_path / "tiny")
    short_of_memory(monkeypatch, False, False)
    with pytest.raises(NovaMeshError) as caught:
        load_devices(
            config(tmp_path, tmp_path / "tiny"), devices, NodeState(tmp_path), lambda _, text: None
        )
    assert caught.value.code is Code.STORAGE
    assert caught.value.message == "tiny does not fit into this machine's memory"


def broken(monkeypatch: pytest.MonkeyPatch, *gone: Device) -> None:
    """Whatever is loaded on them fails, and they do not answer any more."""

    def measure(engine: object) -> tuple[float, float]:
        if held[-1] in gone:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 9e9, 9.0

    def check(device: Device, cuda: object) -> None:
        if device in gone:
            raise DeviceLostError("AcceleratorError")

    held: list[Device] = []
    monkeypatch.setattr(loading, "hold", lambda device, cuda: held.append(device))
    monkeypatch.setattr(loading, "check", check)
    monkeypatch.setattr(loading, "_measure", measure)


def test_a_device_that_fails_while_it_is_loaded_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_profile(tmp_path / "tiny")
    broken(monkeypatch, ONE)
    said: list[tuple[str, str]] = []
    settings, state = config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path / "node")
    (only,) = load_devices(settings, (ONE, TWO), state, lambda *line: said.append(line))
    assert only.device == TWO
    why = "a device of this node failed: AcceleratorError"
    assert ("lost", f"GPU-1a2b3c4d is left out: {why}") in said


@pytest.mark.parametrize("devices", [(ONE,), (ONE, TWO)])
def test_without_a_device_that_works_there_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[Device, ...]
) -> None:
    save_tiny_profile(tmp_path / "tiny")
    broken(monkeypatch, ONE, TWO)
    with pytest.raises(DeviceLostError):
        load_devices(
            config(tmp_path, tmp_path / "tiny"), devices, NodeState(tmp_path), lambda _, text: None
        )


def test_an_error_of_a_device_that_is_well_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(engine: object) -> tuple[float, float]:
        raise RuntimeError("a bug")

    save_tiny_profile(tmp_path / "tiny")
    monkeypatch.setattr(loading, "_measure", measure)
    with pytest.raises(RuntimeError, match="a bug"):
        load(config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path))
