"""Items in processes of this machine, by Dask."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, as_completed

from verglas.exec.outcome import WORKER_VARIABLE, Outcome, guard_whole
from verglas.exec.threads import limit_threads
from verglas.runtime import end_quickly, search_young_objects

T = TypeVar("T")

_KILLED = (
    "its process was killed, and killed again when the item was tried alone; most often that means that "
    "memory ran out"
)


class _Prepare(WorkerPlugin):
    """Tell a worker its number, keep it from waste, and leave Ctrl-C to the process that the user sees."""

    def setup(self, worker: Any) -> None:
        search_young_objects()
        end_quickly()
        os.environ[WORKER_VARIABLE] = str(worker.name)
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_in_processes(
    function: Callable[[T], Any], items: Mapping[str, T], *, workers: int, threads: int
) -> Iterator[Outcome]:
    """Run `function` on every item in `workers` processes and yield the outcomes as they come."""
    settings = {
        # Items whose worker was killed are tried again here, not by Dask.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.comm.timeouts.connect": "60s",
    }
    with (
        # The workers' threads: Dask lets the environment of this process win over its own settings.
        limit_threads(threads),
        dask.config.set(settings),
        _closing(
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                # Dask would pause and kill workers by their share of the memory; an item may need more.
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
        ) as cluster,
        _closing(Client(cluster)) as client,  # type: ignore[no-untyped-call]
    ):
        client.register_plugin(_Prepare())
        try:
            yield from _feed(client, function, items, workers)
        except BaseException:
            _end_workers(cluster)
            raise


@contextmanager
def _closing(service: Any) -> Iterator[Any]:
    """Close a part of Dask. On a machine that is busy it may not end in time; all outcomes are in by then."""
    try:
        yield service
    finally:
        with suppress(TimeoutError):
            service.close()


def _feed(
    client: Client, function: Callable[[T], Any], items: Mapping[str, T], workers: int
) -> Iterator[Outcome]:
    """Keep as many items in flight as there are workers, then try those again whose worker was killed."""
    names = iter(items)
    running = as_completed()  # type: ignore[no-untyped-call]
    in_flight: dict[Any, str] = {}
    suspects: list[str] = []

    def submit(name: str) -> None:
        future = client.submit(guard_whole, function, name, items[name], pure=False)
        in_flight[future.key] = name
        running.add(future)  # type: ignore[no-untyped-call]

    for name in islice(names, workers):
        submit(name)
    for future in running:
        name = in_flight.pop(future.key)
        if isinstance(error := future.exception(), KilledWorker):
            suspects.append(name)
        else:
            yield Outcome(name, error=f"{type(error).__name__}: {error}") if error else future.result()
        if following := next(names, None):
            submit(following)
    # One at a time: then the item that is killed again is to blame, and one that lacked memory has it all.
    for name in suspects:
        future = client.submit(guard_whole, function, name, items[name], pure=False)
        error = future.exception()  # type: ignore[no-untyped-call]
        yield Outcome(name, error=_KILLED) if error else future.result()


def _end_workers(cluster: LocalCluster) -> None:
    """Kill the workers at once: a task in a thread cannot be stopped otherwise."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if process := getattr(nanny, "process", None):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
