"""What a machine says of itself: measured, or left out."""

from __future__ import annotations

import pytest

from novamesh_engine import roofline
from novamesh_node import hardware
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware
from support.fake_nvml import Nvml


def test_a_processor_is_named_and_its_bandwidth_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 8 << 20)
    found = hardware.probe("cpu", 1)
    machine = found.hardware
    assert machine.kind == "cpu"
    assert machine.memory_bytes > 2**28
    assert 10**8 < machine.bandwidth_bytes_per_s < 10**13
    assert found.energy_mj() is None
    assert wire.decode(Hardware, wire.encode(machine)) == machine
    assert "1 threads" in hardware.describe(machine, 1)


def test_a_busy_machine_is_not_a_slow_one() -> None:
    found = hardware.probe_nvidia(Nvml(), "cuda")
    assert hardware.with_bandwidth(found, 10**12).hardware.bandwidth_bytes_per_s == 10**12
    assert hardware.with_bandwidth(found, 1) == found


def test_a_card_says_what_nvml_says() -> None:
    found = hardware.probe_nvidia(Nvml(), "cuda")
    assert found.hardware == Hardware(
        "cuda", "NVIDIA GeForce RTX 3060", 12 * 2**30, 360_048_000_000, "550.54"
    )
    first, second = found.energy_mj(), found.energy_mj()
    assert first is not None
    assert second is not None
    assert second - first == 5
    assert hardware.describe(found.hardware, 1) == "NVIDIA GeForce RTX 3060, 12.0 GiB, 360 GB/s"


def test_what_a_card_does_not_tell_is_left_out() -> None:
    quiet = hardware.probe_nvidia(Nvml("nvmlDeviceGetMemoryBusWidth"), "cuda:0")
    assert quiet.hardware.bandwidth_bytes_per_s == 0
    old = hardware.probe_nvidia(Nvml("nvmlDeviceGetTotalEnergyConsumption"), "cuda:0")
    assert old.energy_mj() is None


@pytest.mark.parametrize(
    ("nvml", "device"),
    [
        (Nvml("nvmlInit"), "cuda"),
        (Nvml(), "cuda:1"),
        (Nvml(), "cuda:x"),
        (Nvml(), "rocm:z"),
        (Nvml(), "banana"),
        (Nvml(), "banana:0"),
    ],
)
def test_a_device_that_is_not_there_is_bad_configuration(nvml: Nvml, device: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        hardware.probe_nvidia(nvml, device)
    assert caught.value.code is Code.BAD_CONFIG
    assert "--device cpu" in caught.value.hint
    there = ", ".join(hardware.devices(nvml))
    assert f"there is no device {device!r} on this machine; there " in caught.value.message
    assert there in caught.value.message


def test_what_can_compute_is_named_as_the_flag_takes_it() -> None:
    assert hardware.devices(Nvml()) == ("cpu", "cuda:0")
    assert hardware.devices(Nvml("nvmlInit")) == ("cpu",)
