"""Which devices compute: what `--device` names, found in this process by ids that last.

A card's id is its UUID, as `nvidia-smi -L` writes it. Rules: a card is known by its UUID alone,
since CUDA's numbers, NVML's numbers and the slots of the board are three orders, which
CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES change; `cuda:N` counts as torch does; whatever names
nothing, or more than one, is refused by naming what is there. Nothing here loads torch or NVML:
whoever asks brings them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from novamesh_proto.errors import Code, NovaMeshError

CPU: Final = "cpu"
ALL: Final = "all"
LABEL_CHARS: Final = 12  # "GPU-" and the eight digits before the first dash
_ON_CPU: Final = "compute on the processor:  novamesh node start --device cpu"
_NUMBERED: Final = re.compile(r"cuda(?::(?P<number>\d{1,3}))?")
_IDENTIFIED: Final = re.compile(r"gpu-[0-9a-f-]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    """What one engine computes on. `id` goes with the card, `name` is the engine's word for it."""

    id: str
    name: str

    @property
    def label(self) -> str:
        """What people read, which `--device` takes too: cpu, or GPU-1a2b3c4d."""
        return self.id[:LABEL_CHARS]


PROCESSOR: Final = Device(CPU, CPU)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as this process sees it: its UUID and its model."""

    id: str
    model: str


class DeviceLostError(NovaMeshError):
    """A device does not work any more; nothing on it can go on."""

    def __init__(self, kind: str) -> None:
        message = f"a device of this node failed: {kind}"  # strangers read it: not which one
        hint = "look at the driver's log (dmesg, nvidia-smi -q), then start the node again"
        super().__init__(Code.UNAVAILABLE, message, hint)


@dataclass(frozen=True, slots=True)
class Grip:
    """What an engine's thread needs of the device under it; the processor asks for nothing.

    `energy_mj` reads its counter, None where there is none; `hold` makes it the thread's own;
    `check` raises DeviceLostError if it does not work any more.
    """

    energy_mj: Callable[[], int | None] = lambda: None
    hold: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None


UNHELD: Final = Grip()


def find_devices(wanted: str, cuda: Any, nvml: Any) -> tuple[Device, ...]:
    """The devices that a setting names; `cuda` is torch.cuda, `nvml` the NVML binding.

    Raises:
        NovaMeshError: BAD_CONFIG, naming what there is.
    """
    if set(_split(wanted)) == {CPU}:  # a node of the processor must not open the driver
        return (PROCESSOR,)
    cards = list_cards(cuda)
    seen = {card.id for card in cards}
    hidden = tuple(each for each in list_ids(nvml) if each not in seen)
    return choose_devices(wanted, cards, hidden)


def list_cards(cuda: Any) -> tuple[Card, ...]:
    """The cards that torch can use here, by its numbers.

    Raises:
        NovaMeshError: BAD_CONFIG if the driver fails.
    """
    if not cuda.is_available():
        return ()
    try:
        found = [cuda.get_device_properties(number) for number in range(cuda.device_count())]
    except RuntimeError as error:  # what torch makes of CUDA's errors
        said = str(error).partition("\n")[0]
        raise NovaMeshError(
            Code.BAD_CONFIG, f"torch cannot look at the GPUs of this machine: {said}", _ON_CPU
        ) from error
    return tuple(Card(f"GPU-{each.uuid}", str(each.name)) for each in found)


def list_ids(nvml: Any) -> tuple[str, ...]:
    """The UUIDs of all cards that NVML knows, by its numbers; none where it does not work."""
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return tuple(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    return ()


def choose_devices(
    wanted: str, cards: Sequence[Card], hidden: Sequence[str] = ()
) -> tuple[Device, ...]:
    """The devices that `wanted` names, each once, in its order.

    `hidden` are ids of cards that are in the machine and of no use to this process.

    Raises:
        NovaMeshError: BAD_CONFIG, naming what there is.
    """
    found: dict[str, Device] = {}
    for word in _split(wanted) or [wanted]:
        named = {device.id: device for device in _named(word, cards)}
        if not named:
            raise _no_device(word, cards, hidden)
        found |= named
    return tuple(found.values())


def _named(word: str, cards: Sequence[Card]) -> Iterator[Device]:
    """What one word of the setting names.

    Raises:
        NovaMeshError: BAD_CONFIG for the beginning of several ids.
    """
    there = [Device(card.id, f"cuda:{number}") for number, card in enumerate(cards)]
    numbered = _NUMBERED.fullmatch(word)
    if word == CPU:
        yield PROCESSOR
    elif word == ALL:
        yield from there
    elif numbered is not None:
        yield from there[int(numbered["number"] or "0") :][:1]
    elif _IDENTIFIED.fullmatch(word) is not None:
        fitting = [each for each in there if each.id.lower().startswith(word.lower())]
        if len(fitting) > 1:
            several = ", ".join(each.id for each in fitting)
            raise NovaMeshError(
                Code.BAD_CONFIG, f"{word!r} is the beginning of several devices: {several}",
                "write more of the id",
            )  # fmt: skip
        yield from fitting


def _no_device(word: str, cards: Sequence[Card], hidden: Sequence[str]) -> NovaMeshError:
    named = [f"cuda:{number} ({card.id}, {card.model})" for number, card in enumerate(cards)]
    there = f"there {'are' if named else 'is'} {', '.join([CPU, *named])}"
    hint = _ON_CPU
    if hidden:
        there += f"; torch cannot use {', '.join(hidden)} here"
        hint = f"look at CUDA_VISIBLE_DEVICES and at which torch is installed, or {hint}"
    return NovaMeshError(
        Code.BAD_CONFIG, f"there is no device {word!r} on this machine; {there}", hint
    )


def grip(device: Device, cuda: Any, energy_mj: Callable[[], int | None]) -> Grip:
    """How an engine's thread holds a device; `cuda` is torch.cuda."""
    if device.name == CPU:
        return Grip(energy_mj)
    return Grip(energy_mj, partial(hold, device, cuda), partial(check, device, cuda))


def hold(device: Device, cuda: Any) -> None:
    """Make a device the thread's: CUDA's current device is a thread's own, and kernels go there."""
    if device.name != CPU:
        cuda.set_device(device.name)


def check(device: Device, cuda: Any) -> None:
    """Whether a device still works, asked after something on it went wrong.

    An error of CUDA's stays with the device once its memory cannot be trusted, so waiting for the
    device raises it again; after any other failure the device is well, and so is what comes next.

    Raises:
        DeviceLostError: it does not.
    """
    if device.name == CPU:
        return
    try:
        cuda.synchronize(device.name)
    except Exception as error:  # whatever kind the driver's failure has here, the device is gone
        raise DeviceLostError(type(error).__name__) from error


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
