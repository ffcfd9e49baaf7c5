"""A whole node with two cards, which the processor plays, against a coordinator on loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from novamesh_engine import roofline
from novamesh_engine.engine import Engine
from novamesh_engine.request import StepOutput
from novamesh_node import devices
from novamesh_node.devices import Device, DeviceLostError, Grip
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import InferenceAttestation, JobFailure, NodeDescriptor
from support.fake_coordinator import Attached, coordinator
from support.parties import NETWORK
from support.running_node import Node, configure, job, node
from support.tiny_profile import save_tiny_profile

ONE = Device("GPU-1a2b3c4d-0000-1111-2222-333344445555", "cpu")
TWO = Device("GPU-9f8e7d6c-0000-1111-2222-333344445555", "cpu")


@dataclass
class Board:
    """The two cards: which of them are gone, and the first one's counter of energy.

    Nothing is computed while `gate` is shut.
    """

    gone: set[str] = field(default_factory=set)
    here: threading.local = field(default_factory=threading.local)
    gate: threading.Event = field(default_factory=threading.Event)
    counter_mj: int = 0

    def grip(self, device: Device, cuda: Any, energy_mj: Any) -> Grip:
        def hold() -> None:
            self.here.device = device

        def check() -> None:
            if device.id in self.gone:
                raise DeviceLostError("AcceleratorError")

        return Grip(self.count if device == ONE else energy_mj, hold, check)

    def count(self) -> int:
        self.counter_mj += 1_000
        return self.counter_mj

    def fail_if_gone(self) -> None:
        """What a card that is gone does to a kernel."""
        if self.here.__dict__.get("device", ONE).id in self.gone:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    made, step = Board(), Engine.step
    made.gate.set()

    def stepped(engine: Engine) -> list[StepOutput]:
        made.gate.wait(20)
        made.fail_if_gone()
        return step(engine)

    monkeypatch.setattr(devices, "find_devices", lambda wanted, cuda, nvml: (ONE, TWO))
    monkeypatch.setattr(devices, "grip", made.grip)
    monkeypatch.setattr(Engine, "step", stepped)
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    before = torch.get_num_threads()
    yield made
    made.gate.set()
    torch.set_num_threads(before)


@contextlib.asynccontextmanager
async def attached(home: Path) -> AsyncIterator[tuple[Node, Attached]]:
    save_tiny_profile(home / "tiny")
    async with coordinator() as pool, node(configure(home, pool, home / "tiny")) as made:
        await made.ready()
        yield made, await pool.next()


async def give_two_jobs(made: Node, at: Attached, board: Board) -> None:
    """At the same time: neither has ended before both were taken."""
    board.gate.clear()
    for _ in range(2):
        await at.say(assignment=job(at, 200).offer)
    while (await made.ask("status"))["running"] < 2:
        pass
    board.gate.set()


async def claims(at: Attached, count: int) -> list[InferenceAttestation]:
    found = []
    for _ in range(count):
        sealed = (await at.until("attestation"))[-1].attestation
        assert sealed is not None
        found.append(envelope.open(sealed, InferenceAttestation, network=NETWORK).message)
    return found


async def test_two_jobs_are_computed_by_two_devices_and_attested_by_each(
    tmp_path: Path, board: Board
) -> None:
    async with attached(tmp_path) as (made, at):
        said = at.descriptor.message
        assert (said.slots, said.hardware.name[:3]) == (4, "2x ")
        assert len(said.models) == 1
        await give_two_jobs(made, at, board)
        by_name = {each.hardware.name.rpartition(" ")[2]: each for each in await claims(at, 2)}
        assert set(by_name) == {"GPU-1a2b3c4d", "GPU-9f8e7d6c"}
        assert by_name["GPU-1a2b3c4d"].energy_mj >= 1_000
        assert by_name["GPU-9f8e7d6c"].energy_mj == 0
        status = await made.ask("status")
        assert [each["id"] for each in status["devices"]] == [ONE.id, TWO.id]
        assert (status["slots"], status["free_slots"]) == (4, 4)


async def test_a_device_that_fails_costs_its_job_and_its_slots_and_the_other_works_on(
    tmp_path: Path, board: Board
) -> None:
    async with attached(tmp_path) as (made, at):
        board.gone.add(ONE.id)
        await give_two_jobs(made, at, board)
        descriptor, failure, attestation = None, None, None
        while not (descriptor and failure and attestation):
            message = await at.hear()
            descriptor = message.descriptor or descriptor
            failure = message.failure or failure
            attestation = message.attestation or attestation
        lost = envelope.open(failure, JobFailure, network=NETWORK).message
        assert (lost.code, lost.message) == (
            Code.UNAVAILABLE, "a device of this node failed: AcceleratorError",
        )  # fmt: skip
        claim = envelope.open(attestation, InferenceAttestation, network=NETWORK).message
        assert claim.hardware.name.endswith("GPU-9f8e7d6c")
        left = envelope.open(descriptor, NodeDescriptor, network=NETWORK).message
        assert (left.slots, len(left.models)) == (2, 1)
        assert not left.hardware.name.startswith("2x ")
        status = await made.ask("status")
        assert (status["slots"], status["free_slots"], status["phase"]) == (2, 2, "idle")
        assert [bool(each["fault"]) for each in status["devices"]] == [True, False]
        (told,) = [text for headline, text in made.heard.lines if headline == "lost"]
        assert told.startswith("GPU-1a2b3c4d is out: ")
        assert told.endswith("; 2 slots are left")
        await at.say(assignment=job(at).offer)
        (again,) = await claims(at, 1)
        assert again.hardware.name.endswith("GPU-9f8e7d6c")


async def test_when_the_last_device_fails_the_node_ends_with_its_error(
    tmp_path: Path, board: Board
) -> None:
    async with attached(tmp_path) as (made, at):
        board.gone |= {ONE.id, TWO.id}
        await give_two_jobs(made, at, board)
        with pytest.raises(NovaMeshError) as caught:
            await made.over()
        assert caught.value.code is Code.UNAVAILABLE
        assert "nvidia-smi" in caught.value.hint
