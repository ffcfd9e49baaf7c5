"""What a machine says of itself: measured, or left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_engine import roofline
from novamesh_node import hardware
from novamesh_node.devices import PROCESSOR, Device
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware
from support.fake_nvml import CARD, Nvml
from support.parties import HARDWARE


def test_a_processor_is_named_and_its_bandwidth_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 8 << 20)
    found = hardware.probe(PROCESSOR, 1)
    machine = found.hardware
    assert machine.kind == "cpu"
    assert machine.memory_bytes > 2**28
    assert 10**8 < machine.bandwidth_bytes_per_s < 10**13
    assert found.energy_mj() is None
    assert wire.decode(Hardware, wire.encode(machine)) == machine
    assert "1 threads" in hardware.describe(machine, 1)


def test_a_busy_machine_is_not_a_slow_one() -> None:
    found = hardware.probe_nvidia(Nvml(), CARD)
    assert hardware.with_bandwidth(found, 10**12).hardware.bandwidth_bytes_per_s == 10**12
    assert hardware.with_bandwidth(found, 1) == found


def test_a_card_says_what_nvml_says() -> None:
    found = hardware.probe_nvidia(Nvml(), CARD)
    assert found.hardware == Hardware(
        "cuda", "NVIDIA GeForce RTX 3060", 12 * 2**30, 360_048_000_000, "550.54"
    )
    first, second = found.energy_mj(), found.energy_mj()
    assert first is not None
    assert second is not None
    assert second - first == 5
    assert hardware.describe(found.hardware, 1) == "NVIDIA GeForce RTX 3060, 12.0 GiB, 360 GB/s"


def test_what_a_card_does_not_tell_is_left_out() -> None:
    quiet = hardware.probe_nvidia(Nvml("nvmlDeviceGetMemoryBusWidth"), CARD)
    assert quiet.hardware.bandwidth_bytes_per_s == 0
    old = hardware.probe_nvidia(Nvml("nvmlDeviceGetTotalEnergyConsumption"), CARD)
    assert old.energy_mj() is None


def test_a_card_is_asked_for_by_its_id_wherever_it_is() -> None:
    board = Nvml(cards=("GPU-0", CARD))
    found = hardware.probe_nvidia(board, CARD)
    found.energy_mj()
    assert board.energy == {"GPU-0": 1_000, CARD: 1_005}


@pytest.mark.parametrize(("nvml", "card"), [(Nvml("nvmlInit"), CARD), (Nvml(), "GPU-0")])
def test_a_card_that_nvml_does_not_know_is_bad_configuration(nvml: Nvml, card: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        hardware.probe_nvidia(nvml, card)
    assert caught.value.code is Code.BAD_CONFIG
    assert card in caught.value.message
    assert "--device cpu" in caught.value.hint


def test_one_of_several_cards_is_told_by_its_id() -> None:
    card = Device(CARD, "cuda:1")
    assert hardware.mark(HARDWARE, card).name == "NVIDIA GeForce RTX 3060 GPU-1a2b3c4d"
    long = hardware.mark(replace(HARDWARE, name="x" * 120), card)
    assert long.name.endswith("x GPU-1a2b3c4d")
    assert wire.decode(Hardware, wire.encode(long)) == long
    assert hardware.mark(HARDWARE, PROCESSOR) == HARDWARE


def test_several_devices_are_one_machine_that_promises_what_its_slowest_does() -> None:
    assert hardware.combine([HARDWARE]) is HARDWARE
    big = replace(
        HARDWARE, name="NVIDIA GeForce RTX 4090", memory_bytes=24, bandwidth_bytes_per_s=9
    )
    small = replace(HARDWARE, memory_bytes=12, bandwidth_bytes_per_s=5)
    cpu = Hardware("cpu", "EPYC", 64, 7)
    assert hardware.combine([cpu, small, big, small]) == Hardware(
        "cuda", "EPYC + 2x NVIDIA GeForce RTX 3060 + NVIDIA GeForce RTX 4090", 112, 5, "550.54"
    )
    assert hardware.combine([cpu, cpu]).kind == "cpu"
    assert hardware.combine([big, replace(big, bandwidth_bytes_per_s=0)]).bandwidth_bytes_per_s == 0
    many = hardware.combine([replace(big, name=f"card {number}") for number in range(40)])
    assert wire.decode(Hardware, wire.encode(many)) == many
