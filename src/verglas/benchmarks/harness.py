"""What all benchmarks share: figures, timing, peak memory, and what they ran on."""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import quantiles

from verglas import __version__
from verglas.errors import UserError
from verglas.runtime import available_cores

BENCHMARKS = {
    "align": "verglas.benchmarks.align",
    "align-tilts": "verglas.benchmarks.align_tilts",
    "average": "verglas.benchmarks.average",
    "backproject": "verglas.benchmarks.backproject",
    "ctf": "verglas.benchmarks.ctf",
    "ctf3d": "verglas.benchmarks.ctf3d",
    "fft-crop": "verglas.benchmarks.fft_crop",
    "fiducials": "verglas.benchmarks.fiducials",
    "match": "verglas.benchmarks.match",
    "no-invention": "verglas.benchmarks.no_invention",
    "classes": "verglas.benchmarks.classes",
    "preprocess": "verglas.benchmarks.preprocess",
    "membranes": "verglas.benchmarks.membranes",
    "motion": "verglas.benchmarks.motion",
    "reconstruct": "verglas.benchmarks.reconstruct",
    "resume": "verglas.benchmarks.resume",
    "rotate": "verglas.benchmarks.rotate",
    "star": "verglas.benchmarks.star",
    "subtract": "verglas.benchmarks.subtract",
    "tilt-ctf": "verglas.benchmarks.tilt_ctf",
    "vesicles": "verglas.benchmarks.vesicles",
}
"""Modules that hold `run(quick: bool) -> Iterator[Figure]`, imported only when asked for."""

NO_PEER = "peer not installed"


@dataclass(frozen=True)
class Figure:
    """One number, beside its target and beside a peer's or the floor on the same machine in the same run.

    Parameters
    ----------
    name
        `benchmark.quantity`.
    value
        What was measured; none when it could not be.
    unit
        Of both values.
    target
        What was asked for, in words; empty when nothing was.
    holds
        Whether the target is met; none when there is none or it could not be measured.
    peer
        The program or the floor that it is compared with; `NO_PEER` where it is missing.
    peer_value
        What the peer did.
    ratio
        How many times better than the peer; below 1 is a loss.
    """

    name: str
    value: float | None
    unit: str
    target: str = ""
    holds: bool | None = None
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of `rounds` measured rounds, seconds."""

    median: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Peak:
    """Wall time in seconds and peak resident memory in bytes of a finished process."""

    seconds: float
    memory_bytes: int


def load_benchmark(name: str) -> Callable[[bool], Iterator[Figure]]:
    """Import a benchmark and return its `run`.

    Raises
    ------
    UserError
        When there is no benchmark of that name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"there is no benchmark {name!r}; expected one of {', '.join(sorted(BENCHMARKS))}")
    run: Callable[[bool], Iterator[Figure]] = importlib.import_module(BENCHMARKS[name]).run
    return run


def to_line(figure: Figure) -> str:
    """Write the figure as one line of JSON, with the machine and the versions."""
    return json.dumps({**asdict(figure), "machine": describe_machine()}, ensure_ascii=False)


@cache
def describe_machine() -> Mapping[str, str | int]:
    """Processor, cores, GPU and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": available_cores(),
        "gpu": _describe_gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "verglas": __version__,
        **{name: _read_version(name) for name in ("torch", "numba", "numpy")},
    }


def _describe_gpu() -> str:
    # A benchmark that never loaded torch did not use a GPU.
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_available() else "none"


def _read_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def measure_time(function: Callable[[], object], *, rounds: int = 5, warm_up: int = 1) -> Timing:
    """Time `function`, with the GPU's queue empty before and after each round.

    Parameters
    ----------
    function
        What is timed.
    rounds
        Measured calls.
    warm_up
        Calls before, for compilers and caches.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1; got {rounds}")
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(rounds):
        _synchronise()
        started = time.perf_counter()
        function()
        _synchronise()
        seconds.append(time.perf_counter() - started)
    low, median, high = quantiles(seconds, n=4, method="inclusive") if rounds > 1 else seconds * 3
    return Timing(median, high - low, rounds)


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


# Runs a command and tells its time and peak. It stands between because the peak of a process counts the
# memory of the one that started it, which may be large.
_WATCH = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
done = {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - started,
        "kib": usage.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump(done, file)
"""


def measure_process(
    command: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Peak:
    """Run a command and measure its time and the peak of its resident memory, that of its children aside.

    Parameters
    ----------
    command
        Program and arguments.
    cwd
        Where it runs.
    environment
        Variables to add to those of this process.

    Raises
    ------
    RuntimeError
        When it fails; the message ends with what it said last.
    """
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _WATCH, f"/dev/fd/{write}", *map(str, command)],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[write],
        )
        os.close(write)
        write = -1
        with os.fdopen(read, closefd=False) as file:
            told = json.loads(file.read() or '{"status": 1}')
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)
    if told["status"]:
        raise RuntimeError(f"{command[0]} ended with status {told['status']}: {done.stderr.strip()[-500:]}")
    return Peak(told["seconds"], told["kib"] * 1024)
