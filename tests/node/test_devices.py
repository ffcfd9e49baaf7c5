"""Devices by name: CUDA's number, the card's id or its beginning, and nothing that is not there."""

from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node import devices
from novamesh_node.devices import (
    PROCESSOR,
    Card,
    Device,
    DeviceLostError,
    choose_devices,
    find_devices,
)
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_cuda import Cuda
from support.fake_nvml import Nvml

# What NVML numbers 0, 1, 2; CUDA puts the fastest first, which is another order.
SLOW, FAST, TWIN = (
    "GPU-1a2b3c4d-0000-1111-2222-333344445555",
    "GPU-9f8e7d6c-0000-1111-2222-333344445555",
    "GPU-9f8e0000-0000-1111-2222-333344445555",
)
BOARD = (SLOW, FAST, TWIN)
NVML = Nvml(cards=BOARD)
CUDA = Cuda((FAST, SLOW, TWIN))


def find(wanted: str, cuda: Cuda = CUDA, nvml: Nvml = NVML) -> list[tuple[str, str]]:
    return [(each.id, each.name) for each in find_devices(wanted, cuda, nvml)]


def refused(wanted: str, cuda: Cuda = CUDA, nvml: Nvml = NVML) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        find(wanted, cuda, nvml)
    assert caught.value.code is Code.BAD_CONFIG
    return caught.value


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("cpu", [("cpu", "cpu")]),
        ("cuda", [(FAST, "cuda:0")]),
        ("cuda:0", [(FAST, "cuda:0")]),
        ("cuda:1", [(SLOW, "cuda:1")]),
        (SLOW, [(SLOW, "cuda:1")]),
        (SLOW.upper(), [(SLOW, "cuda:1")]),
        ("GPU-1", [(SLOW, "cuda:1")]),
        ("GPU-9f8e7", [(FAST, "cuda:0")]),
        ("all", [(FAST, "cuda:0"), (SLOW, "cuda:1"), (TWIN, "cuda:2")]),
        (f"cuda:2, {SLOW}", [(TWIN, "cuda:2"), (SLOW, "cuda:1")]),
        (f"cuda:1,{SLOW},GPU-1a2b", [(SLOW, "cuda:1")]),
        ("cpu,cuda", [("cpu", "cpu"), (FAST, "cuda:0")]),
        ("cuda:2,all", [(TWIN, "cuda:2"), (FAST, "cuda:0"), (SLOW, "cuda:1")]),
    ],
)
def test_a_setting_names_devices_each_once(wanted: str, found: list[tuple[str, str]]) -> None:
    assert find(wanted) == found


def test_a_card_that_moved_or_was_renumbered_is_the_same_card() -> None:
    moved = Cuda((TWIN, FAST, SLOW))
    assert find(SLOW, moved, Nvml(cards=(TWIN, SLOW, FAST))) == [(SLOW, "cuda:2")]


def test_only_what_the_process_may_see_is_numbered() -> None:
    visible = Cuda((SLOW,))  # CUDA_VISIBLE_DEVICES=0, in NVML's words
    assert find("cuda", visible) == find("all", visible) == [(SLOW, "cuda:0")]
    error = refused("cuda:1", visible)
    assert f"cuda:0 ({SLOW}, NVIDIA GeForce RTX 3060)" in error.message
    assert f"torch cannot use {FAST}, {TWIN} here" in error.message
    assert "CUDA_VISIBLE_DEVICES" in error.hint


@pytest.mark.parametrize(
    "wanted", ["cuda:3", "cuda:x", "GPU-5", "GPU-1a2b3c4e", "rocm:0", "banana", "cpu,banana", ","]
)
def test_what_is_not_there_is_refused_by_naming_what_is(wanted: str) -> None:
    error = refused(wanted)
    assert wanted.removeprefix("cpu,") in error.message
    for card in BOARD:
        assert card in error.message
    assert "there are cpu, cuda:0" in error.message
    assert "--device cpu" in error.hint


def test_the_beginning_of_two_ids_names_neither() -> None:
    error = refused("GPU-9f8e")
    assert FAST in error.message
    assert TWIN in error.message
    assert SLOW not in error.message
    assert "more of the id" in error.hint


@pytest.mark.parametrize("wanted", ["cuda", "all", "GPU-1"])
def test_a_machine_without_a_driver_has_its_processor(wanted: str) -> None:
    error = refused(wanted, Cuda(), Nvml("nvmlInit"))
    assert error.message == f"there is no device {wanted!r} on this machine; there is cpu"


def test_a_driver_that_fails_is_no_bug_of_ours() -> None:
    class Broken(Cuda):
        def get_device_properties(self, number: int) -> NoReturn:
            raise RuntimeError("CUDA error: unknown error\nCompile with TORCH_USE_CUDA_DSA")

    error = refused("cuda", Broken(BOARD))
    assert error.message.endswith("GPUs of this machine: CUDA error: unknown error")
    assert "--device cpu" in error.hint


def test_a_torch_without_cuda_is_named_as_the_cause() -> None:
    error = refused("cuda", Cuda())
    assert f"there is cpu; torch cannot use {SLOW}, {FAST}, {TWIN} here" in error.message
    assert "which torch" in error.hint


def test_a_node_of_the_processor_asks_no_driver() -> None:
    assert find_devices("cpu", None, None) == find_devices(" cpu,cpu", None, None) == (PROCESSOR,)


def test_ids_are_those_of_nvml_and_labels_are_their_beginnings() -> None:
    assert devices.list_ids(NVML) == BOARD
    assert devices.list_ids(Nvml("nvmlDeviceGetUUID")) == ()
    assert [card.id for card in devices.list_cards(CUDA)] == [FAST, SLOW, TWIN]
    assert Device(SLOW, "cuda:1").label == "GPU-1a2b3c4d"
    assert PROCESSOR.label == "cpu"


@given(st.lists(st.uuids(), min_size=1, max_size=6, unique=True), st.data())
def test_every_unique_beginning_finds_its_card(uuids: list[object], data: st.DataObject) -> None:
    cards = [Card(f"GPU-{uuid}", "a card") for uuid in uuids]
    number = data.draw(st.integers(0, len(cards) - 1))
    wanted = cards[number].id[: data.draw(st.integers(4, 40))]
    fitting = [card for card in cards if card.id.startswith(wanted)]
    if len(fitting) > 1:
        with pytest.raises(NovaMeshError):
            choose_devices(wanted, cards)
    else:
        assert choose_devices(wanted, cards) == (Device(cards[number].id, f"cuda:{number}"),)


def test_a_thread_holds_its_device_and_the_processor_needs_no_hand() -> None:
    cuda = Cuda(BOARD)
    held = devices.grip(Device(FAST, "cuda:1"), cuda, lambda: 7)
    held.hold()
    held.check()
    assert (cuda.current, cuda.waited, held.energy_mj()) == ("cuda:1", ["cuda:1"], 7)
    processor = devices.grip(PROCESSOR, cuda, lambda: None)
    processor.hold()
    processor.check()
    devices.hold(PROCESSOR, cuda)
    devices.check(PROCESSOR, cuda)
    assert (cuda.current, cuda.waited) == ("cuda:1", ["cuda:1"])


def test_a_device_that_does_not_answer_is_lost() -> None:
    held = devices.grip(Device(FAST, "cuda:1"), Cuda(BOARD, {"cuda:1"}), lambda: None)
    with pytest.raises(DeviceLostError) as caught:
        held.check()
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == "a device of this node failed: RuntimeError"
    devices.grip(Device(SLOW, "cuda:0"), Cuda(BOARD, {"cuda:1"}), lambda: None).check()
