"""What this process may use: cores, memory, the device."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from verglas.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


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


def map_threads(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> list[R]:
    """Call `function` on all items in threads, each of them with one thread of torch; results in order.

    For work on whole images this is faster than threads within each operation, which wait for each other after every
    one, and what a part of the work gives does not depend on the number of threads.

    Parameters
    ----------
    function, items
        The work, and its parts.
    threads
        How many; none is as many as torch may use.
    """
    import torch

    items = list(items)
    usual = torch.get_num_threads()
    threads = usual if threads is None else threads
    if threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    # A thread that starts takes the number that is set when it first asks.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(usual)


@contextmanager
def reuse_memory() -> Iterator[None]:
    """Let this process use the memory of large arrays again within the block, and hand it back at its end.

    What is handed back after each array comes anew page by page, each cleared by the system: a third of the time of
    work on whole images. Nothing happens where the C library is not GNU's.
    """
    library = _find_glibc()
    if library is None:
        yield
        return
    library.mallopt(_M_ARENA_MAX, 1)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    try:
        yield
    finally:
        library.malloc_trim(0)


@contextmanager
def set_aside_objects() -> Iterator[None]:
    """Keep Python's collector of garbage from what is there already, until the block ends.

    The libraries alone make half a million objects. It goes through all of them whenever enough new ones were made,
    and stops everything else for a third of a second.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def release_memory() -> None:
    """Hand back what is free at once, between two parts of the work within :func:`reuse_memory` that need much."""
    library = _find_glibc()
    if library is not None:
        library.malloc_trim(0)


def _find_glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT_BYTES = 2**30


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
