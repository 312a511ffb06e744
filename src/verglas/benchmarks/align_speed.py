"""Rate of the search of poses beside `relion_refine` on the same particles."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from verglas.algo.averaging.alignment import Reference, align_particles, plan_search
from verglas.algo.averaging.fitting import cut_weighted
from verglas.algo.averaging.sums import SeriesSource, open_source
from verglas.algo.averaging.transfer import TransferModel
from verglas.algo.averaging.views import invert_views
from verglas.algo.simulation.phantoms import make_demo_ribosome
from verglas.algo.simulation.render import render_volume
from verglas.benchmarks.harness import NO_PEER, Figure, measure_process, measure_time
from verglas.io.mrc import write_mrc
from verglas.ops.masks import soft_sphere_mask
from verglas.ops.projection import complete_planes, insert_slices_apart
from verglas.ops.rotation import euler_to_matrices
from verglas.runtime import available_cores, set_threads
from verglas.steps.simulate import SimulateParams, make_series

_PIXEL, _BOX, _RADIUS, _FINEST = 10.0, 32, 125.0, 27.0
_OFFSET_PX = 1
_ORDERS = {0: 72, 1: 576}
"""Orientations of RELION's HEALPix orders; finer ones take it more than in proportion."""

_TIMES = 10.0


@dataclass(frozen=True, eq=False)
class _Field:
    """Particles of a series, cut at the truth."""

    source: SeriesSource
    positions: torch.Tensor
    rotations: torch.Tensor
    reference: torch.Tensor


def race_with_relion(quick: bool) -> Iterator[Figure]:
    """Search all orientations and the nearest shifts of the same particles with both."""
    cores = available_cores()
    set_threads(cores)
    field = _make_field(12 if quick else 24)
    step = math.degrees((8 * math.pi**2 / _ORDERS[1]) ** (1 / 3))
    plan = plan_search(
        _RADIUS, _FINEST, turn_deg=180, step_deg=step, shift_angstrom=_OFFSET_PX * _PIXEL, refine=False
    )
    # The same band for both, whatever the step.
    plan = replace(plan, coarse_angstrom=_FINEST)
    reference = Reference(field.reference, _PIXEL, plan)
    count, turns, shifts = len(field.positions), len(plan.turns), len(reference.shifts_px)
    seconds = measure_time(
        lambda: align_particles(field.source, field.positions, field.rotations, [reference]), rounds=5
    ).median
    rate = count * turns / seconds
    told = f"particle-orientations/s on {cores} cores, {turns} orientations, each with {shifts} shifts"
    if shutil.which("relion_refine") is None:
        yield Figure("align.rate", rate, told, target="10 times relion_refine's", peer=NO_PEER)
        return
    with tempfile.TemporaryDirectory(prefix="verglas-relion-") as scratch:
        _export(field, Path(scratch))
        few, many = (_run_relion(Path(scratch), order, cores) for order in _ORDERS)
    # The difference leaves out what it takes to start.
    peer = count * (_ORDERS[1] - _ORDERS[0]) / (many - few)
    yield Figure(
        "align.rate",
        rate,
        told,
        target="10 times relion_refine's",
        holds=rate >= _TIMES * peer,
        peer="relion_refine, 3-D, without its maximisation",
        peer_value=peer,
        ratio=rate / peer,
    )


def _make_field(count: int) -> _Field:
    params = SimulateParams(
        image_size=(192, 192),
        thickness=900.0,
        tilt_step=6.0,
        exposure=6.0,
        copies=count,
        vesicles=0,
        gold=0,
        misalignment=0.0,
    )
    made = make_series("race", params, Path("race.mrc"))
    series, particles = made.scheme.truth, made.field.particles
    views = invert_views((torch.from_numpy(image) for image in made.images), series, _PIXEL)
    positions = torch.from_numpy(particles.positions_angstrom.copy())
    source = open_source(views, positions, _BOX, TransferModel())
    body = torch.from_numpy(render_volume(make_demo_ribosome(), (_BOX,) * 3, _PIXEL, sampling="average"))
    mask = soft_sphere_mask((_BOX,) * 3, _RADIUS / _PIXEL, 3.0)
    return _Field(source, positions, euler_to_matrices(torch.from_numpy(particles.angles_deg)), body * mask)


def _export(field: _Field, folder: Path) -> None:
    """Write each particle as a volume with its sampling, the reference, and a table."""
    unturned = torch.eye(3, dtype=torch.float64).expand(len(field.positions), 1, 3, 3)
    cut = cut_weighted(field.source, field.positions, _BOX)
    turns = field.source.views.rotations @ unturned
    sums, weights = (
        complete_planes(one) for one in insert_slices_apart(cut.slices, cut.weights, turns, _BOX)
    )
    floor = 0.05 * weights.flatten(1).mean(1)[:, None, None, None]
    volumes = torch.fft.irfftn(sums / torch.maximum(weights, floor), s=(_BOX,) * 3, dim=(-3, -2, -1))
    volumes = torch.fft.fftshift(volumes, dim=(-3, -2, -1))
    sampling = (weights / weights.flatten(1).max(1).values[:, None, None, None]).sqrt()
    rows = []
    for row, (volume, seen) in enumerate(zip(volumes, sampling, strict=True)):
        for name, array in (("particle", (volume - volume.mean()) / volume.std()), ("ctf", seen)):
            write_mrc(
                folder / f"{name}{row}.mrc", np.ascontiguousarray(array.numpy()), voxel_size_angstrom=_PIXEL
            )
        rows.append(f"field particle{row}.mrc ctf{row}.mrc 1")
    write_mrc(folder / "reference.mrc", field.reference.numpy(), voxel_size_angstrom=_PIXEL)
    (folder / "particles.star").write_text(_TABLE.format(box=_BOX, pixel=_PIXEL) + "\n".join(rows) + "\n")


_TABLE = """# version 30001
data_optics
loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
_rlnImageSize #4
_rlnImageDimensionality #5
_rlnVoltage #6
_rlnSphericalAberration #7
_rlnAmplitudeContrast #8
1 one {pixel} {box} 3 300 2.7 0.1

# version 30001
data_particles
loop_
_rlnMicrographName #1
_rlnImageName #2
_rlnCtfImage #3
_rlnOpticsGroup #4
"""


def _run_relion(folder: Path, order: int, threads: int) -> float:
    """Seconds of one iteration of 3-D classification with one class, which then sums nothing."""
    (folder / f"order{order}").mkdir()
    command = [
        "relion_refine", "--i", "particles.star", "--o", f"order{order}/run", "--ref", "reference.mrc",
        "--ini_high", f"{_FINEST:g}", "--iter", "1", "--K", "1", "--particle_diameter", f"{2 * _RADIUS:g}",
        "--healpix_order", str(order), "--offset_range", str(_OFFSET_PX), "--offset_step", "1",
        "--oversampling", "0", "--sym", "C1", "--ctf", "--norm", "--scale", "--pad", "2", "--j", str(threads),
        "--dont_check_norm", "--flatten_solvent", "--zero_mask", "--angpix", f"{_PIXEL:g}",
        "--maxsig", "1", "--skip_maximize",
    ]  # fmt: skip
    return measure_process(command, cwd=folder, environment={"OMP_NUM_THREADS": "1"}).seconds
