"""`verglas bench no-invention`: cycles of `align` and `average` on nothing but noise, beginning with a 70S at 40 Å.

Half maps are then alike up to 40 Å, where both half sets share their references, and must not be beyond 35 Å: a
mask 290 Å wide spreads a shell by 1/290 Å, and 1/40 + 1/290 is 1/35. The same cycles with a planted leak, both
half sets aligned to the map of all, must be seen to be alike. Curves are averaged over several sets of noise, for
a single shell of a single set scatters by 1/sqrt(its independent voxels), and that error is a figure too.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.benchmarks.harness import Figure
from verglas.errors import UserError
from verglas.io.mrc import create_mrc, read_mrc, write_mrc
from verglas.io.relion_particles import write_particles
from verglas.io.relion_tilt_series import write_tilt_series
from verglas.io.star import read_table
from verglas.model import ImageReference, Optics, Particles, TiltSeries
from verglas.ops.fsc import correlation_error, resolution_at
from verglas.ops.rotation import matrices_to_euler, random_rotations
from verglas.runtime import available_cores, set_threads
from verglas.steps.align import ALIGN_STEP, AlignParams
from verglas.steps.average import AVERAGE_STEP, AverageParams
from verglas.steps.step import P, RunOptions, Step, run_step

PIXEL_ANGSTROM = 10.0
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


def run(quick: bool) -> Iterator[Figure]:
    """Run the cycles as they are meant, then with the leak."""
    set_threads(available_cores())
    size = _Size(1, 2, 40, 13) if quick else _Size(4, 4, 200, 41)
    for leak in (False, True):
        curves = []
        # A leak is plain to see in a single set.
        for seed in range(1 if leak else size.sets):
            with tempfile.TemporaryDirectory(prefix="verglas-noise-") as scratch:
                curves.append(_run_cycles(Path(scratch), size, seed, leak=leak))
        yield from _judge(curves, leak=leak)


def write_noise(folder: Path, views: int, particles: int, seed: int) -> tuple[Path, Path]:
    """Write views of white noise with a CTF to correct, and particles that are nowhere.

    Parameters
    ----------
    folder
        Where files go.
    views, particles
        How many.
    seed
        Of all that is random.

    Returns
    -------
    tuple
        `tilt_series.star` and `particles.star`.
    """
    rng = np.random.default_rng(seed)
    shape, tilts = (800, 800), np.linspace(-60.0, 60.0, views)
    stack = folder / "noise.mrc"
    with create_mrc(stack, (views, *shape), voxel_size_angstrom=PIXEL_ANGSTROM, is_stack=True) as writer:
        for _ in range(views):
            writer.write(40 + rng.standard_normal((1, *shape), dtype=np.float32))
    series = TiltSeries(
        name="noise",
        optics=Optics(PIXEL_ANGSTROM),
        image_shape=shape,
        images=tuple(ImageReference(stack, row) for row in range(views)),
        nominal_tilt_deg=tilts,
        y_tilt_deg=tilts,
        z_rot_deg=np.full(views, 85.0),
        exposure_e_per_a2=np.full(views, 3.0),
        pre_exposure_e_per_a2=np.asarray(
            np.argsort(np.argsort(np.abs(tilts), kind="stable")) * 3.0, dtype=float
        ),
        defocus_u_angstrom=np.full(views, 30000.0),
        defocus_v_angstrom=np.full(views, 30000.0),
    )
    angles = matrices_to_euler(random_rotations(particles, torch.Generator().manual_seed(seed)))
    table = Particles(
        tomogram_names=np.full(particles, "noise"),
        positions_angstrom=rng.uniform(-1, 1, (particles, 3)) * [3000.0, 3000.0, 500.0],
        angles_deg=angles.numpy(),
        half_set=1 + np.arange(particles) % 2,
        score=np.full(particles, np.nan),
    )
    write_particles(folder / "particles.star", table)
    return write_tilt_series(folder, [series]), folder / "particles.star"


def _run_cycles(folder: Path, size: _Size, seed: int, *, leak: bool) -> _Curves:
    series, particles = write_noise(folder, size.views, size.particles, seed)
    box = 2 * int(np.ceil(2 * RADIUS_ANGSTROM / PIXEL_ANGSTROM))
    molecule = render_volume(make_demo_ribosome(), (box,) * 3, PIXEL_ANGSTROM)
    write_mrc(folder / "first.mrc", molecule, voxel_size_angstrom=PIXEL_ANGSTROM)
    common = {"tilt_series": series, "particle_radius": RADIUS_ANGSTROM}
    target: dict[str, Path | float] = {"reference": folder / "first.mrc", "lowpass": SHARED_ANGSTROM}
    for cycle in range(size.cycles):
        aligned, averaged = folder / f"align{cycle}", folder / f"average{cycle}"
        _run(ALIGN_STEP, AlignParams.model_validate({"particles": particles} | common | target), aligned)
        particles = aligned / "particles.star"
        _run(AVERAGE_STEP, AverageParams.model_validate({"particles": particles} | common), averaged)
        if leak:
            target = {"reference": averaged / "maps/average.mrc", "lowpass": 2 * PIXEL_ANGSTROM}
            _unfilter(averaged)
        else:
            target = {"average": averaged, "shared": SHARED_ANGSTROM}
    return _read_curves(averaged)


def _unfilter(job: Path) -> None:
    """Put the mean of the unfiltered half maps where the average was, so that all their noise leaks."""
    halves = [read_mrc(job / f"maps/half{half}.mrc") for half in (1, 2)]
    write_mrc(job / "maps/average.mrc", (halves[0] + halves[1]) / 2, voxel_size_angstrom=PIXEL_ANGSTROM)


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


def _judge(found: list[_Curves], *, leak: bool) -> Iterator[Figure]:
    """Figures of the mean over all sets of noise."""
    frequency, error = found[0].frequency, found[0].error / len(found) ** 0.5
    corrected, masked = (
        torch.stack([getattr(one, kind) for one in found]).mean(0) for kind in ("corrected", "masked")
    )
    beyond = frequency > 1 / LIMIT_ANGSTROM
    count = error[beyond].pow(-2)
    mean, scatter = float((masked[beyond] * count).sum() / count.sum()), float(count.sum()) ** -0.5
    resolution = float(resolution_at(frequency, corrected, THRESHOLD))
    if leak:
        band = beyond & (frequency < 1 / (2.5 * PIXEL_ANGSTROM))
        seen = float(corrected[band].mean())
        yield Figure(
            "no-invention.leak.mean",
            seen,
            "",
            f"a planted leak is seen: above {THRESHOLD} from {LIMIT_ANGSTROM:g} to {2.5 * PIXEL_ANGSTROM:g} Å",
            seen > THRESHOLD,
        )
        return
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
