"""Run a function over items, serially or in processes."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from verglas.errors import UserError
from verglas.exec.outcome import WORKER_VARIABLE, Later, Outcome, complete, guard
from verglas.exec.threads import limit_threads

T = TypeVar("T")

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def run_items(
    function: Callable[[T], Any], items: Mapping[str, T], *, workers: int = 1, threads: int = 1
) -> Generator[Outcome]:
    """Run `function` on every item and yield the outcomes as they come.

    An exception ends its item alone. An item whose worker is killed is tried once more, alone. The workers
    end with this process, however it ends.

    Parameters
    ----------
    function
        Must live at the top of a module when there are several workers. It may return `Later`.
    items
        What it is called with, by name. Small: it travels to the worker.
    workers
        Processes; with one, everything runs in this process.
    threads
        Threads of each worker.
    """
    if workers > 1 and items:
        # distributed takes half a second to load, which a serial run need not wait for.
        from verglas.exec.local import run_in_processes

        yield from run_in_processes(function, items, workers=min(workers, len(items)), threads=threads)
        return
    with limit_threads(threads):
        yield from _run_here(function, items)


def _run_here(function: Callable[[T], Any], items: Mapping[str, T]) -> Generator[Outcome]:
    """Run items one after the other; what one leaves for later is done while the next runs."""
    with ThreadPoolExecutor(1) as behind:
        last: Future[Outcome] | None = None
        for name, item in items.items():
            outcome = guard(function, name, item)
            if last is not None:
                yield last.result()
                last = None
            if isinstance(outcome.value, Later):
                last = behind.submit(complete, outcome)
            else:
                yield outcome
            # What it was left with is large perhaps, and is not to outlive its use.
            del outcome
        if last is not None:
            yield last.result()


def choose_worker_device(device: str) -> str:
    """Deal `auto` and `cuda` out over the GPUs by the worker that asks; other names stay as they are."""
    worker = os.environ.get(WORKER_VARIABLE)
    if worker is None or device not in {"auto", "cuda"}:
        return device
    # torch takes seconds to load, and many steps do without it.
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(worker) % count}" if count else device


def take_shard(names: Sequence[str], shard: tuple[int, int] | None) -> list[str]:
    """Every n-th name of the sorted list, from the i-th on, for the shard `(i, n)` counted from 1.

    Raises
    ------
    UserError
        When the shard is not one of its n.
    """
    if shard is None:
        return sorted(names)
    index, count = shard
    if not 1 <= index <= count:
        raise UserError(f"`shard` must be i/n with 1 <= i <= n; got {index}/{count}")
    return sorted(names)[index - 1 :: count]
