"""What this machine is: its name, memory and memory bandwidth, measured where it can be.

A CPU's read bandwidth is measured with as many threads as the engine gets; a GPU's follows from the
bus width and clock that NVML reports. Rules: the device that computes is described, not the best
one in the box; whatever is missing is left out, never invented. Energy comes from NVML's counter.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import pynvml

from novamesh_engine.roofline import measure_read
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Hardware

_NAME_CHARS_MAX: Final = 120
_CUDA: Final = re.compile(r"cuda(?::(?P<number>\d{1,3}))?")


def no_counter() -> int | None:
    """Energy is not counted."""
    return None


@dataclass(frozen=True, slots=True)
class Probe:
    """A machine and its energy counter: millijoules since some moment, None if there is none."""

    hardware: Hardware
    energy_mj: Callable[[], int | None] = no_counter


def probe(device: str, threads: int) -> Probe:
    """Look at the device that will compute: cpu, cuda or cuda:N.

    Raises:
        NovaMeshError: BAD_CONFIG if there is no such device.
    """
    return probe_cpu(threads) if device == "cpu" else probe_nvidia(pynvml, device)


def probe_cpu(threads: int) -> Probe:
    """The processor, its memory, and what `threads` threads read a second."""
    hardware = Hardware(
        kind="cpu",
        name=_cpu_name(),
        memory_bytes=psutil.virtual_memory().total,
        bandwidth_bytes_per_s=measure_read(threads),
    )
    return Probe(hardware)


def probe_nvidia(nvml: Any, device: str) -> Probe:
    """One NVIDIA GPU; `nvml` is the NVML binding.

    Raises:
        NovaMeshError: BAD_CONFIG if there is no driver or no such GPU, naming what there is.
    """
    named = _CUDA.fullmatch(device)
    if named is None:
        raise _no_device(nvml, device)
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(int(named["number"] or "0"))
        name = str(nvml.nvmlDeviceGetName(handle))[:_NAME_CHARS_MAX]
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        driver = str(nvml.nvmlSystemGetDriverVersion())[:64]
    except nvml.NVMLError as error:
        raise _no_device(nvml, device, f" (NVML: {error})") from error
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


def devices(nvml: Any) -> tuple[str, ...]:
    """What can compute here, by the names that `--device` takes."""
    count = 0
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    return ("cpu", *(f"cuda:{number}" for number in range(count)))


def _no_device(nvml: Any, device: str, reason: str = "") -> NovaMeshError:
    found = devices(nvml)
    there = f"there {'is' if len(found) == 1 else 'are'} {', '.join(found)}"
    return NovaMeshError(
        Code.BAD_CONFIG,
        f"there is no device {device!r} on this machine; {there}{reason}",
        "compute on the processor:  novamesh node start --device cpu",
    )


def with_bandwidth(found: Probe, known: int) -> Probe:
    """The same machine with the best bandwidth that was ever measured on it.

    A busy machine reads slowly for a while; a claim below what it can do would make its own honest
    speeds look impossible.
    """
    best = max(known, found.hardware.bandwidth_bytes_per_s)
    return replace(found, hardware=replace(found.hardware, bandwidth_bytes_per_s=best))


def describe(hardware: Hardware, threads: int) -> str:
    """One line for people."""
    memory = f"{hardware.memory_bytes / 2**30:.1f} GiB"
    used = f", {threads} threads" if hardware.kind == "cpu" else ""
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
