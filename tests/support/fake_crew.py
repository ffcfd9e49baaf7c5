"""Stations with fake engines: a device of any id and speed, and a switch that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock
from novamesh_node.crew import Served, Station
from novamesh_node.devices import Device, DeviceLostError, Grip
from novamesh_node.hardware import mark
from novamesh_node.request import Shape
from novamesh_node.worker import Worker
from novamesh_proto.messages import Hardware, ModelOffer
from support.fake_engine import CONTEXT, VOCAB, FakeEngine, FakeTokenizer
from support.parties import HARDWARE, OFFER

SLOTS = 16


@dataclass
class Broken:
    """A device's switch: once it is broken, its next failure is its last."""

    now: bool = False
    held: int = 0  # threads that made the device theirs


def station(
    name: str,
    engine: FakeEngine | None = None,
    *,
    offers: tuple[ModelOffer, ...] = (OFFER,),
    slots: int = SLOTS,
    broken: Broken | None = None,
    hardware: Hardware = HARDWARE,
    energy_mj: Callable[[], int | None] = lambda: None,
    clock: Clock | None = None,
) -> Station:
    """A device with one engine a model, `engine` for the first; `name` is its id."""
    device = Device(name, "cpu" if name == "cpu" else "cuda:0")
    switch = broken or Broken()

    def hold() -> None:
        switch.held += 1

    def check() -> None:
        if switch.now:
            raise DeviceLostError("AcceleratorError")

    grip = Grip(energy_mj, hold, check)
    served = {}
    for number, offer in enumerate(offers):
        chosen = engine if engine is not None and not number else FakeEngine()
        worker = Worker(chosen, f"fake-{name}", clock or Clock(), grip)
        served[offer.model_profile] = Served(offer, worker, FakeTokenizer(), Shape(CONTEXT, VOCAB))
    machine = Machine(mark(hardware, device), "0.1.0 fake")
    return Station(device, hardware, machine, served, slots)
