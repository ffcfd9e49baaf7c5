"""The node's checks: they tell, and never raise."""

from __future__ import annotations

import pytest

from novamesh_engine.doctor import Status
from novamesh_node.cli import doctor_checks as exported
from novamesh_node.doctor import check_gpu, doctor_checks
from support.fake_nvml import CARD, Nvml


def test_a_card_is_shown() -> None:
    check = check_gpu(Nvml())
    assert (check.name, check.status) == ("gpu", Status.OK)
    assert "RTX 3060" in check.detail
    assert CARD in check.detail
    quiet = check_gpu(Nvml("nvmlDeviceGetTotalEnergyConsumption"))
    assert "energy is not counted" in quiet.detail


def test_every_card_is_shown_by_its_id() -> None:
    check = check_gpu(Nvml(cards=("GPU-1", "GPU-2")))
    first, second = check.detail.split("; ")
    assert first.endswith("GPU-1")
    assert second.endswith("GPU-2")


@pytest.mark.parametrize("nvml", [Nvml("nvmlInit"), Nvml(cards=())])
def test_without_a_card_the_processor_works(nvml: Nvml) -> None:
    check = check_gpu(nvml)
    assert check.status is Status.WARN
    assert "processor" in check.detail


def test_the_command_line_can_ask() -> None:
    assert [check.name for check in doctor_checks()] == ["gpu"]
    assert [check.name for check in exported()] == ["gpu"]
