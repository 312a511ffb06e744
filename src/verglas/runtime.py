"""What this process may use: cores, memory, the device."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import UserError

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def available_memory_bytes() -> int:
    """Memory that this process may still take: what the machine has free, cut by the cgroup's limit."""
    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free = min(free, int(limit) - used)
    except (OSError, ValueError):
        pass
    return max(free, 0)


def set_threads(count: int) -> None:
    """Give torch and numba `count` threads each in this process."""
    import numba
    import torch

    # numba first: as it starts its threads, it may set OpenMP's, which are torch's, to all cores.
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(count)


def choose_device(name: str = "auto") -> "torch.device":
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device that exists.

    Raises
    ------
    UserError
        When the name is none of these, or asks for a GPU that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in {"cpu", "cuda"} or (index and not index.isdigit()):
        raise UserError(f"`device` must be auto, cpu, cuda or cuda:N; got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"`device` is {name!r}, but this machine has {torch.cuda.device_count()} usable GPUs")
    return torch.device(name)
