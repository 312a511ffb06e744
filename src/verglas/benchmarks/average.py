"""`verglas bench average`: time of averaging beside that of reading the views, and memory as particles grow.

The views of one series are read once, whatever the number of its particles, and what is summed is one pair of
Fourier volumes a half set. So memory must not grow with the particles: the peak of the command is measured with
eight times as many too.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from verglas.algo.averaging.sums import sum_particles
from verglas.algo.averaging.transfer import TransferModel
from verglas.benchmarks.cases import PIXEL_ANGSTROM, write_noise_particles
from verglas.benchmarks.harness import Figure, Peak, Timing, measure_process, measure_time
from verglas.ops.rotation import euler_to_matrices
from verglas.runtime import available_cores, set_threads
from verglas.steps.series_particles import SeriesParticles, list_series_particles, open_particles
from verglas.steps.step import Context
from verglas.steps.used_views import read_views

RADIUS_ANGSTROM = 145.0
BOX = 58
MEMORY_GIB = 4.0


def run(quick: bool) -> Iterator[Figure]:
    """Time reading and summing in this process, then run the command with one and eight times the particles."""
    set_threads(available_cores())
    views, side, particles = (13, 480, 30) if quick else (41, 960, 350)
    with tempfile.TemporaryDirectory(prefix="verglas-average-") as scratch:
        folder = Path(scratch)
        paths = write_noise_particles(folder, views=views, side=side, particles=particles)
        yield from _time_parts(folder, paths, rounds=2 if quick else 5)
        few = _run_command(folder, paths, "few-average")
        many_folder = folder / "many"
        many_folder.mkdir()
        many = write_noise_particles(many_folder, views=views, side=side, particles=8 * particles)
        yield from _compare_memory(few, _run_command(folder, many, "many-average"), particles)


def _time_parts(folder: Path, paths: tuple[Path, Path], rounds: int) -> Iterator[Figure]:
    series, particles = paths
    one = next(iter(list_series_particles(series, particles).values()))
    reading = measure_time(lambda: sum(1 for _ in read_views(one.series)), rounds=rounds)
    context = Context(folder, "cpu", available_cores())

    def open_and_sum() -> None:
        source = open_particles(one, PIXEL_ANGSTROM, BOX, TransferModel(), context)
        identity = torch.eye(3, dtype=torch.float64)[None]
        positions = torch.from_numpy(one.particles.positions_angstrom)
        sum_particles(source, positions, _rotations(one), identity)

    whole: Timing = measure_time(open_and_sum, rounds=rounds)
    crops = len(one.particles) * len(one.series)
    yield Figure(
        "average.series",
        whole.median,
        "s",
        "at most twice the time in which the views are read",
        whole.median <= 2 * reading.median,
        "reading the views",
        reading.median,
        reading.median / whole.median,
    )
    yield Figure("average.crops", crops / whole.median, "crops/s of 58 pixels, cut, weighed and inserted")


def _rotations(one: SeriesParticles) -> torch.Tensor:
    return euler_to_matrices(torch.from_numpy(one.particles.angles_deg))


def _run_command(folder: Path, paths: tuple[Path, Path], name: str) -> Peak:
    series, particles = paths
    command: list[str | Path] = [
        *(sys.executable, "-m", "verglas", "average", particles, "--tilt-series", series, "--quiet"),
        *("--particle-radius", f"{RADIUS_ANGSTROM:g}", "--device", "cpu", "--out", folder / name),
    ]
    return measure_process(command)


def _compare_memory(few: Peak, many: Peak, particles: int) -> Iterator[Figure]:
    small, large = few.memory_bytes / 2**30, many.memory_bytes / 2**30
    yield Figure("average.command", few.seconds, f"s for {particles} particles, figures and report included")
    yield Figure(
        "average.memory",
        large,
        "GiB",
        f"under {MEMORY_GIB:g} GiB",
        large < MEMORY_GIB,
        "an eighth of the particles",
        small,
    )
    yield Figure(
        "average.memory growth",
        large / small,
        "times for eight times the particles",
        "at most 1.1 times",
        large <= 1.1 * small,
    )
