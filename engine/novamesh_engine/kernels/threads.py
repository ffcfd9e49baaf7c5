"""How many threads compute at best: one a physical core that this process may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def physical_cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """Cores, not hardware threads, within the process's affinity and its container's quota."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores = {_core(cpus, cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(quota)))


def _core(cpus: Path, cpu: int) -> str:
    """What identifies a core: the threads that share it, or the CPU itself if nothing says."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(path: Path) -> int:
    """Whole cores that a container may use: cgroup v2's `quota period`, in microseconds."""
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16
