"""`verglas bench no-invention`: cycles of `align` and `average` on nothing but noise, beginning with a 70S at 40 Å.

Half maps are then alike up to 40 Å, where both half sets share their references, and must not be beyond 35 Å: a
mask 290 Å wide spreads a shell by 1/290 Å, and 1/40 + 1/290 is 1/35. After a cycle with a planted leak, both
half sets aligned to the map of the first, they must be seen to be alike. Curves are averaged over several sets of
noise, for a shell of a single set scatters by 1/sqrt(its independent voxels), and that error is a figure too.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.benchmarks.cases import PIXEL_ANGSTROM, write_noise_particles
from verglas.benchmarks.harness import Figure
from verglas.errors import UserError
from verglas.io.mrc import read_mrc, write_mrc
from verglas.io.star import read_table
from verglas.ops.fsc import correlation_error, resolution_at
from verglas.runtime import available_cores, set_threads
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.step import P, RunOptions, Step, run_step

RADIUS_ANGSTROM = 145.0
SHARED_ANGSTROM = 40.0
LIMIT_ANGSTROM = 35.0
THRESHOLD = 0.143


@dataclass(frozen=True, eq=False)
class _Curves:
    """`(shells,)` frequency in 1/Å, correlation corrected and only masked, and what noise scatters by."""

    frequency: torch.Tensor
    corrected: torch.Tensor
    masked: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True)
class _Size:
    """How much noise, and for how long."""

    sets: int
    cycles: int
    particles: int
    views: int
    image: int


def run(quick: bool) -> Iterator[Figure]:
    """Run the cycles as they are meant, then a few more with the leak."""
    set_threads(available_cores())
    size = _Size(1, 2, 30, 9, 500) if quick else _Size(4, 4, 200, 41, 800)
    curves, leaked = [], None
    for seed in range(size.sets):
        with tempfile.TemporaryDirectory(prefix="verglas-noise-") as scratch:
            cycles = _Cycles(Path(scratch), size, seed)
            curves.append(cycles.run(size.cycles))
            # A leak is plain to see in a single set.
            leaked = leaked or cycles.run(1 if quick else 2, leak=True)
    yield from _judge(curves)
    assert leaked
    yield _judge_leak(leaked)


class _Cycles:
    """Cycles on one set of noise, that go on where the last ones ended."""

    def __init__(self, folder: Path, size: _Size, seed: int) -> None:
        self._folder = folder
        series, self._particles = write_noise_particles(
            folder, views=size.views, side=size.image, particles=size.particles, seed=seed
        )
        box = 2 * int(np.ceil(2 * RADIUS_ANGSTROM / PIXEL_ANGSTROM))
        molecule = render_volume(make_demo_ribosome(), (box,) * 3, PIXEL_ANGSTROM)
        write_mrc(folder / "first.mrc", molecule, voxel_size_angstrom=PIXEL_ANGSTROM)
        self._common = {"tilt_series": series, "particle_radius": RADIUS_ANGSTROM}
        self._target: dict[str, Path | float] = {
            "reference": folder / "first.mrc",
            "lowpass": SHARED_ANGSTROM,
        }
        self._done = 0

    def run(self, cycles: int, *, leak: bool = False) -> _Curves:
        """Align and average; with the leak both half sets are aligned to the map of the first, up to Nyquist."""
        for _ in range(cycles):
            if leak:
                last = self._folder / f"average{self._done - 1}"
                self._target = {"reference": last / "maps/half1.mrc", "lowpass": 2 * PIXEL_ANGSTROM}
            aligned, averaged = (self._folder / f"{kind}{self._done}" for kind in ("align", "average"))
            align = {"particles": self._particles} | self._common | self._target
            _run(ALIGN_STEP, AlignParams.model_validate(align), aligned)
            self._particles = aligned / "particles.star"
            average = {"particles": self._particles} | self._common
            _run(AVERAGE_STEP, AverageParams.model_validate(average), averaged)
            self._target = {"average": averaged, "shared": SHARED_ANGSTROM}
            self._done += 1
        return _read_curves(averaged)


def _run(step: Step[P], params: P, folder: Path) -> None:
    report = run_step(step, params, folder, options=RunOptions(quiet=True))
    for name, error in report.failed.items():
        raise UserError(f"{step.name} of {name!r} failed: {error}")


def _read_curves(job: Path) -> _Curves:
    table = read_table(job / "fsc.star", "fsc")
    frequency, corrected, masked = (
        torch.tensor(table[label].to_numpy(dtype=float))
        for label in (
            "rlnResolution",
            "rlnFourierShellCorrelationCorrected",
            "rlnFourierShellCorrelationMaskedMaps",
        )
    )
    error = correlation_error(torch.from_numpy(read_mrc(job / "maps/mask.mrc")))
    return _Curves(frequency, corrected, masked, error)


def _judge(found: list[_Curves]) -> Iterator[Figure]:
    """Figures of the mean over all sets of noise."""
    frequency, error = found[0].frequency, found[0].error / len(found) ** 0.5
    corrected, masked = (
        torch.stack([getattr(one, kind) for one in found]).mean(0) for kind in ("corrected", "masked")
    )
    beyond = frequency > 1 / LIMIT_ANGSTROM
    count = error[beyond].pow(-2)
    mean, scatter = float((masked[beyond] * count).sum() / count.sum()), float(count.sum()) ** -0.5
    resolution = float(resolution_at(frequency, corrected, THRESHOLD))
    yield Figure(
        "no-invention.resolution",
        resolution,
        "Å",
        f"{THRESHOLD} is reached at {LIMIT_ANGSTROM:g} Å or coarser",
        resolution >= LIMIT_ANGSTROM,
    )
    highest = int(masked[beyond].argmax())
    yield Figure(
        "no-invention.highest shell",
        float(masked[beyond][highest]),
        "",
        f"under {THRESHOLD} in every shell beyond {LIMIT_ANGSTROM:g} Å, nothing corrected",
        bool(masked[beyond][highest] < THRESHOLD),
        "scatter of that shell for noise",
        float(error[beyond][highest]),
    )
    yield Figure(
        "no-invention.mean",
        mean,
        "",
        f"within four times its scatter of 0 beyond {LIMIT_ANGSTROM:g} Å",
        abs(mean) < 4 * scatter,
        "scatter of that mean for noise",
        scatter,
    )


def _judge_leak(found: _Curves) -> Figure:
    finest = 2.5 * PIXEL_ANGSTROM
    band = (found.frequency > 1 / LIMIT_ANGSTROM) & (found.frequency < 1 / finest)
    count = found.error[band].pow(-2)
    seen, scatter = float((found.masked[band] * count).sum() / count.sum()), float(count.sum()) ** -0.5
    return Figure(
        "no-invention.leak.mean",
        seen,
        "",
        f"a planted leak is seen: above four times its scatter from {LIMIT_ANGSTROM:g} to {finest:g} Å",
        seen > 4 * scatter,
        "scatter of that mean for noise",
        scatter,
    )
