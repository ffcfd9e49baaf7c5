"""What this machine is: its name, memory and memory bandwidth, measured where it can be.

A CPU's read bandwidth is measured with as many threads as the engine gets; a GPU's follows from the
bus width and clock that NVML reports. Rules: the device that computes is described, not the best
one in the box, and NVML is asked for it by UUID, as its numbers are not CUDA's; whatever is missing
is left out, never invented. Energy comes from NVML's counter.
"""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import pynvml

from novamesh_engine.roofline import measure_read
from novamesh_node.devices import CPU, LABEL_CHARS, Device
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware

_NAME_CHARS_MAX: Final = 120


def no_counter() -> int | None:
    """Energy is not counted."""
    return None


@dataclass(frozen=True, slots=True)
class Probe:
    """A machine and its energy counter: millijoules since some moment, None if there is none."""

    hardware: Hardware
    energy_mj: Callable[[], int | None] = no_counter


def probe(device: Device, threads: int) -> Probe:
    """Look at a device that will compute.

    Raises:
        NovaMeshError: BAD_CONFIG if NVML does not know it.
    """
    return probe_cpu(threads) if device.name == CPU else probe_nvidia(pynvml, device.id)


def probe_cpu(threads: int) -> Probe:
    """The processor, its memory, and what `threads` threads read a second."""
    hardware = Hardware(
        kind=CPU,
        name=_cpu_name(),
        memory_bytes=psutil.virtual_memory().total,
        bandwidth_bytes_per_s=measure_read(threads),
    )
    return Probe(hardware)


def probe_nvidia(nvml: Any, card: str) -> Probe:
    """One NVIDIA GPU by its UUID; `nvml` is the NVML binding.

    Raises:
        NovaMeshError: BAD_CONFIG if there is no driver or no such GPU.
    """
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(card)
        name = str(nvml.nvmlDeviceGetName(handle))[:_NAME_CHARS_MAX]
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        driver = str(nvml.nvmlSystemGetDriverVersion())[:64]
    except nvml.NVMLError as error:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"NVML does not tell what {card} is: {error}",
            "compute on the processor:  novamesh node start --device cpu",
        ) from error  # fmt: skip
    bandwidth = 0
    with contextlib.suppress(nvml.NVMLError):
        clock_hz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1_000_000
        # Data moves on both edges of the clock.
        bandwidth = 2 * clock_hz * nvml.nvmlDeviceGetMemoryBusWidth(handle) // 8

    def energy_mj() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError:  # cards before Volta do not count
            return None

    return Probe(Hardware("cuda", name, memory, bandwidth, driver), energy_mj)


def with_bandwidth(found: Probe, known: int) -> Probe:
    """The same machine with the best bandwidth that was ever measured on it.

    A busy machine reads slowly for a while; a claim below what it can do would make its own honest
    speeds look impossible.
    """
    best = max(known, found.hardware.bandwidth_bytes_per_s)
    return replace(found, hardware=replace(found.hardware, bandwidth_bytes_per_s=best))


def mark(hardware: Hardware, device: Device) -> Hardware:
    """A card's hardware as one of several: its name with the beginning of its id behind it."""
    if device.id == CPU:
        return hardware
    name = hardware.name[: _NAME_CHARS_MAX - LABEL_CHARS - 1]
    return replace(hardware, name=f"{name} {device.label}")


def combine(parts: Sequence[Hardware]) -> Hardware:
    """Several devices as the one machine that a descriptor has room for; one stays as it is.

    The memory is the sum, as all of it is lent. The bandwidth is the slowest device's, because it
    stands beside speeds of one answer, which one device computes.
    """
    if len(parts) == 1:
        return parts[0]
    counts = Counter(each.name for each in parts)
    names = [name if count == 1 else f"{count}x {name}" for name, count in counts.items()]
    kinds = [each.kind for each in parts if each.kind != CPU]
    return Hardware(
        kind=kinds[0] if kinds else CPU,
        name=" + ".join(names)[:_NAME_CHARS_MAX],
        memory_bytes=sum(each.memory_bytes for each in parts),
        bandwidth_bytes_per_s=min(each.bandwidth_bytes_per_s for each in parts),
        driver=next((each.driver for each in parts if each.driver), ""),
    )


def describe(hardware: Hardware, threads: int) -> str:
    """One line for people; 0 threads are not told."""
    memory = f"{hardware.memory_bytes / 2**30:.1f} GiB"
    used = f", {threads} threads" if hardware.kind == CPU and threads else ""
    speed = f", {hardware.bandwidth_bytes_per_s / 1e9:.0f} GB/s" * (
        hardware.bandwidth_bytes_per_s > 0
    )
    return f"{hardware.name}{used}, {memory}{speed}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()[:_NAME_CHARS_MAX]
    return (platform.processor() or platform.machine() or "unknown processor")[:_NAME_CHARS_MAX]
